"""The sweeper: settles holds whose owner is gone, from the proxy's witness or, without one, by the agent's policy.

What must hold:
  I2  Every hold ends within its lifetime plus one sweep, whatever crashed.
  I2  If the proxy has seen the end of the answer, the hold ends within seconds. An owner that has not settled it by
      then counts as gone. If the owner is only late, its settlement changes nothing, or is a correction.
  I2  Two simultaneous sweepers, or a sweeper and a late owner, do no harm, because only one settlement of an attempt
      counts.
  I2  A hold is settled at the rates from which it was computed.
  I2  A settled amount is never too large for the ledger.
  I9  An envelope whose lifetime is over is closed within one sweep, so that the money of a dead run is free again.
  I1  Without a witness of an answer the whole hold is posted, unless the agent's policy is to void it. So money that a
      provider may bill is never released for other calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from llm_service.errors import TreasuryUnavailable
from llm_service.money import MAX_COST_NANO
from llm_service.postgres import fetch
from llm_service.pricing.belief import believed
from llm_service.pricing.rates import FREE, Rates, cost_at, most_beyond
from llm_service.pricing.stored_rates import load_rates
from llm_service.treasury.envelopes import Envelopes
from llm_service.treasury.queries import load_query
from llm_service.treasury.treasury import Treasury
from llm_service.types import CostSource, ExpiryPolicy, LedgerState, Settlement, Usage, UsageSource
from llm_service.usage import UNREAD, most_used, total
from llm_service.witness import COLUMNS, Witness, read_witness

log = logging.getLogger(__name__)

_WITNESSES = load_query("sweep/witnesses", columns=COLUMNS)
_HOLDS = load_query("sweep/holds", witnesses=_WITNESSES)
_EXPIRED = load_query("sweep/expired", holds=_HOLDS)
_ABANDONED = load_query("sweep/abandoned", holds=_HOLDS)
_LATE = load_query("sweep/late", witnesses=_WITNESSES)
_ONE = load_query("sweep/one", holds=_HOLDS)

_SETTLE_WAIT_S = 10.0
#: How many envelopes are closed in one transaction, which locks their windows.
_RUNS_AT_ONCE = 100
#: A hold counts as abandoned after this time: an owner normally settles within milliseconds of the answer's end.
_ABANDONED_AFTER = timedelta(seconds=10)
#: The sources of a cost, the most doubtful first. A sum of several costs has the most doubtful of their sources.
_DOUBTFUL = (CostSource.HOLD, CostSource.ESTIMATE, CostSource.UPSTREAM, CostSource.RATES, CostSource.PROVIDER)

#: (model, deployment, usage, service tier) → nano-dollars; None: the catalogue does not have the model any more.
Price = Callable[[str, str | None, Usage, str | None], int | None]


@dataclass(frozen=True, slots=True)
class OrphanHold:
    """A hold that its owner will not settle."""

    call_id: UUID
    attempt: int
    model: str
    amount_nano: int
    policy: ExpiryPolicy
    expired: bool
    witnesses: tuple[Witness, ...]
    #: The rates from which the hold was computed, by deployment; None: an older version of Treasurer made the hold.
    rates: Mapping[str, Rates] | None = None


def settlement_for(hold: OrphanHold, price: Price, *, answered: bool = False) -> Settlement | None:
    """How a hold ends: by its witnesses or, if they prove nothing and the hold has expired, by the agent's policy.
    Pure.

    None: the hold does not end yet.

    - The costs of all witnessed answers are added up, because a retry by the router may have been billed as well. For
      an answer that was cut, a margin is added.
    - A witness without any input tokens proves nothing: the provider reported no usage, or the stream was cut before it
      began.
    - If the provider had sent more of a stream than was read, the whole hold is posted (I1), because the unseen part
      may have cost all of it.
    - A failure proves that nothing was bought only if its cost is zero and no retry can still be running, because the
      hold has expired or the proxy has `answered`.
    """
    proof = [witness for witness in hold.witnesses if witness.usage.input_tokens > 0 or witness.unread]
    if proof:
        return _posted(hold, proof, price)
    proof = [witness for witness in hold.witnesses if witness.outcome == "failure" and witness.cost_nano == 0]
    if proof and len(proof) == len(hold.witnesses) and (hold.expired or answered):
        return Settlement(
            hold.call_id,
            hold.attempt,
            LedgerState.VOIDED,
            0,
            usage_source=UsageSource.WITNESS,
            provider=proof[-1].provider,
            deployment=proof[-1].deployment,
            status=proof[-1].status,
            error_code="upstream_error",
        )
    if not hold.expired:
        return None
    return _expired(hold.call_id, hold.attempt, hold.amount_nano if hold.policy is ExpiryPolicy.POST else None)


def _expired(call_id: UUID, attempt: int, posted_nano: int | None) -> Settlement:
    """The end of a hold if nothing shows what was bought: all of it is posted, or (None) nothing."""
    posts = posted_nano is not None
    return Settlement(
        call_id,
        attempt,
        LedgerState.EXPIRED,
        posted_nano or 0,
        usage_source=UsageSource.HOLD if posts else UsageSource.NONE,
        error_code="expired",
        cost_source=CostSource.HOLD if posts else None,
    )


def _posted(hold: OrphanHold, proof: Sequence[Witness], price: Price) -> Settlement:
    costs = [_cost_of(hold, witness, price) for witness in proof]
    reported = [witness.cost_nano for witness in proof if witness.cost_nano is not None]
    last = proof[-1]
    return Settlement(
        hold.call_id,
        hold.attempt,
        LedgerState.POSTED,
        min(sum(cost_nano for cost_nano, _ in costs), MAX_COST_NANO),
        usage=total([_used(hold, witness) for witness in proof]),
        usage_source=UsageSource.WITNESS,
        proxy_cost_nano=min(sum(reported), MAX_COST_NANO) if reported else None,
        provider=last.provider,
        deployment=last.deployment,
        status=last.status,
        error_code=_certainty(proof),
        service_tier=last.service_tier,
        cost_source=min((source for _, source in costs), key=_DOUBTFUL.index),
    )


def _cost_of(hold: OrphanHold, witness: Witness, price: Price) -> tuple[int, CostSource]:
    """The cost of a witnessed answer, in nano-dollars, at the rates of its hold, and the source of that figure.

    The hold's own rates are used even if this process has read others. If the provider had sent more than was read, the
    answer costs all of the hold.
    """
    if witness.unread:
        return hold.amount_nano, CostSource.HOLD
    used, theirs = _used(hold, witness), witness.cost_nano
    if hold.rates:
        served = None if witness.started_at is None else (witness.started_at, witness.ended_at)
        ours = cost_at(hold.rates, witness.deployment, used, witness.service_tier, served)
    else:
        ours = price(hold.model, witness.deployment, used, witness.service_tier)
    if ours is None and witness.named_cost_nano is None:
        if theirs is None:
            return hold.amount_nano, CostSource.HOLD
        return (theirs, CostSource.UPSTREAM) if witness.exact else (min(theirs, hold.amount_nano), CostSource.ESTIMATE)
    if not witness.exact:
        return min(ours or 0, hold.amount_nano), CostSource.ESTIMATE
    free = bool(hold.rates) and all(rates == FREE for rates in hold.rates.values())
    return believed(named_nano=witness.named_cost_nano, own_nano=ours or 0, upstream_nano=theirs, free=free)


def _certainty(proof: Sequence[Witness]) -> str:
    if any(witness.unread for witness in proof):
        return UNREAD
    return "owner_lost" if all(witness.exact for witness in proof) else "owner_lost_estimated"


def _used(hold: OrphanHold, witness: Witness) -> Usage:
    """The usage that the provider reported. Without a report, it is LiteLLM's count with a margin, plus the most that
    the model may have used unasked (searches, …), because no count shows that.
    """
    if witness.exact:
        return witness.usage
    counted = most_used(witness.usage)
    beyond = most_beyond(hold.rates.values() if hold.rates else ())
    return replace(
        counted,
        searches=beyond.searches,
        citation_tokens=beyond.citation_tokens,
        output_tokens=counted.output_tokens + beyond.reasoning_tokens,
        reasoning_tokens=beyond.reasoning_tokens,
    )


class Sweeper:
    """Looks for expired holds every `interval_s` seconds, and for the witness of a call whose answer was lost."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        treasury: Treasury,
        price: Price,
        *,
        interval_s: float = 5.0,
        observe: Callable[[int, int], None] | None = None,
        envelopes: Envelopes | None = None,
    ) -> None:
        self._pool = pool
        self._treasury = treasury
        self._price = price
        self._interval_s = interval_s
        self._observe = observe
        self._envelopes = envelopes
        self._watches: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Sweep every `interval_s` seconds, forever. While Postgres is away, sweeps are postponed."""
        while True:
            try:
                while await self.sweep() >= 500:
                    pass
                await self.close_runs()
            except TreasuryUnavailable as error:
                log.warning("the sweep was put off: %s", error)
            except Exception:
                log.exception("a sweep failed; the next one will try again")
            await asyncio.sleep(self._interval_s)

    async def sweep(self, limit: int = 500) -> int:
        """Settle expired holds, and holds whose answer the proxy has seen to its end; correct entries by late
        witnesses.

        Each of the three is done for up to `limit` attempts. Returns how many attempts have changed.

        Raises:
            TreasuryUnavailable: Postgres is away.
        """
        rows = [
            *await self._fetch(_EXPIRED, limit),
            *await self._fetch(_ABANDONED, limit, _ABANDONED_AFTER),
            *await self._fetch(_LATE, limit),
        ]
        found = [settlement for row in rows if (settlement := self._end_of(row)) is not None]
        # A settlement that Postgres refuses (its error is logged) must not stop the others. The same holds if another
        # transaction has locked a window: that settlement is repeated in the background, while the next sweep looks for
        # others.
        written = [self._treasury.settle_soon(settlement) for settlement in found]
        if written:
            await asyncio.wait(written, timeout=_SETTLE_WAIT_S)
        settlements = [one for one, done in zip(found, written, strict=True) if _changed(done)]
        if settlements:
            witnessed = sum(s.usage_source is UsageSource.WITNESS for s in settlements)
            log.warning("swept %d expired holds, %d of them settled from a witness", len(settlements), witnessed)
            if self._observe is not None:
                self._observe(len(settlements), witnessed)
        return len(settlements)

    async def close_runs(self) -> int:
        """Close the envelopes whose lifetime is over, because their runs' owners are gone. Returns their number.

        Raises:
            TreasuryUnavailable: Postgres is away.
        """
        if self._envelopes is None:
            return 0
        total = closed = await self._envelopes.close_expired(_RUNS_AT_ONCE)
        while closed == _RUNS_AT_ONCE:
            total += (closed := await self._envelopes.close_expired(_RUNS_AT_ONCE))
        if total:
            log.warning("closed %d expired envelopes; the money that they held is free again", total)
        return total

    def _end_of(self, row: asyncpg.Record) -> Settlement | None:
        """How a hold ends. If its cost cannot be computed, all of the hold is posted, so that it does not stop the others."""
        try:
            return settlement_for(_orphan(row), self._price)
        except Exception:
            log.exception("the hold of call %s cannot be priced", row["call_id"])
        return _expired(row["call_id"], row["attempt"], row["amount_nano"]) if row["expired"] else None

    async def witnessed(self, call_id: UUID, attempt: int, wait_s: float) -> Settlement | None:
        """How the witness of an attempt would settle its hold. It shows the part that the proxy saw of an abandoned
        answer.

        Waits up to `wait_s` seconds for the witness. None: no witness has come by then, or Postgres is away.
        """
        deadline = asyncio.get_running_loop().time() + wait_s
        pause_s = 0.1
        while True:
            try:
                rows = await self._fetch(_ONE, call_id, attempt)
            except TreasuryUnavailable:
                return None
            settlement = settlement_for(replace(_orphan(rows[0]), expired=False), self._price) if rows else None
            if settlement is not None or not rows or asyncio.get_running_loop().time() > deadline:
                return settlement
            await asyncio.sleep(pause_s)
            pause_s *= 1.5

    def watch(self, call_id: UUID, attempt: int, lifetime_s: float, *, answered: bool = False) -> None:
        """Look for the witness of one hold until the hold's lifetime ends, and settle the hold as soon as there is one.

        `answered`: the proxy has answered, with an error that does not say whether anything was billed.
        """
        task = asyncio.create_task(self._watch(call_id, attempt, lifetime_s, answered))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def close(self) -> None:
        """Stop watching. A later sweep settles what is left."""
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    async def _watch(self, call_id: UUID, attempt: int, lifetime_s: float, answered: bool) -> None:
        pause_s, waited_s = 0.5, 0.0
        while waited_s < lifetime_s:
            await asyncio.sleep(pause_s)
            waited_s += pause_s
            pause_s = min(pause_s * 2, 10.0)
            try:
                rows = await self._fetch(_ONE, call_id, attempt)
            except TreasuryUnavailable:
                continue
            if not rows:
                return
            settlement = settlement_for(_orphan(rows[0]), self._price, answered=answered)
            if settlement is not None:
                await self._treasury.settle_soon(settlement)
                return

    async def _fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        return await fetch(self._pool, statement, *arguments, timeout_s=10)


def _changed(written: asyncio.Future[str]) -> bool:
    return written.done() and written.exception() is None and written.result() in ("settled", "adjusted")


def _orphan(row: asyncpg.Record) -> OrphanHold:
    witnesses = [read_witness(fields) for fields in orjson.loads(row["witnesses"] or "[]")]
    return OrphanHold(
        row["call_id"],
        row["attempt"],
        row["model"],
        row["amount_nano"],
        ExpiryPolicy(row["expiry_policy"]),
        row["expired"],
        tuple(witnesses),
        None if row["rates"] is None else load_rates(row["rates"]),
    )
