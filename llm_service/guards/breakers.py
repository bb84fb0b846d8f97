"""Circuit breakers for each model, each provider and LiteLLM Proxy, shared by all processes through Redis.

What must hold:
- A call reads the state of a breaker from this process's memory. Only a probe waits for Redis, for one bounded round
  trip. A separate task (`run`) exchanges changes of state with the other processes.
- One call at a time, over all processes, is the probe of a breaker. The probe holds a lock in Redis that expires. So if
  its process dies, other processes can probe as soon as the lock has expired.
- The result of a probe is shared in the same step that releases its lock.
- Without Redis each process goes on with its own breakers (I6). When Redis is available again, the states are merged:
  open wins while its time lasts (`breakers.lua`).
- Each success is counted even while all breakers are closed, because the share of failures needs the number of all calls.
- Breakers exist only for LiteLLM Proxy, for models of the catalogue, and for their providers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from uuid import uuid4

import orjson
from redis.asyncio import Redis

from llm_service.errors import BreakerOpen
from llm_service.guards.breaker import ASK_AGAIN_S, CLOSED, HALF_OPEN, Breaker, BreakerRules, Change
from llm_service.guards.breaker_gate import BreakerPermit
from llm_service.guards.redis_scripts import Command, RedisScripts, RedisUnavailable
from llm_service.pricing.models import Model

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("breakers.lua")
PROXY = "proxy"
#: How long a breaker that was opened by hand stays open, by default and at most. Redis keeps a state for no longer.
HELD_S, MOST_HELD_S = 3_600.0, 86_400.0


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """A breaker's state for operators. `retry_s`: in how many seconds a probe may pass; None: now."""

    name: str
    state: str
    since: datetime
    why: str
    retry_s: float | None


@dataclass(frozen=True, slots=True)
class _Probe:
    token: str
    shared: bool  # whether it holds a lock in Redis


