"""Watching runs: waits for changes, for all watchers of a process with one statement at a time.

What must hold:
  However many watch, Postgres is asked once for each look, and not at all while nobody watches.
  A watcher keeps nothing: each time it reads what is new from the table. So one that does not read costs no memory, and
      one that comes back goes on where it was.
  While Postgres is away a watcher waits.

Why Postgres is asked regularly and does not notify: `NOTIFY` takes a lock that all commits of the database share, so each
step of each run would pay for watchers that most runs do not have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from uuid import UUID

from agents.runs.events import Event, Shown, check_shown, events_after
from agents.runs.record import Mark, Run, WaitFor
from agents.runs.store import RunStore
from llm_service.errors import TreasurerError

log = logging.getLogger(__name__)

#: How often runs that are watched are looked at.
LOOK_S = 0.25
#: How many steps are read at a time, so that a watcher holds no more than these.
_STEPS = 100


@dataclass(slots=True)
class _Waiting:
    known: Mark | None
    changed: asyncio.Future[None]


@dataclass(slots=True)
class Watching:
    """Waits for changes of runs."""

    store: RunStore
    look_s: float = LOOK_S
    _waiting: dict[UUID, list[_Waiting]] = field(default_factory=dict[UUID, list[_Waiting]], init=False)
    _looking: asyncio.Task[None] | None = field(default=None, init=False)

    async def mark(self, run_id: UUID) -> Mark | None:
        """The run's mark now; None: there is no such run."""
        return (await self.store.marks([run_id])).get(run_id)

    async def changed(self, run_id: UUID, known: Mark | None, within_s: float) -> bool:
        """Wait until the run's mark is another one than `known`, for at most `within_s` seconds. Returns whether it is."""
        waiting = _Waiting(known, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(run_id, []).append(waiting)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_regularly(), name="watching runs")
        try:
            async with asyncio.timeout(within_s):
                await waiting.changed
        except TimeoutError:
            return False
        finally:
            self._waiting[run_id].remove(waiting)
            if not self._waiting[run_id]:
                del self._waiting[run_id]
        return True

    async def until_settled(self, run_id: UUID, within_s: float) -> Run:
        """The run once it has ended, or waits for something else than time or runs; or as it is after `within_s` seconds.

        Raises:
            NotFound: there is no such run. TreasuryUnavailable: Postgres is away.
        """
        until = time.monotonic() + within_s
        while True:
            mark = await self.mark(run_id)
            run = await self.store.find(run_id)
            left_s = until - time.monotonic()
            if run.state.ended or run.wait_for not in (None, WaitFor.TIME, WaitFor.RUN) or left_s <= 0:
                return run
            await self.changed(run_id, mark, left_s)

    async def has_more(self, run_id: UUID, shown: Shown) -> bool:
        """Whether there are, or may come, events after those that were shown.

        Raises:
            NotFound: there is no such run. InvalidRequest: this run's events cannot have shown that.
            TreasuryUnavailable: Postgres is away.
        """
        run = await self.store.find(run_id)
        steps = await self.store.outline(run_id, first=max(1, shown.position), most=_STEPS)
        check_shown(shown, run, steps)
        return not run.state.ended or any(True for _ in events_after(shown, run, steps))

    async def events(self, run_id: UUID, shown: Shown, *, idle_s: float) -> AsyncGenerator[list[Event], None]:
        """The run's events after those that were shown, some at a time, until the run has ended and all are shown.

        An empty list: nothing has changed for `idle_s` seconds. Ask `has_more` first, which checks what was shown.

        Raises:
            NotFound: there is no such run. TreasuryUnavailable: Postgres is away.
        """
        while True:
            mark = await self.mark(run_id)
            run = await self.store.find(run_id)
            steps = await self.store.outline(run_id, first=max(1, shown.position), most=_STEPS)
            all_steps = len(steps) < _STEPS
            events = list(events_after(shown, run, steps, all_steps=all_steps))
            if events:
                shown = events[-1].shown
                yield events
            if not all_steps:
                continue
            if run.state.ended:
                return
            if not events and not await self.changed(run_id, mark, idle_s):
                yield []

    async def _look_regularly(self) -> None:
        while self._waiting:
            await asyncio.sleep(self.look_s)
            try:
                marks = await self.store.marks(list(self._waiting))
            except TreasurerError as error:
                log.info("watched runs were not looked at: %s", error)
                continue
            for run_id, all_waiting in self._waiting.items():
                for waiting in all_waiting:
                    if waiting.known != marks.get(run_id) and not waiting.changed.done():
                        waiting.changed.set_result(None)
