"""A worker: it claims runs, does several at once in one process, and keeps their leases.

What must hold:
  One renewal keeps the leases of all of its runs. If none has succeeded for as long as a lease lasts, the worker takes its
      runs for lost, because another worker may have them by now, and stops them.
  A run that is cancelled, late or lost is stopped within one renewal. A step that cannot be interrupted (a thread, or a
      model's answer that is paid for anyway) ends unseen.
  `stop` hands its runs over: another worker takes them up at once, at the step that they were at.
  A run that fails ends itself and no other. Postgres may go away and come back.
There is no global state: any number of workers may be in a process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from uuid import UUID, uuid4

from agents.conversations.turn import Turn
from agents.runs.executor import RunExecutor
from agents.runs.outcomes import cancelled, expired
from agents.runs.record import Claim, Ended, HandsOver, Outcome, Run, WaitFor
from agents.runs.store import LEASE_S, LeaseLost
from llm_service.errors import TreasurerError

log = logging.getLogger(__name__)


class _Stop(Enum):
    """Why the worker has stopped a run."""

    CANCELLED = "cancelled"
    LATE = "late"
    LOST = "lost"
    HANDOVER = "handover"


@dataclass(slots=True)
class _Running:
    claim: Claim
    task: asyncio.Task[None]
    stop: _Stop | None = None
    leaving: bool = False  # its outcome is being written

    def end(self, why: _Stop) -> None:
        if self.stop is None and not self.leaving:
            self.stop = why
            self.task.cancel()


@dataclass(slots=True)
class Outage:
    """Says once that the store is away, once that it is back, and in between once a minute, however often it is asked."""

    again_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _since: float | None = field(default=None, init=False)
    _said_at: float = field(default=0.0, init=False)

    def failed(self, what: str, error: TreasurerError) -> None:
        """The store did not answer."""
        now = self.clock()
        if self._since is None:
            self._since = self._said_at = now
            log.warning("%s: %s", what, error)
        elif now - self._said_at >= self.again_s:
            self._said_at = now
            log.warning("%s for %.0f s now: %s", what, now - self._since, error)

    def succeeded(self) -> None:
        """The store has answered."""
        if self._since is not None:
            log.warning("runs are claimed again, after %.0f s", self.clock() - self._since)
            self._since = None


@dataclass(slots=True)
class Worker:
    """Does at most `slots` runs at once. `run` works until it is cancelled or `stop` is called."""

    executor: RunExecutor
    slots: int = 32
    lease_s: float = LEASE_S
    renew_s: float = 5.0
    poll_s: float = 1.0
    id: UUID = field(default_factory=uuid4)
    _running: dict[UUID, _Running] = field(default_factory=dict[UUID, _Running], init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _stopping: bool = field(default=False, init=False)
    _renewed_at: float = field(default_factory=time.monotonic, init=False)
    _away: Outage = field(default_factory=Outage, init=False)
    _heard_at: float = field(default=float("-inf"), init=False)

    @property
    def running(self) -> frozenset[UUID]:
        """The runs that it is doing."""
        return frozenset(self._running)

    @property
    def heard_at(self) -> float:
        """When the store answered last, on the monotonic clock."""
        return self._heard_at

    def wake(self) -> None:
        """Look for work now: somebody has added a run."""
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing any more, hand over what is running, and let `run` return."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`. When this returns, or is cancelled, the worker holds no run."""
        chores = [asyncio.create_task(chore()) for chore in (self._renew_regularly, self._recover_regularly)]
        try:
            while not self._stopping:
                self._wake.clear()
                if not await self._claim():
                    await self._pause(self.poll_s)
        finally:
            await self._hand_over()
            for chore in chores:
                chore.cancel()
            await asyncio.wait(chores)

    async def work_off(self) -> int:
        """Do what is queued, and return when nothing is left that this worker could do: for tests and commands."""
        done = 0
        keep = asyncio.create_task(self._renew_regularly())
        try:
            while True:
                done += await self._claim()
                if not self._running:
                    return done
                await asyncio.wait([each.task for each in self._running.values()], return_when="FIRST_COMPLETED")
        finally:
            await self._hand_over()
            keep.cancel()
            await asyncio.wait([keep])

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _claim(self) -> int:
        """Claim as many runs as there is room for. Returns how many."""
        free = self.slots - len(self._running)
        if free <= 0:
            return 0
        if not self._running:
            self._renewed_at = time.monotonic()  # there was nothing to renew
        try:
            agents = await self.executor.agents()
            runs = await self.executor.store.claim(self.id, free, agents, lease_s=self.lease_s)
        except TreasurerError as error:
            self._away.failed("no run is claimed", error)
            return 0
        self._away.succeeded()
        self._heard_at = time.monotonic()
        for run in runs:
            task = asyncio.create_task(self._do(run), name=f"run {run.id}")
            self._running[run.id] = _Running(run.claim, task)
            task.add_done_callback(partial(self._forget, run.id))
        self.executor.traces.working(len(self._running), self.slots)
        return len(runs)

    def _forget(self, run_id: UUID, _task: asyncio.Task[None]) -> None:
        self._running.pop(run_id, None)
        self.executor.traces.working(len(self._running), self.slots)
        self._wake.set()

    async def _do(self, run: Run) -> None:
        """Do a run and write its outcome, whatever it is."""
        mine, began_at, turn = self._running[run.id], datetime.now(UTC), Turn(str(run.id))
        try:
            outcome: Outcome | None = await self.executor.execute(run, turn)
        except asyncio.CancelledError:
            if mine.stop is None:
                raise  # the event loop is closing
            outcomes = {_Stop.CANCELLED: cancelled(), _Stop.LATE: expired(), _Stop.HANDOVER: HandsOver()}
            outcome = outcomes.get(mine.stop)
        except LeaseLost:
            outcome = None
        except TreasurerError as error:
            log.warning("run %s is given up until another worker takes it up: %s", run.id, error)
            outcome = None
        mine.leaving = True
        if outcome is None:
            log.info("the lease of run %s is lost, or will end", run.id)
            self.executor.traces.attempt(run, began_at, None)
            return
        # First the money, because a worker that dies in between would hold it until the run's deadline.
        try:
            await self.executor.release(run, outcome)
        except TreasurerError as error:
            log.warning("run %s is given up until another worker takes it up: %s", run.id, error)
            return
        self.executor.traces.attempt(run, began_at, outcome)
        is_said = run.session is not None and not isinstance(outcome, HandsOver)
        await self._leave(run.claim, outcome, turn.recorded() if is_said and turn.messages else None)

    async def _leave(self, claim: Claim, outcome: Outcome, turn: Sequence[str] | None) -> None:
        try:
            left = await self.executor.store.leave(claim, outcome, turn)
            if left.wait_for is WaitFor.RUN or (left.state.ended and left.parent_id is not None):
                await self._follow()
        except LeaseLost:
            log.info("run %s was another worker's by the time it ended here", claim.run_id)
        except TreasurerError as error:
            log.warning("the end of run %s was not written; another worker takes it up: %s", claim.run_id, error)

    async def _renew_regularly(self) -> None:
        while True:
            await asyncio.sleep(self.renew_s)
            await self._renew()

    async def _renew(self) -> None:
        began = time.monotonic()
        held = dict(self._running)
        if not held:
            self._renewed_at = began
            return
        try:
            renewed = await self.executor.store.renew(
                self.id, [each.claim for each in held.values()], lease_s=self.lease_s
            )
        except TreasurerError as error:
            self._away.failed("leases are not renewed", error)
            if time.monotonic() - self._renewed_at > self.lease_s:
                for each in held.values():
                    each.end(_Stop.LOST)
            return
        self._renewed_at = self._heard_at = began
        found = {each.run_id: each for each in renewed}
        for run_id, each in held.items():
            answer = found.get(run_id)
            if answer is None:
                each.end(_Stop.LOST)
            elif answer.cancelled:
                each.end(_Stop.CANCELLED)
            elif answer.late:
                each.end(_Stop.LATE)

    async def _recover_regularly(self) -> None:
        """Queue what nobody holds any more, and forget what need not be kept."""
        while True:
            try:
                await self._recover()
            except TreasurerError as error:
                self._away.failed("lost runs are not looked for", error)
            await asyncio.sleep(self.poll_s)

    async def _recover(self) -> None:
        store = self.executor.store
        for each in await store.recover():
            if each.state.ended:
                self.executor.traces.ended(await store.find(each.run_id))
            else:
                self._wake.set()
        await self._follow()
        await store.forget()
        await store.conversations.forget()

    async def _follow(self) -> None:
        """Give back the money of runs that have ended, and let those go on that have waited for them."""
        store = self.executor.store
        for each in await store.followups():
            try:
                if each.run.state.ended:
                    await self.executor.give_back(each.run, Ended(each.run.state, error=each.run.error))
                if await store.follow(each):
                    self._wake.set()
            except TreasurerError as error:
                log.warning("what follows run %s is done later: %s", each.run.id, error)

    async def _hand_over(self) -> None:
        running = list(self._running.values())
        for each in running:
            each.end(_Stop.HANDOVER)
        if running:
            await asyncio.wait([each.task for each in running])
