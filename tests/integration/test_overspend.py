"""A fast part of the overspend test against the stack; and the same scenarios without a gateway, which overspend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from benchmarks.overspend.adapter import Adapter
from benchmarks.overspend.adapters.nothing import Nothing
from benchmarks.overspend.adapters.treasurer import Treasurer
from benchmarks.overspend.judge import Verdict
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import Provider, start_provider
from benchmarks.overspend.runner import play_all
from benchmarks.overspend.scenarios import SCENARIOS
from gateway.stack.simulated_provider.prices import PriceList
from gateway.stack.state import StackState

QUICK = [scenario for scenario in SCENARIOS if scenario.quick]


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    async with Processes() as running:
        yield running


async def played(adapter: Adapter, provider_url: str) -> dict[str, Verdict]:
    async with aiohttp.ClientSession() as http:
        provider = Provider(provider_url, PriceList(), http)
        verdicts = await play_all(QUICK, adapter, provider, seed=7)
    return {verdict.name: verdict for verdict in verdicts}


async def test_i1_treasurer_passes_no_limit(stack: StackState, processes: Processes) -> None:
    adapter = Treasurer(processes, running=stack)
    try:
        assert stack.provider_url is not None
        verdicts = await played(adapter, stack.provider_url)
    finally:
        await adapter.stop()
    assert [verdict.name for verdict in verdicts.values() if verdict.skipped] == []
    assert {verdict.name: verdict.overshoot_nano for verdict in verdicts.values()} == dict.fromkeys(verdicts, 0)
    for verdict in verdicts.values():
        faults = (verdict.unbooked, verdict.unanswered, verdict.doubled, verdict.strays, verdict.unused_nano or 0)
        assert faults == (0, 0, 0, 0, 0), verdict
        assert verdict.books_minus_bill_nano == 0, verdict
    # Check that the budgets were used, because a gateway that refuses everything would keep every limit.
    assert verdicts["burst"].answered >= 24
    assert verdicts["replicas"].answered >= 24
    # One more is the later call, which shows that more calls would fit.
    assert verdicts["same-idempotency-key"].billed_calls == 8 + 1


async def test_without_a_gateway_the_same_scenarios_find_the_faults(processes: Processes, tmp_path: Path) -> None:
    url = await start_provider(processes, tmp_path, seed=7)
    adapter = Nothing(processes)
    await adapter.start(url, tmp_path, 1)
    verdicts = await played(adapter, url)
    assert verdicts["burst"].answered == 64
    assert verdicts["burst"].overshoot_share > 1.3  # 64 calls were served where 27.5 fit
    assert verdicts["embeddings"].overshoot_nano > 0
    assert verdicts["same-idempotency-key"].doubled == 2 * 8
    assert verdicts["replicas"].skipped == "not supported: there is one instance"
    assert verdicts["burst"].books_nano is None


async def test_what_was_started_is_ended(tmp_path: Path) -> None:
    async with Processes() as processes:
        log = tmp_path / "log"
        process = await processes.start(["sleep", "60"], log=log, cwd=tmp_path)
        killed = await processes.start(["sleep", "60"], log=log, cwd=tmp_path)
        await processes.kill(killed)
        assert killed.returncode == -9
        assert process.returncode is None
    await asyncio.sleep(0)
    assert process.returncode == -15
