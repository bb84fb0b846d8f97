"""Which budgets apply to a call, and which models a key may use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.types import NO_CONTEXT, Budget, CallContext, Dimension, Principal, Scope, WindowKind

CONTEXT = CallContext(run="r1", user="ann", session="s1", tags=("a", "b"))


def budget(**fields: object) -> Budget:
    return Budget(1, "b", Scope.AGENT, 7, WindowKind.DAY, **fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("fields", "subjects"),
    [
        ({}, ("",)),
        ({"model_pattern": "gpt-*"}, ("",)),
        ({"model_pattern": "claude-*"}, ()),
        ({"model_pattern": "GPT-*"}, ()),
        ({"per": Dimension.RUN}, ("r1",)),
        ({"per": Dimension.USER}, ("ann",)),
        ({"per": Dimension.SESSION}, ("s1",)),
        ({"per": Dimension.TAG}, ("a", "b")),
        ({"per": Dimension.TAG, "per_value": "b"}, ("b",)),
        ({"per": Dimension.TAG, "per_value": "c"}, ()),
        ({"per": Dimension.USER, "per_value": "ann", "model_pattern": "claude-*"}, ()),
    ],
)
def test_a_call_falls_into_the_subjects_of_a_budget(fields: dict[str, object], subjects: tuple[str, ...]) -> None:
    assert budget(**fields).subjects("gpt-4o", CONTEXT) == subjects


@pytest.mark.parametrize("dimension", list(Dimension))
def test_leaving_a_header_out_is_no_way_around_a_limit(dimension: Dimension) -> None:
    assert budget(per=dimension).subjects("gpt-4o", NO_CONTEXT) == ("",)
    assert budget(per=dimension, per_value="x").subjects("gpt-4o", NO_CONTEXT) == ()


@given(st.lists(st.text(min_size=1, max_size=4), unique=True), st.text(min_size=1, max_size=4))
def test_a_narrowed_budget_takes_exactly_the_calls_that_carry_its_value(tags: list[str], value: str) -> None:
    context = CallContext(tags=tuple(tags))
    assert bool(budget(per=Dimension.TAG, per_value=value).subjects("m", context)) == (value in tags)
    split = budget(per=Dimension.TAG).subjects("m", context)
    assert split == (tuple(tags) or ("",))


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "anything", True),
        (("gpt-4o",), "gpt-4o", True),
        (("gpt-4o",), "gpt-4o-mini", False),
        (("gpt-4o*", "claude-?"), "gpt-4o-mini", True),
        (("gpt-4o*", "claude-?"), "claude-3", True),
        (("gpt-4o*", "claude-?"), "Claude-3", False),
    ],
)
def test_a_key_may_use_the_models_of_its_list(models: tuple[str, ...], model: str, allowed: bool) -> None:
    assert Principal(1, "o", 1, "t", 1, "a", 1, "k", 1, models=models).may_use(model) is allowed
