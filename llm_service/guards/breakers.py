"""Circuit breakers for each model, each provider and LiteLLM Proxy, shared by all processes through Redis.

What must hold: asking never waits for anything but, for a probe, one bounded round trip; the state is this
process's own memory, and what changes is told to the others, and heard from them, by a task of its own (`run`).
One probe at a time over all processes. Without Redis each process goes on with its own (I6).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import orjson
from redis.asyncio import Redis

from llm_service.catalog import Model
from llm_service.errors import BreakerOpen
from llm_service.guards.breaker import CLOSED, HALF_OPEN, Breaker, BreakerRules, Change
from llm_service.guards.lane import Away, Command, Lane
from llm_service.guards.passage import Passage

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("breakers.lua")
PROXY = "proxy"


class Breakers:
    """All breakers of this process. Belongs to one event loop; `None` for Redis keeps them in this process.

    `on_change(name, state)` hears of each transition, `on_refused(name)` of each call that was kept out.
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
        on_change: Callable[[str, str], None] = lambda _name, _state: None,
        on_refused: Callable[[str], None] = lambda _name: None,
        on_degraded: Callable[[bool], None] = lambda _away: None,
    ) -> None:
        self._rules = rules
        self._prefix = prefix
        self._sync_s = sync_s
        self._clock = clock
        self._on_change = on_change
        self._on_refused = on_refused
        self._known: dict[str, Breaker] = {}
        self._versions: dict[str, int] = {}
        self._untold: set[str] = set()
        self._wake = asyncio.Event()
        self._lane: Lane | None = None
        if redis is not None:
            self._lane = Lane(redis, _SCRIPT, probe_key=f"{prefix}:alive", timeout_s=timeout_s, on_away=on_degraded)

    def blocked(self, model: Model) -> BreakerOpen | None:
        """Why an attempt at this model would be kept out now. Takes nothing."""
        for name in names_of(model):
            breaker = self._known.get(name)
            wait_s = None if breaker is None else breaker.wait_s()
            if breaker is not None and wait_s is not None:
                return _refusal(breaker, model, wait_s)
        return None

    async def enter(self, model: Model) -> Passage:
        """Leave for one attempt.

        Raises:
            BreakerOpen: one of the model's breakers is open, or another call is its probe.
        """
        names = names_of(model)
        if all((known := self._known.get(name)) is None or known.state == CLOSED for name in names):
            return _Passage(self, names, {})
        probes: dict[str, str] = {}
        for name in names:
            breaker = self._breaker(name)
            wait_s = breaker.wait_s()
            if wait_s is None and breaker.begin_probe():
                token = uuid4().hex
                if await self._take(name, token):
                    probes[name] = token
                else:
                    breaker.wait_for_others_probe()
                    wait_s = 1.0
            if wait_s is not None:
                self._free(probes)
                self._on_refused(name)
                raise _refusal(breaker, model, wait_s)
        return _Passage(self, names, probes)

    def states(self) -> list[dict[str, Any]]:
        """All breakers that were ever needed, for people."""
        return [
            {"name": each.name, "state": each.state, "since": each.since, "why": each.why, "retry_s": each.wait_s()}
            for each in sorted(self._known.values(), key=lambda each: each.name)
        ]

    async def force(self, name: str, *, opened: bool) -> None:
        """Open or close one by hand, everywhere."""
        self._breaker(name).force(opened=opened)
        await self.sync()

    async def run(self) -> None:
        """Tell and hear changes, for ever."""
        while True:
            await self.sync()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._sync_s)
            self._wake.clear()

    async def sync(self) -> None:
        """Tell what has changed here, and take over what has changed elsewhere. Redis away: nothing."""
        if self._lane is None:
            return
        untold, self._untold = self._untold, set()
        arguments = ["sync"]
        for name in sorted(untold):
            change = self._known[name].change()
            arguments += [name, change.state, str(int(change.open_s * 1000)), change.why, str(change.tries)]
        try:
            answer = orjson.loads(await self._lane.run(Command((self._prefix,), tuple(arguments))))
        except Away:
            self._untold |= untold  # an open breaker is told when Redis is back; a later state replaces it
            return
        self._merge(answer["now_ms"], dict(answer["states"] or {}), untold)

    async def close(self) -> None:
        """Finish what is under way."""
        if self._lane is not None:
            await self._lane.close()

    def settle(self, names: tuple[str, ...], probes: dict[str, str], outcome: bool | None, part: str) -> None:
        """What an attempt says of its breakers; None: nothing."""
        for name in names:
            probe = name in probes
            if outcome is None or (part == PROXY and name != PROXY):
                continue
            if outcome or (part != PROXY and name == PROXY):  # the proxy was reached, whatever the model did
                if probe or name in self._known:
                    self._breaker(name).succeeded(probe=probe)
            else:
                self._breaker(name).failed(probe=probe)
        self._free(probes)

    def _merge(self, now_ms: int, states: Mapping[str, Any], told: set[str]) -> None:
        for name, fields in states.items():
            if fields["version"] <= self._versions.get(name, 0):
                continue
            self._versions[name] = fields["version"]
            if name in told or name in self._untold:
                continue
            open_s = max(0.0, (fields["until_ms"] - now_ms) / 1000)
            breaker = self._breaker(name)
            before = breaker.state
            breaker.adopt(Change(fields["state"], open_s, fields["why"], fields["tries"]))
            if breaker.state != before:
                self._on_change(name, breaker.state)
        if len(states) < len(self._versions):  # Redis was flushed: what is open here is open
            gone = self._versions.keys() - states.keys()
            self._untold |= {name for name in gone if self._known[name].state != CLOSED}
            for name in gone:
                del self._versions[name]

    async def _take(self, name: str, token: str) -> bool:
        if self._lane is None:
            return True
        lifetime_ms = str(int(self._rules.probe_s * 1000))
        keys = (self._prefix, f"{self._prefix}:probe:{name}")
        try:
            taken = await self._lane.run(Command(keys, ("probe", token, lifetime_ms), Command(keys, ("free", token))))
        except Away:
            return True
        return taken == "1"

    def _free(self, probes: dict[str, str]) -> None:
        for name, token in probes.items():
            self._breaker(name).end_probe()
            if self._lane is not None:
                self._lane.post(Command((self._prefix, f"{self._prefix}:probe:{name}"), ("free", token)))

    def _breaker(self, name: str) -> Breaker:
        breaker = self._known.get(name)
        if breaker is None:
            breaker = self._known[name] = Breaker(name, self._rules, clock=self._clock, changed=self._changed)
        return breaker

    def _changed(self, breaker: Breaker) -> None:
        log.warning("breaker %s is %s%s", breaker.name, breaker.state, f": {breaker.why}" if breaker.why else "")
        self._on_change(breaker.name, breaker.state)
        if breaker.state != HALF_OPEN:  # that is for whoever probes; the others go on waiting
            self._untold.add(breaker.name)
            self._wake.set()


