"""Plays scenarios at one gateway, and calls the judge.

What must hold:
- A scenario is judged only when the provider bills no more, and the gateway's books no longer change or their time is
  over.
- Every wait is bounded.
- If one scenario fails, the others are still played.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import aiohttp

from benchmarks.overspend.adapter import Account, Adapter, Books, Unsupported
from benchmarks.overspend.field import Field
from benchmarks.overspend.judge import Verdict, judge
from benchmarks.overspend.provider import Provider
from benchmarks.overspend.scenarios import BEFORE_BOUNDARY_S, MINUTE_S, Later, Scenario

_SCENARIO_S = 150.0
_PROBES = 3
_NEAR_S = 15.0
_PROBE_PAUSE_S = 1.0
#: A later call "would fit" only if this many such calls would: a gateway may hold a little more than a call costs.
ROOM = 3


async def play_all(
    scenarios: Sequence[Scenario],
    adapter: Adapter,
    provider: Provider,
    seed: int,
    on_begin: Callable[[Scenario], None] = lambda _: None,
    on_end: Callable[[Verdict, float], None] = lambda _verdict, _seconds: None,
) -> list[Verdict]:
    """Play the scenarios one after the other, and judge each by the invoice lines that were written meanwhile."""
    verdicts: list[Verdict] = []
    waiting = list(scenarios)
    while waiting:
        scenario = waiting.pop(next_one(waiting, time.time()))
        on_begin(scenario)
        began = time.monotonic()
        verdict = await play(scenario, adapter, provider, seed)
        verdicts.append(verdict)
        on_end(verdict, time.monotonic() - began)
    return verdicts


def next_one(waiting: Sequence[Scenario], now: float) -> int:
    """Which scenario is played next: the first one, or one that waits for the end of a minute when that is near."""
    near = (MINUTE_S - BEFORE_BOUNDARY_S - now) % MINUTE_S < _NEAR_S
    fit = (number for number, scenario in enumerate(waiting) if scenario.at_boundary == near)
    return next(fit, next((number for number, scenario in enumerate(waiting) if not scenario.at_boundary), 0))


async def play(scenario: Scenario, adapter: Adapter, provider: Provider, seed: int) -> Verdict:
    """Play one scenario and judge it."""
    if len(adapter.urls) < scenario.replicas:
        return Verdict(scenario.name, scenario.title, skipped="not supported: there is one instance")
    if missing := scenario.needs - adapter.serves:
        said = f"not supported: this adapter has no {', '.join(sorted(missing))}"
        return Verdict(scenario.name, scenario.title, skipped=said)
    field = Field(scenario.name, adapter, provider, seed)
    await provider.quiet(0)
    since = await provider.last()
    try:
        async with asyncio.timeout(_SCENARIO_S):
            later = await scenario.play(field)
            await provider.quiet(scenario.drain_s)
            assert field.account is not None
            await at_rest(adapter, field.account)
            unused = None
            if field.window == "total":
                left = field.limit_nano - sum(line.cost_nano for line in await provider.lines(since))
                unused = await _unused_nano(field, later, left)
            await provider.quiet(0)
            books = await at_rest(adapter, field.account)
    except Unsupported as reason:
        return Verdict(scenario.name, scenario.title, skipped=f"not supported: {reason}")
    except (OSError, RuntimeError, aiohttp.ClientError) as error:  # time-outs are OSErrors
        said = f"could not be played: {type(error).__name__} {error}"[:300]
        return Verdict(scenario.name, scenario.title, skipped=said, broke=True)
    finally:
        await field.close()
    return judge(
        scenario.name,
        scenario.title,
        limit_nano=field.limit_nano,
        window_s=None if field.window == "total" else MINUTE_S,
        lines=await provider.lines(since),
        made=field.made,
        books=books,
        unused_nano=unused,
    )


async def at_rest(adapter: Adapter, account: Account) -> Books | None:
    """The books, once nothing of the account is open in them and they no longer change, or at the latest when their
    time is over."""
    deadline = time.monotonic() + adapter.settle_s
    before, now = None, await adapter.books(account)
    while now is not None and time.monotonic() < deadline and not (now == before and now.open_nano == 0):
        await asyncio.sleep(0.3)
        before, now = now, await adapter.books(account)
    return now


async def _unused_nano(field: Field, later: Later, left_nano: int) -> int | None:
    """The rest of the limit if later calls would fit but none is answered, otherwise 0. None: the rest is too small for
    a call.
    """
    probe = later()
    if left_nano < ROOM * probe.cost_nano:
        return None
    for number in range(_PROBES):
        made = await field.patiently(probe if number == 0 else later(), number, retry_failures=True)
        if made.end == "answered":
            return 0
        await asyncio.sleep(_PROBE_PAUSE_S)
    return left_nano
