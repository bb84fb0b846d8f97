"""After prices change in the proxy, holds use the new prices, and a model that was removed is answered with 404."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import NotFoundError

from gateway.stack.ports import free_port
from gateway.stack.state import StackState
from llm_service.grants import PRICES_STAMP, for_service, sign
from tests.integration.caller import Caller, open_caller
from tests.integration.gateways import another_gateway
from tests.integration.proxies import ROOT, another_proxy, configuration

MODEL, GONE = "local/llama-3.3-70b", "gpt-4o-mini"


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


def with_price(config: dict[str, Any], per_token: float) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    for deployment in changed["model_list"]:
        if deployment["model_name"] == MODEL:
            deployment["litellm_params"] |= {"input_cost_per_token": per_token, "output_cost_per_token": per_token}
    return changed


async def stamps(stack: StackState, url: str) -> dict[str, str]:
    path = "/model/info"
    headers = {"Authorization": f"Bearer {sign(stack.grant_secret, for_service(path))}"}
    async with aiohttp.ClientSession() as session, session.get(f"{url}{path}", headers=headers) as answer:
        entries: list[dict[str, Any]] = (await answer.json())["data"]
    assert all(entry["model_info"][PRICES_STAMP] for entry in entries), "a model without a version"
    return {entry["model_name"]: entry["model_info"][PRICES_STAMP] for entry in entries}


@pytest.mark.timeout(600)
async def test_i1_a_changed_price_is_held_and_posted_from_the_first_call_on(
    caller: Caller, stack: StackState, stop_with_us: Callable[[int], None], tmp_path: Path
) -> None:
    """The removal of a model takes effect as fast. (Without a change, the gateway reads the catalogue once a
    minute.)"""
    port, folder = free_port(), tmp_path / "proxy"
    cheap = with_price(configuration(stack), 0.000_000_1)
    dear = with_price(cheap, 0.000_01)
    dear["model_list"] = [each for each in dear["model_list"] if each["model_name"] != GONE]
    environ = {"TREASURER_PROXY_URL": f"http://127.0.0.1:{port}"}
    gateways, proxies = ExitStack(), ExitStack()

    def start(config: dict[str, Any]) -> str:
        proxies.close()
        return proxies.enter_context(another_proxy(stack, stop_with_us, folder, port, config))

    with gateways, proxies:
        before = await stamps(stack, await asyncio.to_thread(start, cheap))
        gateway = another_gateway(stack, stop_with_us, tmp_path / "gateway.log", environ)
        url, _ = await asyncio.to_thread(gateways.enter_context, gateway)
        assert await cost_of_a_token(caller, url) == 100
        after = await stamps(stack, await asyncio.to_thread(start, dear))
        assert {name for name in after if after[name] != before[name]} == {MODEL}

        assert await cost_of_a_token(caller, url) == 10_000
        async with asyncio.timeout(60):  # the call is settled after the caller has its answer
            while await caller.pool.fetchval("SELECT count(*) FROM holds WHERE agent_id = $1", caller.agent_id):
                await asyncio.sleep(0.05)
        attempts = await caller.pool.fetch(
            "SELECT state, cost_nano, held_nano FROM ledger WHERE call_id = $1 ORDER BY attempt", caller.last.call_id
        )
        assert [row["state"] for row in attempts] == ["voided", "posted"], "the first hold was at the old price"
        assert attempts[1]["held_nano"] == 100 * attempts[0]["held_nano"]
        with pytest.raises(NotFoundError):
            await caller.call(url, model=GONE)
        held = await caller.pool.fetch("SELECT * FROM holds WHERE agent_id = $1", caller.agent_id)
        assert held == []


@pytest.mark.timeout(600)
async def test_i4_the_past_is_corrected_after_a_price_was_wrong(
    caller: Caller, stack: StackState, stop_with_us: Callable[[int], None], tmp_path: Path
) -> None:
    """The command shows the correction, the admin API makes it, and then the ledger equals the provider's invoice."""
    port, folder = free_port(), tmp_path / "proxy"
    right = configuration(stack)
    environ = {"TREASURER_PROXY_URL": f"http://127.0.0.1:{port}"}
    since = (await caller.pool.fetchval("SELECT now()")).isoformat()
    gateways, proxies = ExitStack(), ExitStack()

    def start(config: dict[str, Any]) -> str:
        proxies.close()
        return proxies.enter_context(another_proxy(stack, stop_with_us, folder, port, config))

    def command(*arguments: str) -> list[dict[str, Any]]:
        ran = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "reprice", MODEL, "--since", since, "--json", *arguments],
            capture_output=True, text=True, timeout=60, cwd=ROOT, check=True,
            env={"PATH": "/usr/bin:/bin", "TREASURER_DATA_DIR": str(stack.data_dir), **environ},
        )  # fmt: skip
        return json.loads(ran.stdout)

    with gateways, proxies:
        await asyncio.to_thread(start, with_price(right, 0.000_000_01))
        known = {**environ, "TREASURER_ADMIN_KEY": stack.admin_key}
        gateway = another_gateway(stack, stop_with_us, tmp_path / "gateway.log", known)
        url, _ = await asyncio.to_thread(gateways.enter_context, gateway)
        await caller.call(url, model=MODEL)
        async for _ in await caller.call(url, model=MODEL, stream=True):
            pass
        await caller.settled()
        wrong_nano, billed_nano = await caller.posted_nano(), await caller.billed_nano()
        assert 0 < wrong_nano < billed_nano / 10
        await asyncio.to_thread(start, right)

        [shown] = await asyncio.to_thread(command)
        assert (shown["attempts"], shown["posted_nano"], shown["right_nano"]) == (2, wrong_nano, billed_nano)
        assert await caller.posted_nano() == wrong_nano
        terms = {"model": MODEL, "since": since, "apply": True, "note": "a tenth of the price"}
        made = await caller.admin("POST", "repricings", terms, url=url)
        assert (made["attempts"], made["difference_nano"]) == (2, billed_nano - wrong_nano)
        assert await caller.posted_nano() == billed_nano
        faults = await caller.faults()
        assert len(faults) == made["attempts_above_hold"]
        assert all("overshoot" in fault for fault in faults), faults
        [again] = await asyncio.to_thread(command, "--apply", "--note", "once more")
        assert (again["attempts"], again["id"]) == (0, None)
        assert await caller.posted_nano() == billed_nano


async def cost_of_a_token(caller: Caller, url: str) -> int:
    """The price of a token in nano-dollars, computed from what was posted for a call."""
    answer = await caller.call(url, model=MODEL)
    cost_nano, tokens = caller.last.cost_nano, answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert cost_nano % tokens == 0
    return cost_nano // tokens
