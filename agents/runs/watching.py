"""Watching runs: waits for changes, for all watchers of a process with one statement at a time.

What must hold:
  However many watch, Postgres is asked once for each look, and Redis once for new text, and neither while nobody watches.
  A watcher keeps nothing: each time it reads what is new from the table. So one that does not read costs no memory, and
      one that comes back goes on where it was.
  While Postgres is away a watcher waits. While Redis is away it sees a text when its step is done.

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

from agents.runs.events import (
    MOST_TEXT,
    AnotherText,
    Event,
    Shown,
    check_shown,
    events_after,
    is_ahead,
    live_text,
    rest_of,
    text_due,
)
from agents.runs.record import Mark, Run
from agents.runs.step_text import WATCHED_S, LiveText, NoLiveText
from agents.runs.store import RunStore
from llm_service.errors import TreasurerError
from llm_service.ids import new_call_id

log = logging.getLogger(__name__)

#: How often runs that are watched are looked at.
LOOK_S = 0.25
#: How often Redis is asked for new text.
LIVE_S = 0.1
#: How many steps are read at a time, so that a watcher holds no more than these.
_STEPS = 100


@dataclass(slots=True)
class _Waiting:
    """A watcher that waits until its run's mark, or the id of the last piece of its text, is another one than it knows. Without
    an id it does not wait for text."""

    known: Mark | None
    woken: asyncio.Future[bool]  # its result: whether the run has changed, and not only its text
    head: str | None = None


@dataclass(slots=True)
class Watching:
    """Waits for changes of runs."""

    store: RunStore
    live: LiveText = field(default_factory=NoLiveText)
    look_s: float = LOOK_S
    live_s: float = LIVE_S
    _waiting: dict[UUID, list[_Waiting]] = field(default_factory=dict[UUID, list[_Waiting]], init=False)
    _looking: asyncio.Task[None] | None = field(default=None, init=False)
    _listening: asyncio.Task[None] | None = field(default=None, init=False)
    _watched_at: dict[UUID, float] = field(default_factory=dict[UUID, float], init=False)

    async def mark(self, run_id: UUID) -> Mark | None:
        """The run's mark now; None: there is no such run."""
        return (await self.store.marks([run_id])).get(run_id)

    async def changed(self, run_id: UUID, known: Mark | None, within_s: float) -> bool:
        """Wait until the run's mark is another one than `known`, for at most `within_s` seconds. Returns whether it is."""
        return await self._woken(run_id, known, None, within_s) is not None

    async def _woken(self, run_id: UUID, known: Mark | None, head: str | None, within_s: float) -> bool | None:
        """Wait as `_Waiting` says. Returns whether the run has changed, and not only its text; None: neither has."""
        waiting = _Waiting(known, asyncio.get_running_loop().create_future(), head)
        self._waiting.setdefault(run_id, []).append(waiting)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_regularly(), name="watching runs")
        if head is not None and (self._listening is None or self._listening.done()):
            self._listening = asyncio.create_task(self._listen_regularly(), name="watching the text of runs")
        try:
            async with asyncio.timeout(within_s):
                return await waiting.woken
        except TimeoutError:
            return None
        finally:
            self._waiting[run_id].remove(waiting)
            if not self._waiting[run_id]:
                del self._waiting[run_id]

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
            if run.state.ended or (run.wait_for is not None and not run.wait_for.is_short) or left_s <= 0:
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
        read, comes_back = "0", shown.text_chars > 0
        while True:
            mark = await self.mark(run_id)
            events, ended = await self._recorded(run_id, shown)
            if events:
                shown = events[-1].shown
                yield events
                continue
            if ended:
                return
            changed = False
            while not changed:
                woken = await self._woken(run_id, mark, read, idle_s)
                if woken is None:
                    yield []
                    continue
                changed = woken
                if changed:
                    continue
                last, pieces = await self.live.read(run_id, read)
                if any(is_ahead(shown, piece) for piece in pieces) and mark != await self.mark(run_id):
                    break
                read = last
                if comes_back:
                    try:
                        rest = rest_of(shown, pieces)
                    except AnotherText:
                        read, comes_back = "0", False
                        continue
                    comes_back, pieces = rest is None, rest or []
                events = list(live_text(shown, pieces))
                if events:
                    shown = events[-1].shown
                    yield events

    async def expected(self) -> UUID:
        """The id of a run that is to be started and will be watched, so that its text is sent from its first step on."""
        run_id = new_call_id()
        await self.live.watch([run_id])
        return run_id

    async def _recorded(self, run_id: UUID, shown: Shown) -> tuple[list[Event], bool]:
        """The events for what is recorded, up to as much text as an event has at most, and whether the run has ended and no more
        follow."""
        run = await self.store.find(run_id)
        steps = await self.store.outline(run_id, first=max(1, shown.position), most=_STEPS)
        all_steps, chars = len(steps) < _STEPS, 0
        events: list[Event] = []
        while (due := text_due(shown, steps)) is not None:
            first, steps = steps[: due + 1], steps[due + 1 :]
            text = await self.store.text(run_id, first[-1].head.position)
            events += events_after(shown, run, first, all_steps=False, text=text)
            shown = events[-1].shown
            chars += len(text or "")
            if chars >= MOST_TEXT:  # what is left of this text, or the next one, is read with the next look
                return events, False
        events += events_after(shown, run, steps, all_steps=all_steps)
        return events, run.state.ended and not events and all_steps

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
                    if waiting.known != marks.get(run_id) and not waiting.woken.done():
                        waiting.woken.set_result(True)

    async def _listen_regularly(self) -> None:
        while run_ids := [
            run_id for run_id, all_waiting in self._waiting.items() if any(each.head for each in all_waiting)
        ]:
            await self._say_watched(run_ids)
            heads = await self.live.heads(run_ids)
            for run_id, head in heads.items():
                for waiting in self._waiting.get(run_id, ()):
                    if waiting.head not in (None, head) and not waiting.woken.done():
                        waiting.woken.set_result(False)
            await asyncio.sleep(self.live_s)

    async def _say_watched(self, run_ids: list[UUID]) -> None:
        """Say again what is watched, in time before it counts as not watched."""
        now = time.monotonic()
        again = [run_id for run_id in run_ids if now - self._watched_at.get(run_id, float("-inf")) > WATCHED_S / 3]
        if again:
            await self.live.watch(again)
            self._watched_at = {run_id: at for run_id, at in self._watched_at.items() if now - at < WATCHED_S}
            self._watched_at |= dict.fromkeys(again, now)