class Breakers:
    """All breakers of this process. Belongs to one event loop. Without Redis (`None`) they are not shared.

    `on_change(name, state, own)` is called after each change of state; `own` is False for a change that another process
    reported. `on_refused(name)` is called for each call that was refused, and `on_degraded(away)` when
    Redis becomes unavailable or available again.
    """

    def __init__(
        self,
        redis: Redis | None,
        rules: BreakerRules,
        *,
        prefix: str = "treasurer:{breakers}",
        sync_s: float = 1.0,
        timeout_s: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, str, bool], None] = lambda _name, _state, _own: None,
        on_refused: Callable[[str], None] = lambda _name: None,
        on_degraded: Callable[[bool], None] = lambda _away: None,
    ) -> None:
        self._rules = rules
        self._prefix = prefix
        self._sync_s = sync_s
        self._clock = clock
        self._on_change = on_change
        self._on_refused = on_refused
        self._owner = uuid4().hex
        self._known: dict[str, Breaker] = {}
        self._names: dict[
            str, tuple[Model, tuple[str, ...]]
        ] = {}  # by the model's name, until the catalogue has a new version of the model
        self._seen: dict[str, str] = {}  # breaker → the version of its state that was last read from Redis
        self._unshared: set[str] = set()
        self._forced: set[str] = set()  # the breakers among these that were set by hand
        self._given_back: dict[str, str] = {}  # locks to release in Redis: token of the probe → breaker
        self._wake = asyncio.Event()
        self._scripts: RedisScripts | None = None
        if redis is not None:
            self._scripts = RedisScripts(
                redis, _SCRIPT, probe_key=f"{prefix}:alive", timeout_s=timeout_s, on_away=on_degraded
            )

    # -- for calls

    def blocked(self, model: Model) -> BreakerOpen | None:
        """Why an attempt at this model would be refused now; None: it would be permitted. Reserves no probe."""
        for name in self._names_of(model):
            breaker = self._known.get(name)
            wait_s = None if breaker is None else breaker.wait_s()
            if breaker is not None and wait_s is not None:
                return self._refusal(breaker, model, wait_s)
        return None

    async def acquire(self, model: Model) -> BreakerPermit:
        """A permit for one attempt.

        Raises:
            BreakerOpen: one of the model's breakers is open, or another call is its probe.
        """
        names = self._names_of(model)
        for name in names:
            if self._breaker(name).state != CLOSED:
                break
        else:
            return _Permit(self, names, _NO_PROBES)
        probes: dict[str, _Probe] = {}
        try:
            for name in names:
                wait_s = await self._pass(name, probes)
                if wait_s is not None:
                    self._on_refused(name)
                    raise self._refusal(self._breaker(name), model, wait_s)
        except BaseException:
            self._give_back(probes)
            raise
        return _Permit(self, names, probes)

    def settle(self, names: tuple[str, ...], probes: Mapping[str, _Probe], outcome: bool | None, part: str) -> None:
        """Report the outcome of an attempt to its breakers; None: the attempt had none."""
        if outcome and not probes:  # nearly every call; the share of failures needs the number of successes too
            for name in names:
                self._breaker(name).succeeded()
            return
        if outcome is not None:
            *wider, model = (self._breaker(name) for name in names)
            # If the model's breaker has opened since the attempt began, the attempt's failure is not counted against
            # the provider either: its cause is known already, and the provider's other models may work.
            stale = part != PROXY and not outcome and not model.counts(_token(probes, model.name))
            for breaker in (*wider, model):
                if part == PROXY and breaker.name != PROXY:
                    continue
                well = outcome or (
                    part != PROXY and breaker.name == PROXY
                )  # a success for the proxy, which was reached
                if well:
                    breaker.succeeded(_token(probes, breaker.name))
                elif not stale:
                    breaker.failed(_token(probes, breaker.name))
        self._give_back(probes)

    async def _pass(self, name: str, probes: dict[str, _Probe]) -> float | None:
        """Pass one breaker, as its probe if the breaker needs one. Returns how long to wait if that is not possible."""
        breaker = self._breaker(name)
        wait_s = breaker.wait_s()
        if wait_s is not None or breaker.state == CLOSED:
            return wait_s
        token = uuid4().hex
        probes[name] = _Probe(token, shared=False)  # stored first, so that the probe is given back whatever happens
        breaker.reserve(token)
        taken = await self._lock(name, token)
        if taken is False:
            breaker.give_back(token, ask_again_s=ASK_AGAIN_S)
            return ASK_AGAIN_S
        probes[name] = _Probe(token, shared=taken is True)
        return None if breaker.begin_probe(token) else breaker.wait_s()

    async def _lock(self, name: str, token: str) -> bool | None:
        """Whether this process has got the lock for the probe; None: there is no Redis to ask."""
        if self._scripts is None:
            return None
        keys = (self._prefix, self._lock_key(name))
        lifetime_ms = str(int(self._rules.probe_s * 1000))
        try:
            answer = await self._scripts.run(
                Command(keys, ("probe", token, lifetime_ms), undo=Command(keys, ("free", token)))
            )
        except RedisUnavailable:
            return None
        return answer == "1"

    def _give_back(self, probes: Mapping[str, _Probe]) -> None:
        for name, probe in probes.items():
            self._breaker(name).give_back(probe.token)
            if probe.shared:
                self._given_back[probe.token] = name
                self._wake.set()

    # -- for operators

    def states(self) -> list[BreakerStatus]:
        """All breakers that this process has used so far."""
        mono, now = self._clock(), datetime.now(UTC)
        return [
            BreakerStatus(each.name, each.state, now - timedelta(seconds=mono - each.since), each.why, each.wait_s())
            for each in sorted(self._known.values(), key=lambda each: each.name)
        ]

    async def force(self, name: str, *, opened: bool, seconds: float = HELD_S) -> bool:
        """Open a breaker by hand for a time, or close it, in all processes. False: only in this one, as Redis is away."""
        self._breaker(name).force(opened=opened, seconds=min(seconds, MOST_HELD_S))
        self._forced.add(name)
        return await self.sync()

    # -- for the other processes

    async def run(self) -> None:
        """Exchange changes with the other processes, forever."""
        while True:
            self._wake.clear()
            try:
                await self.sync()
            except Exception:
                log.exception("changes of breakers could not be shared with the other processes; this is tried again")
                await asyncio.sleep(self._sync_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._sync_s)

    async def sync(self) -> bool:
        """Share the changes of this process, and adopt those of the others. False: Redis is away."""
        if self._scripts is None:
            return True
        unshared, self._unshared = self._unshared, set()
        forced, self._forced = self._forced, set()
        given_back, self._given_back = self._given_back, {}
        try:
            answer = orjson.loads(await self._scripts.run(self._sync_command(unshared, forced, given_back)))
            self._merge(answer["now_ms"], answer["states"])
        except BaseException as error:  # also if the task is cancelled: these changes are shared the next time
            self._unshared |= unshared
            self._forced |= forced
            self._given_back = given_back | self._given_back
            if isinstance(error, RedisUnavailable):
                return False
            raise
        return True

    async def close(self) -> None:
        """Finish what is under way."""
        if self._scripts is not None:
            await self._scripts.close()

    def _sync_command(self, unshared: set[str], forced: set[str], given_back: Mapping[str, str]) -> Command:
        arguments = ["sync", self._owner, str(len(unshared))]
        for name in sorted(unshared):
            change = self._known[name].change()
            seen = "*" if name in forced else self._seen.get(name, "")
            open_ms, age_ms = str(int(change.open_s * 1000)), str(int(change.age_s * 1000))
            arguments += [name, change.state, open_ms, change.why, str(change.tries), age_ms, seen]
        locks = tuple(self._lock_key(name) for name in given_back.values())
        return Command((self._prefix, *locks), (*arguments, *given_back))

    def _merge(self, now_ms: int, states: Mapping[str, Any]) -> None:
        for name, fields in states.items():
            if name in self._unshared or fields["version"] == self._seen.get(name):
                continue  # an own change is shared first; it is based on the version that was seen before
            self._seen[name] = fields["version"]
            if fields["owner"] == self._owner:
                continue
            open_s = max(0.0, (fields["until_ms"] - now_ms) / 1000)
            age_s = max(0.0, (now_ms - fields["at_ms"]) / 1000)
            breaker = self._breaker(name)
            before = breaker.state
            breaker.adopt(Change(fields["state"], open_s, fields["why"], int(fields["tries"]), age_s))
            if breaker.state != before:
                log.info("breaker %s is %s, as another process reports: %s", name, breaker.state, breaker.why)
                self._on_change(name, breaker.state, False)
        for name in self._seen.keys() - states.keys():  # Redis was flushed, so share open breakers again
            del self._seen[name]
            if self._breaker(name).state != CLOSED:
                self._unshared.add(name)

    def _names_of(self, model: Model) -> tuple[str, ...]:
        known = self._names.get(model.name)
        if known is None or known[0] is not model:
            known = self._names[model.name] = (model, names_of(model))
        return known[1]

    def _lock_key(self, name: str) -> str:
        return f"{self._prefix}:probe:{name}"

    def _breaker(self, name: str) -> Breaker:
        breaker = self._known.get(name)
        if breaker is None:
            rules = rules_of(name, self._rules)
            breaker = self._known[name] = Breaker(name, rules, clock=self._clock, changed=self._changed)
        return breaker

    def _changed(self, breaker: Breaker) -> None:
        log.warning("breaker %s is %s: %s", breaker.name, breaker.state, breaker.why)
        self._on_change(breaker.name, breaker.state, True)
        if breaker.state != HALF_OPEN:  # half-open concerns only the process that probes; the others go on waiting
            self._unshared.add(breaker.name)
            self._wake.set()

    def _refusal(self, breaker: Breaker, model: Model, wait_s: float) -> BreakerOpen:
        since = datetime.now(UTC) - timedelta(seconds=self._clock() - breaker.since)
        return BreakerOpen(
            f"{model.name!r} is not asked at the moment: the breaker {breaker.name!r} has been {breaker.state} since "
            f"{since:%H:%M:%S} UTC ({breaker.why or 'it failed'}). Nothing was sent or spent. Try again in "
            f"{max(1, round(wait_s))} s, or have an administrator give it a route with fallbacks (treasurer route set).",
            retry_after=max(wait_s, 1.0),
            details={"breaker": breaker.name, "state": breaker.state, "model": model.name},
        )


