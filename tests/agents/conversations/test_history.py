"""Which turns a run reads: whole ones, the newest, without a gap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.conversations.history import bytes_of, fitting
from agents.conversations.record import HistoryLimits, Said

TURNS = st.lists(st.lists(st.text("x", max_size=9), min_size=1, max_size=6), max_size=8)


@given(TURNS, st.integers(0, 20), st.integers(1, 60))
def test_the_newest_turns_are_read_whole(turns: list[list[str]], messages: int, size: int) -> None:
    said = [Said(number, text) for number, turn in enumerate(turns, 1) for text in turn]
    read = fitting(reversed(said), HistoryLimits(messages, size))
    ends = [[text for turn in turns[first:] for text in turn] for first in range(len(turns) + 1)]
    fits = [each for each in ends if len(each) <= messages and bytes_of(each) <= size]
    assert read == max(fits, key=len)


def test_a_turn_that_is_too_large_hides_what_is_older() -> None:
    said = [Said(1, "a"), Said(2, "b" * 11), Said(3, "c")]
    assert fitting(reversed(said), HistoryLimits(9, 10)) == ["c"]
