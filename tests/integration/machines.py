"""What a state machine of Hypothesis works on. Its rules are not coroutines, so it runs what it does on a loop (`do`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

_T = TypeVar("_T")


@dataclass
class World:
    """A database for one test, and the event loop of its connections."""

    loop: asyncio.AbstractEventLoop
    pool: asyncpg.Pool
    url: str

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(work)


def run_machine(make: Callable[[], RuleBasedStateMachine], *, examples: int, steps: int) -> None:
    """Run this many examples, each on a machine that `make` returns; the same ones each time."""
    run_state_machine_as_test(
        make,  # pyright: ignore[reportArgumentType]  # Hypothesis documents that it takes any such function
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None, derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )  # fmt: skip