_NO_PROBES: Mapping[str, _Probe] = MappingProxyType({})


class _Permit:
    __slots__ = ("_names", "_owner", "_probes")

    def __init__(self, owner: Breakers, names: tuple[str, ...], probes: Mapping[str, _Probe]) -> None:
        self._owner: Breakers | None = owner
        self._names = names
        self._probes = probes

    def succeeded(self) -> None:
        self._end(True)

    def failed(self, part: Literal["model", "proxy"] = "model") -> None:
        self._end(False, part)

    def release(self) -> None:
        self._end(None)

    def _end(self, outcome: bool | None, part: str = "model") -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.settle(self._names, self._probes, outcome, part)


def names_of(model: Model) -> tuple[str, ...]:
    """The names of the breakers that an attempt at a model passes; the model's own is the last.

    If a model has deployments at several providers, no provider's breaker is among them, because it is not known which
    provider failed.
    """
    providers = set(model.deployments.values()) or {model.provider}
    provider = (f"provider:{next(iter(providers))}",) if len(providers) == 1 else ()
    return (PROXY, *provider, f"model:{model.name}")


def rules_of(name: str, rules: BreakerRules) -> BreakerRules:
    """The rules of one breaker.

    A provider's breaker opens after twice as many failures as a model's. So one model that is down opens its own breaker,
    after which it is not asked and cannot fail, and the provider's other models, which may stand in for it, are still asked.
    LiteLLM Proxy restarts within seconds, and a probe that it refuses costs nothing, so it is probed soon.
    """
    if name == PROXY:
        return replace(rules, open_s=min(rules.open_s, 1.0), most_open_s=min(rules.most_open_s, 5.0))
    if name.startswith("provider:"):
        return replace(rules, failures=2 * rules.failures, min_calls=2 * rules.min_calls)
    return rules


def _token(probes: Mapping[str, _Probe], name: str) -> str | None:
    probe = probes.get(name)
    return None if probe is None else probe.token
