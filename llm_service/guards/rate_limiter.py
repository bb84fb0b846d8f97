"""Rate limits: requests a minute, tokens a minute and calls in flight, all that apply to a call at once.

What must hold:
- A call takes its share of all limits that apply, or of none, in one round trip. One Lua script (`rate_limiter.lua`)
  checks every limit by Redis' clock. `token_bucket.py` explains what a bucket is, and its worst case.
- A crash leaks nothing. Buckets refill. The slots of a process that died are released by any other process (`run`)
  within 1.25 times `dead_s`, whether or not its calls are settled. In any case, each slot expires with its call.
- Rate limits fail soft (I6): while Redis is away this process applies the same rules alone, and `degraded` is true.
- No call waits for Redis for longer than `timeout_s`.
- A slot is released where it was taken, in Redis or in this process.

Redis Cluster: a script may touch keys of only one hash slot, and a call's limits may be those of its key, its team and
its model. So all keys carry one hash tag. In a cluster one shard then keeps all rate limits, and the other shards do
not help. A call and its release were measured at 30 µs of Redis' single core with one rule of three limits, and at 70
µs with four rules of eight limits. So one shard serves 14,000 to 30,000 calls a second. The client here is for one
server.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

from redis.asyncio import Redis

from llm_service.guards.local_rates import LocalLimits
from llm_service.guards.redis_scripts import Command, RedisScripts, RedisUnavailable
from llm_service.guards.token_bucket import Charge, Decision, Metric, RatePermit, charges_of, never_passes, refusal
from llm_service.types import RateLimit

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("rate_limiter.lua")


class RateLimiter:
    """Holds callers to their rate limits. Belongs to one event loop. Without Redis (`None`) the limits are not shared.

    `timeout_s` is the longest that a call waits for Redis. `on_degraded(True)` is called when limits are no longer shared
    with other processes, `on_degraded(False)` when they are shared again. A process without a heartbeat for `dead_s`
    counts as dead; `run` sends four in that time.
    """

    def __init__(
        self,
        redis: Redis | None,
        *,
        timeout_s: float = 0.25,
        prefix: str = "treasurer:{pace}:",
        on_degraded: Callable[[bool], None] | None = None,
        dead_s: float = 12.0,
    ) -> None:
        self._prefix = prefix
        self._dead_s = dead_s
        self._process = (f"{prefix}held:{secrets.token_hex(8)}", f"{prefix}processes")
        self._shared_since: float | None = None
        self._local = LocalLimits()
        self._scripts: RedisScripts | None = None
        if redis is not None:
            on_away = on_degraded or _ignore
            self._scripts = RedisScripts(
                redis, _SCRIPT, probe_key=f"{prefix}probe", timeout_s=timeout_s, on_away=on_away
            )

    @property
    def degraded(self) -> bool:
        """Whether Redis is configured, but away."""
        return self._scripts is not None and self._scripts.away

    async def acquire(
        self, call_id: UUID, limits: Sequence[RateLimit], model: str, tokens: int, lifetime_s: float
    ) -> RatePermit:
        """Take one request, `tokens` and a slot from every limit that applies to `model`, or nothing.

        A slot belongs to its call: if the same `call_id` takes it again, it counts once, and lives for `lifetime_s` from
        then. Requests and tokens count each time.

        Raises:
            RateLimited: it names the limit with the longest wait, or one that the call can never pass.
        """
        charges = charges_of(self._prefix, limits, model, tokens) if limits else ()
        if not charges:
            return RatePermit(call_id, (), (), 0, local=True)
        impossible = never_passes(charges)
        if impossible is not None:
            raise impossible
        local = self._scripts is None or self._scripts.away
        decision = None if local else await self._shared(call_id, charges, lifetime_s)
        if decision is None:
            local = True
            decision = self._local.acquire(call_id, charges, lifetime_s)
        if not decision.admitted:
            raise refusal(charges, decision)
        expires_ms = decision.now_ms + math.ceil(lifetime_s * 1_000)
        return RatePermit(call_id, charges, decision.levels, expires_ms, local)

    async def _shared(self, call_id: UUID, charges: Sequence[Charge], lifetime_s: float) -> Decision | None:
        """The decision by Redis; None: Redis is away."""
        assert self._scripts is not None
        try:
            answer = await self._scripts.run(self._acquisition(call_id, charges, lifetime_s))
        except RedisUnavailable:
            return None
        admitted, now_ms, orphans_ms, *levels = (int(number) for number in answer.split())
        return Decision(admitted=admitted == 1, now_ms=now_ms, levels=tuple(levels), orphans_ms=orphans_ms)

    def release(self, permit: RatePermit, tokens: int | None) -> None:
        """Give the slot back and correct the tokens to what was used (None: leave them as held). Never raises.

        Returns at once; the release goes to Redis with the next round trip. A second release does nothing.
        """
        if permit.released:
            return
        permit.released = True
        if not permit.charges:
            return
        changes = permit.returns(tokens)
        if permit.local or self._scripts is None:
            self._local.release(permit, tokens)
        elif changes:
            self._scripts.post(self._release(permit, changes))

    async def run(self) -> None:
        """Send heartbeats, so that this process keeps its slots, and release the slots of dead processes; forever."""
        while True:
            await self.beat()
            await asyncio.sleep(self._dead_s / 4)

    async def beat(self) -> int:
        """Send one heartbeat. Returns how many slots of dead processes were released.

        For `dead_s` after Redis was away no slots are released, because living processes may not have reconnected yet.
        """
        if self._scripts is None:
            return 0
        now = time.monotonic()
        sure = self._shared_since is not None and now - self._shared_since > self._dead_s
        command = Command(self._process, ("beat", "1" if sure else "0", "", "", _milliseconds(self._dead_s)))
        try:
            given_back = int(await self._scripts.run(command))
        except RedisUnavailable:
            self._shared_since = None
            return 0
        if self._shared_since is None:
            self._shared_since = now
        if given_back:
            log.warning("released %d slots of calls in flight that dead processes had left", given_back)
        return given_back

    async def drain(self) -> None:
        """Wait until Redis has got every release, or is away."""
        if self._scripts is not None:
            await self._scripts.drain()

    async def close(self) -> None:
        """Drain, release the slots that this process still holds, and stop probing Redis. Close the client afterwards."""
        if self._scripts is not None:
            if self._shared_since is not None and not self._scripts.away:
                self._scripts.post(Command(self._process, ("leave", "", "", "")))
            await self._scripts.close()

    def _acquisition(self, call_id: UUID, charges: Sequence[Charge], lifetime_s: float) -> Command:
        call = str(call_id)
        slots = [(charge, 0) for charge in charges if charge.metric is Metric.CONCURRENT]
        # If no answer comes, the call may have been admitted. Then its slot is released without a check of its expiry.
        # Its tokens refill within a minute.
        undo = self._command("release", call, "", slots) if slots else None
        amounts = [(charge, charge.amount) for charge in charges]
        return self._command("acquire", call, _milliseconds(lifetime_s), amounts, undo)

    def _release(self, permit: RatePermit, changes: Sequence[tuple[Charge, int]]) -> Command:
        call, expiry = str(permit.call_id), str(permit.slot_expires_ms)
        slots = [change for change in changes if change[0].metric is Metric.CONCURRENT]
        # If no answer comes, the release may have happened. It is harmless to release slots twice, but not to correct
        # tokens twice, so only the slots are released again.
        undo = self._command("release", call, expiry, slots) if slots else None
        return self._command("release", call, expiry, changes, undo)

    def _command(
        self, action: str, call: str, third: str, changes: Sequence[tuple[Charge, int]], undo: Command | None = None
    ) -> Command:
        keys = tuple(charge.key for charge, _ in changes)
        if any(charge.metric is Metric.CONCURRENT for charge, _ in changes):
            keys += self._process
        amounts = " ".join(f"{charge.metric} {charge.limit} {amount}" for charge, amount in changes)
        return Command(keys, (action, call, third, amounts, _milliseconds(self._dead_s)), undo)


def _milliseconds(seconds: float) -> str:
    return str(math.ceil(seconds * 1_000))


def _ignore(_: bool) -> None:
    """The default of `on_degraded`: does nothing."""
