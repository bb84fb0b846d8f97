"""A caller whose call is under way for another caller asks again, and is in trouble only if that does not end."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from tests.chaos.calls import IN_PROGRESS, TIMES, make, patiently

OK, LATER, DOWN = ("ok", ""), ("failed", IN_PROGRESS), ("failed", "503 proxy_unavailable")


@pytest.mark.parametrize(
    ("answers", "outcome", "troubles", "left"),
    [
        ([OK, OK], "ok", [], 1),
        ([LATER, LATER, OK], "ok", [], 0),
        ([LATER, DOWN, OK], "failed", ["503 proxy_unavailable"], 1),
        ([DOWN, OK], "failed", ["503 proxy_unavailable"], 1),
        ([LATER] * TIMES + [OK], "failed", [IN_PROGRESS], 1),
    ],
)
async def test_a_caller_asks_again_while_its_call_is_under_way(
    answers: Iterable[tuple[str, str]], outcome: str, troubles: list[str], left: int
) -> None:
    asked = make(random.Random(1), "key", "keyed")
    waiting = list(answers)

    async def once() -> str:
        return asked.has(*waiting.pop(0))

    assert await patiently(asked, once) == outcome
    assert (asked.outcome, asked.troubles, len(waiting)) == (outcome, troubles, left)
