"""The runs that a run starts: its children. They are separate runs, paid for with a part of their parent's money.

What must hold:
  A child's id is made from its parent's and its step's key, so that a worker that repeats the step finds the same run and the same
      envelope.
  I9  A child's envelope is a part of its parent's, opened before the child can be taken up. Nobody opens another one for it.
  A child has no more time than its parent, and the same user, tags and priority. It has no session, because runs of a session
      wait for each other.
  A start that is refused, and a child that ends without an answer, are reported to the agent's code, and recorded so.
  A child that waits, for a person or for money, is under way: its parent waits as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID, uuid5

from agents.configuration.terms import RunAmounts
from agents.registry import BrokenLogic
from agents.runs.failures import as_json, describe
from agents.runs.journal import Child, Journal
from agents.runs.record import Run, State, Trigger
from agents.runs.starting import PrincipalSource, RunStarter, StartRequest
from agents.runs.store import CancelAsked
from agents.tools.child_runs import ChildRun, ChildRunFailed, RunOf
from llm_service.errors import (
    Conflict,
    EnvelopeClosed,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    NotPermitted,
    Paused,
    RunBudgetSpent,
    RunTooDeep,
    TooManyChildren,
)
from llm_service.money import MoneyError, parse_dollars
from llm_service.runs.money import RunMoney
from llm_service.treasury.envelopes import ChildOpening, Envelope, too_little_left
from llm_service.types import CallContext

#: What is wrong with the run itself, and not with what it asks for.
_STOPS = (Conflict, EnvelopeClosed, IdempotencyConflict)
#: Refusals that the agent's code, or the model, can do something about. Others stop the run, as in any step.
_REFUSALS = (
    BrokenLogic,
    InvalidRequest,
    NotFound,
    NotPermitted,
    Paused,
    RunBudgetSpent,
    RunTooDeep,
    TooManyChildren,
)


@dataclass(frozen=True, slots=True)
class _Started:
    """A child, and its end if it has ended."""

    id: UUID | None
    agent: str
    end: Mapping[str, Any] | None
    journal: Journal

    async def output(self) -> Any:
        """See `ChildRun.output`."""
        if self.end is None:
            self.journal.wait_for([self.id] if self.id is not None else [])
        if self.end["state"] == State.SUCCEEDED:
            return self.end["output"]
        error = self.end["error"]
        what = "was not started" if self.id is None else f"({self.id}) {self.end['state']}"
        raise ChildRunFailed(error["code"], f"The run of agent {self.agent} {what}: {error['message']}")


@dataclass(frozen=True, slots=True)
class Children:
    """Starts the runs of one run. `register` makes an agent of the catalogue known, if it is not yet."""

    parent: Run
    journal: Journal
    logic: str
    starter: RunStarter
    principals: PrincipalSource
    money: RunMoney
    lifetime_s: float
    register: Callable[[str], Awaitable[None]]

    async def start(self, run: RunOf) -> ChildRun:
        """Start a run as the next step."""
        key, end = await self.journal.child(
            f"{self.logic}__child.{run.agent}",
            run.agent,
            {"input": as_json(dict(run.input)), "budget": run.budget},
            find=self._find,
            start=partial(self._start, run),
        )
        if end is None:
            return _Started(self._id(key), run.agent, None, self.journal)
        return _Started(None if end["run"] is None else UUID(end["run"]), run.agent, end, self.journal)

    async def outputs(self, runs: Sequence[ChildRun]) -> list[Any]:
        """The answers of runs, or what they failed with. If some are under way, wait for all of these."""
        started = [run for run in runs if isinstance(run, _Started)]
        under_way = [run.id for run in started if run.end is None and run.id is not None]
        if under_way:
            self.journal.wait_for(under_way)
        found: list[Any] = []
        for run in runs:
            try:
                found.append(await run.output())
            except ChildRunFailed as error:
                found.append(error)
        return found

    def _id(self, key: str) -> UUID:
        return uuid5(self.parent.id, key)

    async def _find(self, key: str) -> Child | None:
        try:
            return _child(await self.starter.store.find(self._id(key)))
        except NotFound:
            return None

    async def _start(self, run: RunOf, key: str) -> Child:
        try:
            return _child(await self._begin(run, key))
        except _STOPS as error:
            if error.code == "parent_over":
                raise CancelAsked from error
            raise
        except _REFUSALS as error:
            return Child({"run": None, "state": "refused", "output": None, "error": describe(error)})

    async def _begin(self, run: RunOf, key: str) -> Run:
        """Open the child's envelope, and then record it: a worker that takes it up finds its money there."""
        await self.register(run.agent)
        request = StartRequest(
            run.agent,
            run.input,
            Trigger.RUN,
            key=f"run/{key}",
            id=self._id(key),
            budget_nano=_amount(run.budget),
            priority=self.parent.priority,
            asked_by=f"run {self.parent.id}",
            on_behalf_of=self.parent.on_behalf_of,
            tags=self.parent.tags,
            parent=self.parent,
        )
        return await self.starter.start(request, pay=partial(self._pay, run))

    async def _pay(self, run: RunOf, child_id: UUID, amounts: RunAmounts) -> RunAmounts:
        """Open the child's envelope, if it has none yet. Returns its budget and its reserve."""
        envelope = await self.money.envelopes.find(child_id)
        if envelope is None:
            envelope = await self._open(run, child_id, amounts.budget_nano, amounts.reserve_nano)
        return RunAmounts(envelope.budget_nano, envelope.reserve_nano)

    async def _open(self, run: RunOf, child_id: UUID, budget_nano: int, reserve_nano: int) -> Envelope:
        parent = self.parent
        context = CallContext(run=str(child_id), user=parent.on_behalf_of, tags=parent.tags)
        above = await self.money.envelopes.find(parent.id)
        if above is None:  # the parent has no budget
            return await self.money.open(child_id, run.agent, context, budget_nano, reserve_nano, self.lifetime_s)
        if run.budget is None:
            budget_nano = min(budget_nano, above.left_nano)
        if budget_nano > above.left_nano or budget_nano <= 0:
            raise too_little_left(parent.id, budget_nano, above.left_nano, above.budget_nano)
        principal = await self.principals.by_agent(run.agent)
        reserve_nano = min(reserve_nano, budget_nano)
        return await self.money.envelopes.open_child(
            ChildOpening(child_id, parent.id, principal, context, budget_nano, reserve_nano, self.lifetime_s)
        )


def _amount(budget: str | None) -> int | None:
    try:
        return None if budget is None else parse_dollars(budget)
    except MoneyError as error:
        raise InvalidRequest(f"A child's budget: {error}", param="budget") from None


def _child(run: Run) -> Child:
    if not run.state.ended:
        return Child(None)
    error = run.error or {"code": run.state, "message": "It came to no answer."}
    end = {"run": str(run.id), "state": run.state, "output": run.output}
    succeeded = run.state is State.SUCCEEDED
    return Child(end if succeeded else end | {"error": error}, succeeded)
