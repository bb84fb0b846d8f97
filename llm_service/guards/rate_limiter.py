"""Rate limits: requests a minute, tokens a minute and calls in flight, all that apply to a call at once.

What must hold:
- All or nothing in one round trip: one Lua script (`rate_limiter.lua`) checks every limit by Redis' clock
  and takes from all of them, or from none. `token_bucket.py` says what a bucket is and its worst case.
- A crash leaks nothing: buckets refill, and the slots of a process that is dead are given back within
  `dead_s` and a quarter, whoever settles its calls, by any other process (`run`). A slot expires with its call anyway.
- Pace fails soft (I6): with Redis away the same rules are kept in this process, `degraded` says so,
  and no call waits for longer than `timeout_s` for it. Slots taken on one side are given back there.

Redis Cluster: one script may touch keys of one hash slot only, and a call's limits range from its key
to its model, so all keys carry one hash tag. In a cluster one shard then keeps all rate limits, and the
others do not help: measured, a call with its release is 30 µs of Redis' one core with one rule of
three limits, 70 µs with four rules of eight, so 14,000 to 30,000 calls a second. The client here is for one server.
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
    """Holds callers to their rate limits. Belongs to one event loop; with `None` for Redis the limits are this process's own.

    `timeout_s` is the longest that a call waits for Redis. `on_degraded(True)` is called when
    limits fall back to the process, `on_degraded(False)` when they are shared again. A process that has not beaten
    for `dead_s` is dead: `run` beats four times in that.
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
        """Whether Redis should be used and is away."""
        return self._scripts is not None and self._scripts.away

    async def acquire(
        self, call_id: UUID, limits: Sequence[RateLimit], model: str, tokens: int, lifetime_s: float
    ) -> RatePermit:
        """Take one request, `tokens` and a slot from every limit that applies to `model`, or nothing.

        The slot is the call's: taken again by the same `call_id` it counts once, and lives
        `lifetime_s` from now. Requests and tokens count each time.

        Raises:
            RateLimited: names the limit that takes longest to wait for, or one that the call can never pass.
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
        """Redis' decision, or None when it is away."""
        assert self._scripts is not None
        try:
            answer = await self._scripts.run(self._acquisition(call_id, charges, lifetime_s))
        except RedisUnavailable:
            return None
        admitted, now_ms, orphans_ms, *levels = (int(number) for number in answer.split())
        return Decision(admitted=admitted == 1, now_ms=now_ms, levels=tuple(levels), orphans_ms=orphans_ms)

    def release(self, permit: RatePermit, tokens: int | None) -> None:
        """Give the slot back and correct the tokens to what was used (None: leave them as held). Never raises.

        Returns at once; Redis gets it with the next round trip. A second release does nothing.
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
        """Beat, so that this process' slots stay its own, and give back those of processes that have died; forever."""
        while True:
            await self.beat()
            await asyncio.sleep(self._dead_s / 4)

    async def beat(self) -> int:
        """Beat once; how many slots of dead processes were given back.

        None are for as long as nobody can tell: when Redis was away, those that live may not have found it again yet.
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
            log.warning("gave back %d slots of calls in flight that dead processes had left", given_back)
        return given_back

    async def drain(self) -> None:
        """Wait until Redis has heard of every release, or is away."""
        if self._scripts is not None:
            await self._scripts.drain()

    async def close(self) -> None:
        """Drain, give back what this process still holds, and stop looking for Redis. The client is left open: close
        it after this."""
        if self._scripts is not None:
            if self._shared_since is not None and not self._scripts.away:
                self._scripts.post(Command(self._process, ("leave", "", "", "")))
            await self._scripts.close()

    def _acquisition(self, call_id: UUID, charges: Sequence[Charge], lifetime_s: float) -> Command:
        call = str(call_id)
        slots = [(charge, 0) for charge in charges if charge.metric is Metric.CONCURRENT]
        # Unknown whether it was admitted: its slot goes, whatever its expiry; its tokens refill within a minute.
        undo = self._command("release", call, "", slots) if slots else None
        amounts = [(charge, charge.amount) for charge in charges]
        return self._command("acquire", call, _milliseconds(lifetime_s), amounts, undo)

    def _release(self, permit: RatePermit, changes: Sequence[tuple[Charge, int]]) -> Command:
        call, expiry = str(permit.call_id), str(permit.slot_expires_ms)
        slots = [change for change in changes if change[0].metric is Metric.CONCURRENT]
        # Unknown whether it happened: the slots again, but not a correction, which must not be made twice.
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
    """No gauge is connected."""
