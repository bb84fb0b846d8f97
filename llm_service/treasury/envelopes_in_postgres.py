"""Envelopes in Postgres: runs that arrive together are changed with one round trip.

What must hold:
  I9  The reserve of a run is decided in the groups of calls (`in_postgres.py`), so the same SQL decides both.
  An envelope that may have been opened but was not returned (the answer was lost, or the caller left) stays. The run gets
      it if it opens its envelope again; otherwise the envelope expires.

`Envelopes` says what each operation does. The SQL is in `sql/functions/`: 25_admit_v5.sql and 50_envelopes.sql.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import UUID

from llm_service.errors import DatabaseLocked
from llm_service.treasury import envelopes
from llm_service.treasury.batch import GroupCommit
from llm_service.treasury.connection import LOCKED_PATIENCE_S, LOCKED_PAUSE_S, Connection, within_locks
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.treasury.envelopes import ChildOpening, Envelope, Opening
from llm_service.treasury.statements import (
    CLOSE_EXPIRED,
    FIND,
    MOVE,
    Move,
    Reserve,
    ReserveHeld,
    RunExists,
    RunLocked,
    move_arrays,
    moved,
    read_envelope,
)
from llm_service.types import Hold

#: These moves release money to windows, which admission locks for every call. A short wait gathers more of them into one
#: group.
_ENDS = frozenset({"suspend", "close"})
_END_LINGER_S = 0.01


class PostgresEnvelopes:
    """`Envelopes` in Postgres, on a connection that is opened when it is first needed.

    `reserve` asks for a run's reserve, in one group with calls; `freed` is called after money was released.
    """

    def __init__(
        self,
        database_url: str,
        *,
        reserve: Callable[[Reserve], Awaitable[Hold | Denial]],
        freed: Callable[[], None],
        observe: Callable[[str, int, float], None],
    ) -> None:
        self._connection = Connection(database_url, name="envelopes")
        self._reserve = reserve
        self._freed = freed
        self._turn = asyncio.Lock()  # one statement runs at a time on a connection
        observed = partial(observe, "envelope")
        self._moves: GroupCommit[Move, Envelope] = GroupCommit(self._move_group, observe=observed)
        self._ends: GroupCommit[Move, Envelope] = GroupCommit(
            self._move_group, linger_s=_END_LINGER_S, observe=observed
        )
        self._finds: GroupCommit[UUID, Envelope | None] = GroupCommit(self._find_group)

    async def open(self, opening: Opening) -> Envelope | Denial:
        """Hold a run's reserve in every window of `opening.lines`, or in none."""
        try:
            held = await self._reserve(Reserve.opening(opening))
        except RunExists:
            envelope = await self._found(opening.id)
            if not envelopes.same_opening(envelope, opening):
                raise envelopes.conflict(opening.id) from None
            return envelope
        if isinstance(held, Denial):
            return held
        assert isinstance(held, ReserveHeld)
        assert held.expires_at is not None
        return envelopes.new_envelope(opening, held.expires_at, lines=opening.lines, free_nano=held.amount_nano)

    async def open_child(self, child: ChildOpening) -> Envelope:
        """Give a child part of its parent's money."""
        return await self._move(Move("child", child.id, child.lifetime_s, child.budget_nano, child))

    async def suspend(self, envelope_id: UUID, *, lifetime_s: float | None = None) -> Envelope:
        """The run waits: the money that it holds is released."""
        return await self._move(_move("suspend", envelope_id, lifetime_s))

    async def resume(self, envelope_id: UUID, *, lifetime_s: float | None = None) -> Envelope | Denial:
        """The run continues: hold its reserve again, or the rest of its budget."""
        move = _move("resume", envelope_id, lifetime_s)
        envelope = await self._found(envelope_id)
        if envelope.parent_id is not None:
            return await self._move(move)
        try:
            held = await self._reserve(Reserve.resuming(envelope, lifetime_s))
        except RunExists:
            return await (
                self._found(envelope_id) if lifetime_s is None else self._move(_move("extend", envelope_id, lifetime_s))
            )
        if isinstance(held, Hold):
            return await self._found(envelope_id)
        if held.kind is DenialKind.ENVELOPE_CLOSED:
            raise envelopes.closed(envelope_id)
        return held

    async def extend(self, envelope_id: UUID, lifetime_s: float) -> Envelope:
        """Let the envelope live for `lifetime_s` seconds from now."""
        return await self._move(_move("extend", envelope_id, lifetime_s))

    async def change_budget(self, envelope_id: UUID, budget_nano: int) -> Envelope:
        """Change how much the run may spend in total."""
        envelopes.check_budget(budget_nano)
        return await self._move(Move("budget", envelope_id, budget_nano=budget_nano))

    async def close(self, envelope_id: UUID) -> Envelope:
        """The run is over: the money that it holds is released."""
        return await self._move(Move("close", envelope_id))

    async def close_expired(self, limit: int = 500) -> int:
        """Close up to `limit` envelopes whose lifetime is over."""
        async with self._turn:
            rows = await self._connection.fetch(CLOSE_EXPIRED, limit)
        if closed := int(rows[0]["closed"]):
            self._freed()
        return closed

    async def find(self, envelope_id: UUID) -> Envelope | None:
        """An envelope as it is now."""
        return await self._finds.submit(envelope_id)

    async def disconnect(self) -> None:
        """Close the connection. A later operation opens it again."""
        await self._connection.close()

    async def _found(self, envelope_id: UUID) -> Envelope:
        envelope = await self.find(envelope_id)
        if envelope is None:
            raise envelopes.unknown(envelope_id)
        return envelope

    async def _move(self, move: Move) -> Envelope:
        deadline = time.monotonic() + LOCKED_PATIENCE_S
        while True:
            try:
                return await (self._ends if move.kind in _ENDS else self._moves).submit(move)
            except RunLocked:
                if time.monotonic() > deadline:
                    raise DatabaseLocked(
                        f"Run {move.id} is locked by another transaction in the treasury's database (an open session? see "
                        "pg_stat_activity). Nothing was changed. Try again in a moment.",
                        retry_after=1,
                    ) from None
            await asyncio.sleep(LOCKED_PAUSE_S)

    async def _move_group(self, group: Sequence[Move]) -> list[Envelope | Exception]:
        arguments = (*move_arrays(group), envelopes.MAX_DEPTH, envelopes.MAX_CHILDREN)
        async with self._turn:
            rows = await within_locks(self._connection, MOVE, arguments, False)
        if any(move.kind in _ENDS for move in group):
            self._freed()
        return [moved(move, row) for move, row in zip(group, rows, strict=True)]

    async def _find_group(self, group: Sequence[UUID]) -> list[Envelope | Exception | None]:
        async with self._turn:
            rows = await self._connection.fetch(FIND, list(set(group)))
        found = {row["id"]: read_envelope(row) for row in rows}
        return [found.get(envelope_id) for envelope_id in group]


def _move(kind: str, envelope_id: UUID, lifetime_s: float | None) -> Move:
    if lifetime_s is not None:
        envelopes.check_lifetime(lifetime_s)
    return Move(kind, envelope_id, lifetime_s)