class _Passage:
    def __init__(self, owner: Breakers, names: tuple[str, ...], probes: dict[str, str]) -> None:
        self._owner: Breakers | None = owner
        self._names = names
        self._probes = probes

    def succeeded(self) -> None:
        self._tell(True)

    def failed(self, part: Literal["model", "proxy"] = "model") -> None:
        self._tell(False, part)

    def neutral(self) -> None:
        self._tell(None)

    def _tell(self, outcome: bool | None, part: str = "model") -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.settle(self._names, self._probes, outcome, part)


def names_of(model: Model) -> tuple[str, ...]:
    """The breakers that an attempt at a model passes. Whose deployments are of several providers has none for them."""
    providers = set(model.deployments.values()) or {model.provider}
    provider = (f"provider:{next(iter(providers))}",) if len(providers) == 1 else ()
    return (PROXY, *provider, f"model:{model.name}")


def _refusal(breaker: Breaker, model: Model, wait_s: float) -> BreakerOpen:
    since: datetime = breaker.since
    return BreakerOpen(
        f"{model.name!r} is not asked at the moment: the breaker {breaker.name!r} has been {breaker.state} since "
        f"{since:%H:%M:%S} UTC ({breaker.why or 'it failed'}). Nothing was sent or spent. Try again in "
        f"{max(1, round(wait_s))} s, or have an administrator give it a route with fallbacks (treasurer route set).",
        retry_after=max(wait_s, 1.0),
        details={"breaker": breaker.name, "state": breaker.state, "model": model.name},
    )
