from __future__ import annotations

from llm_service.telemetry.labels import OTHER, UNKNOWN, BoundedLabels, clean


def test_later_values_are_other_and_earlier_ones_keep_their_name():
    bounded = BoundedLabels({"agent": 2})
    assert [bounded("agent", name) for name in ("a", "b", "c", "a", "d", "b")] == ["a", "b", OTHER, "a", OTHER, "b"]


def test_labels_are_bounded_each_for_itself():
    bounded = BoundedLabels({"agent": 1, "model": 1})
    assert (bounded("agent", "x"), bounded("model", "y")) == ("x", "y")


def test_no_value_is_unknown_and_takes_no_place():
    bounded = BoundedLabels({"agent": 1})
    assert bounded("agent", None) == bounded("agent", "") == UNKNOWN
    assert bounded("agent", "a") == "a"


def test_a_label_can_always_be_encoded_and_is_short():
    assert clean("\ud800x").encode() == b"?x"
    assert len(clean("a" * 10_000)) == 120
    assert clean("团队 🚀") == "团队 🚀"
