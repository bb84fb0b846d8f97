"""The money of a run, for the code that starts runs: its envelope is opened before the first step, or resumed.

What must hold:
  I9  A run starts only if its reserve is held. Otherwise it is refused with the error that a call would get.
  If calls in flight hold the money, a run waits for it, as a call does. If the money is spent, it is refused at once.
  If the configuration has changed since the principal of a run was read, the principal is read again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from llm_service.call.refusals import check_spends, refusal
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.treasury.envelopes import Envelope, Envelopes, Opening, opening_lines
from llm_service.types import CallContext, Principal

_PAUSE_S = 0.25


class PrincipalSource(Protocol):
    """Reads principals."""

    async def by_agent(self, name: str) -> Principal: ...
    async def renew(self, principal: Principal) -> Principal: ...


class RunMoney:
    """Opens and resumes envelopes for agents of this process.

    `freed(seconds)` waits until money is released, for at most `seconds`. A run waits for that for up to `busy_wait_s`.
    """

    def __init__(
        self,
        envelopes: Envelopes,
        principals: PrincipalSource,
        *,
        freed: Callable[[float], Awaitable[None]],
        busy_wait_s: float = 2.0,
    ) -> None:
        self.envelopes = envelopes
        self._principals = principals
        self._freed = freed
        self._busy_wait_s = busy_wait_s

    async def open(
        self, run_id: UUID, agent: str, context: CallContext, budget_nano: int, reserve_nano: int, lifetime_s: float
    ) -> Envelope:
        """Open the envelope of a run. A run that was opened before gets its envelope as it is now.

        Raises:
            BudgetExhausted, BudgetTooSmall, BudgetBusy, BudgetPaced …: the reserve cannot be held.
            InvalidRequest: no run can have this budget or reserve. EnvelopeConflict: the id is another run's.
            Paused: the agent may not spend. NotFound: the agent does not exist. TreasuryUnavailable: Postgres is away.
        """
        principal = await self._principals.by_agent(agent)

        async def ask() -> Envelope | Denial:
            nonlocal principal
            while True:
                check_spends(principal)
                lines = opening_lines(principal, context)
                opening = Opening(run_id, principal, context, budget_nano, reserve_nano, lifetime_s, lines)
                try:
                    return await self.envelopes.open(opening)
                except StaleEpoch:
                    principal = await self._principals.renew(principal)

        outcome = await self._waiting(ask)
        if isinstance(outcome, Denial):
            raise refusal(principal, outcome, reserve_nano, datetime.now(UTC), asker="run")
        return outcome

    async def resume(self, run_id: UUID, agent: str, *, lifetime_s: float | None = None) -> Envelope:
        """Let a run that has waited continue.

        Raises:
            As `open` does, and EnvelopeClosed: the run is over.
        """
        principal = await self._principals.by_agent(agent)
        check_spends(principal)
        outcome = await self._waiting(lambda: self.envelopes.resume(run_id, lifetime_s=lifetime_s))
        if isinstance(outcome, Denial):
            run = await self.envelopes.find(run_id)
            wanted = 0 if run is None else min(run.reserve_nano, run.left_nano)
            raise refusal(principal, outcome, wanted, datetime.now(UTC), asker="run")
        return outcome

    async def _waiting(self, ask: Callable[[], Awaitable[Envelope | Denial]]) -> Envelope | Denial:
        deadline = time.monotonic() + self._busy_wait_s
        while True:
            outcome = await ask()
            left_s = deadline - time.monotonic()
            if isinstance(outcome, Envelope) or outcome.kind is not DenialKind.BUSY or left_s <= 0:
                return outcome
            await self._freed(min(left_s, _PAUSE_S))
