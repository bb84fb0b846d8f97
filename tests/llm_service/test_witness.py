"""A witness as a line of text: its columns are valid for Postgres, and it is read back unchanged.
tests/integration/test_spool.py tests this with Postgres."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from llm_service.types import Usage
from llm_service.witness import Witness, read_witness

TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TOKENS = st.integers(0, 2**31 - 1)
TIMES = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))


def test_a_line_has_the_columns_of_the_table(witness: Witness) -> None:
    line = json.loads(witness.line())
    assert line["call_id"] == "00000000-0000-0000-0000-000000000001"
    assert (line["cost_nano"], line["cached_tokens"], line["reasoning_tokens"]) == (123, 40, 5)
    assert line["started_at"] == "2026-11-22T00:00:00+00:00"


def test_a_line_holds_what_postgres_can_take(witness: Witness) -> None:
    odd = replace(witness, error="Bad\0Error\nsecond line", started_at=None, usage=Usage(2**40))
    line = odd.line()
    assert "\n" not in line
    assert json.loads(line)["error"] == "BadError\nsecond line"
    assert json.loads(line)["started_at"] is None
    assert json.loads(line)["input_tokens"] == 2**31 - 1


def test_i2_half_a_character_from_a_provider_loses_no_witness(witness: Witness) -> None:
    odd = replace(witness, service_tier="fl\ud800ex", error="\udfff")
    line = json.loads(odd.line())
    assert (line["service_tier"], line["error"]) == ("fl?ex", "?")


def test_a_text_that_only_looks_like_an_escaped_nul_is_kept(witness: Witness) -> None:
    named = replace(witness, model="a\\u0000b")
    assert json.loads(named.line())["model"] == "a\\u0000b"


@given(
    st.builds(
        Witness,
        call_id=st.uuids(),
        attempt=st.integers(0, 99),
        outcome=st.sampled_from(["success", "failure", "cancelled"]),
        model=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
        ended_at=TIMES,
        started_at=st.none() | TIMES,
        provider=TEXTS,
        deployment=TEXTS,
        cost_nano=st.none() | st.integers(0, 2**62),
        usage=st.builds(Usage, *[TOKENS] * 6),
        service_tier=TEXTS,
        counted=st.booleans(),
        unread=st.booleans(),
        status=st.none() | st.integers(100, 599),
        error=TEXTS,
    )
)
def test_i2_a_line_is_read_back_as_the_witness_that_it_was(witness: Witness) -> None:
    assert read_witness(json.loads(witness.line())) == witness
