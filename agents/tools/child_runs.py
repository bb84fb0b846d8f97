"""Starting runs of other agents from an agent's code: each is a step of the run that starts it.

    @agent.tool(metadata=policy.RUNS)
    async def look_into(ctx: RunContext[Desk], questions: list[str]) -> list[Any]:
        return await run_agents([RunOf("digest", {"focus": each}, budget="0.01") for each in questions])

What must hold:
  A run is started and awaited by an agent's own code, and never within a step of it: in a tool that is declared as
      `policy.RUNS`, in an output validator, in instructions. That code is repeated when the run is taken up again, so it does
      nothing else that must not be repeated.
  Runs are started one after another, because their order is what the journal goes by. They go on side by side.
  A run that has not come to an answer raises `ChildRunFailed`. If a tool lets that pass, it is the tool's answer, which
      the model reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from pydantic_ai import ToolFailed


class ChildRunFailed(ToolFailed):
    """A child run was refused, or ended without an answer. `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class RunOf:
    """A run to start. `budget` is in dollars; None: what the agent is configured with, or what is left, if that is less."""

    agent: str
    input: Mapping[str, Any]
    budget: str | None = None


class ChildRun(Protocol):
    """A run that was started."""

    @property
    def id(self) -> UUID | None:
        """None: it was refused."""
        ...

    async def output(self) -> Any:
        """What it has answered, as JSON. Until it has ended the run that asks waits, and holds neither a worker nor money.

        Raises:
            ChildRunFailed: it was refused, or ended without an answer.
        """
        ...


class StartsRuns(Protocol):
    """The part that starts runs (`agents.runs.children.Children`)."""

    async def start(self, run: RunOf) -> ChildRun: ...
    async def outputs(self, runs: Sequence[ChildRun]) -> list[Any]: ...


_starts: ContextVar[StartsRuns | None] = ContextVar("treasurer_starts_runs", default=None)


async def start_run(run: RunOf) -> ChildRun:
    """Start a run, and go on without waiting for it."""
    return await _starter().start(run)


async def run_agent(run: RunOf) -> Any:
    """Start a run, and wait for its answer. Raises ChildRunFailed."""
    return await (await start_run(run)).output()


async def run_agents(runs: Sequence[RunOf]) -> list[Any]:
    """Start runs that go on side by side, and wait for all of them: the answers, or a `ChildRunFailed` in an answer's place."""
    starter = _starter()
    return await starter.outputs([await starter.start(run) for run in runs])


def _starter() -> StartsRuns:
    starter = _starts.get()
    if starter is None:
        raise RuntimeError(
            "Here no run can be started: that takes a recorded run, and a tool that is declared with policy.RUNS."
        )
    return starter


@contextmanager
def starting_with(starter: StartsRuns | None) -> Iterator[None]:
    """Within this context runs are started by `starter`; None: they cannot be."""
    token = _starts.set(starter)
    try:
        yield
    finally:
        _starts.reset(token)
