"""Where a scenario is played: one account of the gateway with its budget, and callers who use it.

What must hold:
- All random choices come from the seed and the scenario's name.
- Every call is recorded.
- Every loop is bounded in calls and in time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import Any

from benchmarks.overspend.adapter import Account, Adapter, Window
from benchmarks.overspend.calls import Ask, Caller, Leave, Made
from benchmarks.overspend.provider import Provider, count_tokens, face_of
from gateway.stack.simulated_provider.habits import habits
from gateway.stack.simulated_provider.media import Media
from gateway.stack.simulated_provider.prices import Terms, Used

MODEL = "gpt-4o-mini"
NO_MEDIA = Media()
_WORDS = ("river", "stone", "cloud", "bread", "paper", "light", "winter", "garden", "letter", "market", "silver")
#: The longest time that a caller waits when a gateway asks it to retry later.
_MOST_WAIT_S = 3.0


class Field:
    """What a scenario uses to make calls. `made` has every call so far, in the order in which they ended."""

    def __init__(self, name: str, adapter: Adapter, provider: Provider, seed: int) -> None:
        self.made: list[Made] = []
        self.limit_nano = 0
        self.window: Window = "total"
        self.account: Account | None = None
        self.random = Random(f"{seed}/{name}")
        self._adapter = adapter
        self._provider = provider
        self._lengths: set[int] = set()
        self._numbers = itertools.count()
        self._callers: list[Caller] = []

    @property
    def instances(self) -> int:
        return len(self._adapter.urls)

    async def fund(self, limit_nano: int, window: Window = "total", *, errors_are_billed: bool = False) -> None:
        """Create the budget: a new agent, a key and a limit. Once for each scenario, before its first call."""
        self.limit_nano, self.window = limit_nano, window
        self.account = await self._adapter.account(limit_nano, window, errors_are_billed=errors_are_billed)
        self._callers = [Caller(url, self.account.key) for url in self._adapter.urls]

    async def close(self) -> None:
        for caller in self._callers:
            await caller.close()

    def chat(
        self,
        text: str = "",
        *,
        model: str = MODEL,
        output: int = 100,
        max_tokens: int | None = -1,
        reasoning: int = 0,
        n: int = 1,
        stream: bool = False,
        leave: Leave | None = None,
        headers: Mapping[str, str] | None = None,
        media: Mapping[str, Any] | None = None,
        media_tokens: Media = NO_MEDIA,
        more: Mapping[str, Any] | None = None,
        timeout_s: float = 30.0,
        script: Mapping[str, Any] | None = None,
    ) -> Ask:
        """A chat call whose answer has `output` tokens, after `reasoning` tokens of hidden reasoning.

        `max_tokens`: as many as the answer has, unless given; None: left out. `media`: a part of the message beside its
        text, of so many tokens. `more`: other parameters. `script` tells the provider what else to do.
        """
        script = {**habits(face_of(model), model), **(script or {})}
        knobs = {"output_tokens": output, **({"reasoning_tokens": reasoning} if reasoning else {}), **script}
        body: dict[str, Any] = dict(more or {})
        most = output + reasoning if max_tokens == -1 else max_tokens
        if most is not None:
            body["max_completion_tokens" if model.startswith("gpt-5") else "max_tokens"] = most
        if n > 1:
            body["n"] = n
        if stream:
            body["stream"] = True
        beside = media_tokens.image + media_tokens.audio
        text, length = self._text(text, knobs, chat=True, beside=beside)
        reasoning = max(reasoning, script.get("reasoning_tokens", 0))
        used = Used(
            input=length,
            cached=script.get("cached_tokens", 0),
            cache_write=script.get("cache_write_tokens", 0),
            cache_write_1h=script.get("cache_write_1h_tokens", 0),
            output=(output + reasoning) * n,
            reasoning=reasoning * n,
            image=media_tokens.image,
            audio=media_tokens.audio,
            citations=script.get("citation_tokens", 0),
            searches=script.get("searches", 0),
        )
        context = body.get("web_search_options", {}).get("search_context_size", "")
        terms = Terms(search_context=context, region=script.get("region", ""), at=time.time())
        fails = bool(script.keys() & {"status", "cut_after_tokens", "cut_before_headers"}) and "times" not in script
        cost = script["cost_nano"] if "cost_nano" in script else self._provider.cost_nano(model, used, terms)
        parts = (media,) if media is not None else ()
        return Ask(model, text, length, body, cost, headers or {}, False, leave, timeout_s, fails, parts)

    def embed(self, text: str, *, model: str = "text-embedding-3-small") -> Ask:
        """An embedding of one text."""
        text, length = self._text(text, {}, chat=False)
        cost = self._provider.cost_nano(model, Used(input=length))
        return Ask(model, text, length, {}, cost, embeddings=True)

    def _text(self, text: str, knobs: Mapping[str, Any], *, chat: bool, beside: int = 0) -> tuple[str, int]:
        """The text with a marker, lengthened until no other call of this scenario has as many tokens. `beside`: tokens of
        the call that are not in the text.
        """
        if knobs.get("times"):  # the provider counts the uses of a marker by its text, so no two may have the same text
            knobs = {**knobs, "latency_s": knobs.get("latency_s", 0) + next(self._numbers) / 10**6}
        words = " ".join(self.random.choices(_WORDS, k=8))
        marker = f" [[sim: {json.dumps(knobs)}]]" if knobs else ""
        text = f"{text or 'Tell me of'} {words}.{marker}"
        length = beside + count_tokens(text, chat=chat)
        while length in self._lengths:
            text += " go"
            length += 1
        assert length == beside + count_tokens(text, chat=chat)
        self._lengths.add(length)
        return text, length

    async def once(self, ask: Ask, instance: int = 0) -> Made:
        """Make a call at one of the gateway's instances, without retries."""
        made = await self._callers[instance % len(self._callers)].make(ask)
        self.made.append(made)
        return made

    async def patiently(self, ask: Ask, instance: int = 0, *, tries: int = 3, retry_failures: bool = False) -> Made:
        """Retry when the gateway asks for it, as well-behaved clients do, unless it answers that a retry is of no use."""
        for attempt in range(tries):
            made = await self.once(ask, instance)
            again = made.end == "refused" or (retry_failures and made.end == "failed")
            if not again or made.final or attempt == tries - 1:
                return made
            await asyncio.sleep(min(made.retry_after_s if made.retry_after_s is not None else 0.5, _MOST_WAIT_S))
        raise AssertionError("tries is above zero")

    async def together(self, asks: Iterable[Ask], *, instances: int = 1) -> list[Made]:
        """Make all calls at the same time, spread over the instances, without retries."""
        return await asyncio.gather(*(self.once(ask, number % instances) for number, ask in enumerate(asks)))

    async def by(self, callers: int, asks: Iterable[Ask], *, tries: int = 3, seconds: float = 20) -> None:
        """This number of callers take the calls one after the other, until none is left or the time is over."""
        waiting = iter(asks)
        deadline = time.monotonic() + seconds

        async def caller() -> None:
            for ask in waiting:
                if time.monotonic() > deadline:
                    return
                await self.patiently(ask, tries=tries)

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def kill_and_restart(self) -> None:
        """Kill the gateway, and wait until it serves again."""
        await self._adapter.kill_and_restart()
        await self.close()
        assert self.account is not None
        self._callers = [Caller(url, self.account.key) for url in self._adapter.urls]

    async def until(self, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        """Repeat the work for this long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await work()
