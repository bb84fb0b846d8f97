"""Rate limits in this process, used while Redis is away, or if there is none.

What must hold:
- The same calls get the same answers as from `rate_limiter.lua` (a test runs both side by side).

While Redis is away, each gateway alone allows the whole limit: rate limits fail soft (I6), money does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from llm_service.guards.token_bucket import UNIT, Charge, Decision, Metric, RatePermit, bucket_level, passes

#: How often expired entries are removed, so that memory holds only the subjects in use.
_CLEAR_EVERY_MS = UNIT


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class LocalLimits:
    """Buckets and slots in memory. Not for several threads."""

    def __init__(self, now_ms: Callable[[], int] = _monotonic_ms) -> None:
        self._now_ms = now_ms
        self._buckets: dict[str, tuple[int, int, int]] = {}  # key → used, at, limit
        self._slots: dict[str, dict[str, int]] = {}  # key → call → expiry
        self._clear_at_ms = now_ms() + _CLEAR_EVERY_MS

    def acquire(self, call_id: UUID, charges: Sequence[Charge], lifetime_s: float) -> Decision:
        """Take all of these charges, or none of them."""
        now = self._now_ms()
        self._clear(now)
        call = str(call_id)
        levels = [self._level(charge, call, now) for charge in charges]
        if not all(passes(charge, level) for charge, level in zip(charges, levels, strict=True)):
            return Decision(admitted=False, now_ms=now, levels=tuple(levels))
        for index, charge in enumerate(charges):
            if charge.metric is Metric.CONCURRENT:
                levels[index] += charge.amount
                self._slots.setdefault(charge.key, {})[call] = now + math.ceil(lifetime_s * 1_000)
            else:
                levels[index] += charge.amount * UNIT
                self._store(charge, levels[index], now)
        return Decision(admitted=True, now_ms=now, levels=tuple(levels))

    def release(self, permit: RatePermit, tokens: int | None) -> None:
        """Give the slots back and correct the tokens."""
        now = self._now_ms()
        call = str(permit.call_id)
        for charge, change in permit.returns(tokens):
            if charge.metric is Metric.CONCURRENT:
                slots = self._slots.get(charge.key, {})
                if slots.get(call) == permit.slot_expires_ms:
                    del slots[call]
            else:
                used = self._level(charge, call, now) + change * UNIT
                self._store(charge, min(used, 2 * charge.limit * UNIT), now)

    def _level(self, charge: Charge, call: str, now: int) -> int:
        if charge.metric is Metric.CONCURRENT:
            slots = self._slots.get(charge.key, {})
            return sum(1 for other, expires in slots.items() if expires > now and other != call)
        used, at, _ = self._buckets.get(charge.key, (0, now, charge.limit))
        return bucket_level(used, at, charge.limit, now)

    def _store(self, charge: Charge, used: int, now: int) -> None:
        if used > 0:
            self._buckets[charge.key] = (used, now, charge.limit)
        else:
            self._buckets.pop(charge.key, None)

    def _clear(self, now: int) -> None:
        if now < self._clear_at_ms:
            return
        self._clear_at_ms = now + _CLEAR_EVERY_MS
        self._buckets = {
            key: bucket for key, bucket in self._buckets.items() if bucket_level(bucket[0], bucket[1], bucket[2], now)
        }
        live = {key: {c: e for c, e in slots.items() if e > now} for key, slots in self._slots.items()}
        self._slots = {key: slots for key, slots in live.items() if slots}
