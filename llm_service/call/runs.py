"""The run that pays for a call: whether the call may name it, and the windows that the run's envelope holds money in.

What must hold:
  I9  A call that names a run holds in every window of the run's envelope, besides the windows of the call's own budgets.
  Only the agent for which an envelope was opened may name it. A child run has a separate envelope, for its own agent.

An envelope's lines change only when a budget is archived, and that raises the epoch of the configuration. So they are
read once for each run and each epoch. Whether the run may spend now is decided with the hold, in the treasury.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol
from uuid import UUID

from llm_service.errors import EnvelopeClosed, EnvelopeNotYours
from llm_service.treasury.envelopes import Envelope, Line
from llm_service.types import CallContext, Principal

_CACHED = 10_000


class FindEnvelope(Protocol):
    async def __call__(self, envelope_id: UUID, /) -> Envelope | None: ...


async def no_envelopes(_envelope_id: UUID, /) -> Envelope | None:
    """Find no envelope. For a service without runs."""
    return None


class Runs:
    """The lines of the runs that calls name, cached in this process."""

    def __init__(self, find: FindEnvelope) -> None:
        self._find = find
        self._known: OrderedDict[UUID, tuple[int, Envelope]] = OrderedDict()

    async def lines(self, principal: Principal, context: CallContext) -> tuple[Line, ...]:
        """The windows of the envelope that a call names; none if it names none.

        Raises:
            EnvelopeClosed: the envelope does not exist. EnvelopeNotYours: it belongs to another agent.
            TreasuryUnavailable: Postgres is away.
        """
        if context.envelope is None:
            return ()
        envelope = await self._at(context.envelope, principal.epoch)
        if envelope.agent_id != principal.agent_id:
            raise EnvelopeNotYours(
                f"Run {envelope.id} is not one of agent {principal.agent!r}, so its calls cannot be paid from that run's "
                "envelope. Nothing was spent. Leave x-treasurer-envelope out, or start a child run for this agent.",
                param="x-treasurer-envelope",
                details={"agent": principal.agent, "run": str(envelope.id)},
            )
        return envelope.lines

    async def _at(self, envelope_id: UUID, epoch: int) -> Envelope:
        """The envelope as it was read at this epoch of the configuration."""
        known = self._known.get(envelope_id)
        if known is not None and known[0] == epoch:
            self._known.move_to_end(envelope_id)
            return known[1]
        envelope = await self._find(envelope_id)
        if envelope is None:
            raise EnvelopeClosed(
                f"There is no run {envelope_id}: nothing is held for it, so it may not spend. Open its envelope first.",
                param="x-treasurer-envelope",
                details={"run": str(envelope_id), "state": "unknown"},
            )
        self._known[envelope_id] = epoch, envelope
        self._known.move_to_end(envelope_id)
        if len(self._known) > _CACHED:
            self._known.popitem(last=False)
        return envelope
