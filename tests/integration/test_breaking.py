"""Breakers on the real stack: a provider that fails is left alone, calls go on elsewhere, and it is found again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.stack.ports import free_port
from gateway.stack.probe import http_ok
from gateway.stack.state import StackState
from tests.integration.caller import PATIENCE_S, Caller, open_caller, said

MODEL, OTHER = "claude-sonnet-5-5", "gpt-4.1-mini"


@pytest.fixture(scope="module")
def breaking(stack: StackState, stop_with_us: Callable[[int], None], service_dir: Path) -> Iterator[list[str]]:
    """Two more gateway processes on the same stack, with breakers; their addresses."""
    urls: list[str] = []
    processes: list[subprocess.Popen[bytes]] = []
    for number in range(2):
        port = free_port()
        environ = {
            "TREASURER_DATA_DIR": str(stack.data_dir),
            "TREASURER_PORT": str(port),
            "TREASURER_ADMIN_KEY": stack.admin_key,
            "TREASURER_BREAKER_FAILURES": "3",
            "TREASURER_BREAKER_OPEN_S": "1.5",
        }
        log = service_dir / f"breaking-gateway-{number}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway.serve"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=os.environ | environ,
                cwd=Path(__file__).parent.parent.parent,
                start_new_session=True,
            )
        stop_with_us(process.pid)
        processes.append(process)
        urls.append(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 60
        for url, process in zip(urls, processes, strict=True):
            while not asyncio.run(http_ok(f"{url}/readyz")):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the gateway {url} did not start")
                time.sleep(0.2)
        yield urls
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


async def ask(caller: Caller, url: str, script: dict[str, Any] | None = None) -> str:
    """The error's code, or ""."""
    try:
        await caller.client(url).chat.completions.create(model=MODEL, messages=said(script=script), max_tokens=20)
    except openai.APIStatusError as error:
        return str(error.code)
    return ""


async def states(caller: Caller, url: str) -> dict[str, str]:
    return {row["name"]: row["state"] for row in (await caller.admin("GET", "breakers", url=url))["data"]}


async def test_a_model_that_fails_is_left_alone_everywhere_and_found_again(caller: Caller, breaking: list[str]) -> None:
    one, two = breaking
    for _ in range(3):
        assert await ask(caller, one, {"status": 500}) == "upstream_500"
    billed = len(await caller.ledger())
    refused = await asyncio.gather(*(ask(caller, one) for _ in range(5)))
    assert refused == ["breaker_open"] * 5
    assert len(await caller.ledger()) == billed  # nothing was held for them
    deadline = time.monotonic() + PATIENCE_S
    while await ask(caller, two) != "breaker_open":
        assert time.monotonic() < deadline, "the other process has not heard"
    assert caller.last.headers["retry-after"]
    # Somebody probes by and by, and it closes in both.
    while await ask(caller, two):
        assert time.monotonic() < deadline, "no probe was let through"
        await asyncio.sleep(0.2)
    while await ask(caller, one):
        assert time.monotonic() < deadline, "the other process has not heard that it is well"
        await asyncio.sleep(0.2)
    assert (await states(caller, one))[f"model:{MODEL}"] == "closed"


async def test_calls_go_on_elsewhere_while_a_breaker_is_open(caller: Caller, breaking: list[str]) -> None:
    url = breaking[0]
    await caller.admin("PUT", "routes", {"agent": caller.agent, "model": MODEL, "fallbacks": [{"model": OTHER}]})
    await caller.admin("POST", f"breakers/model:{MODEL}/open", url=url)
    assert await ask(caller, url) == ""
    assert caller.last.headers["x-treasurer-model"] == OTHER
    (entry,) = await caller.agrees(1)
    assert (entry["model"], entry["requested_model"], entry["attempt"]) == (OTHER, MODEL, 1)
    await caller.admin("POST", f"breakers/model:{MODEL}/close", url=url)
    assert await ask(caller, url) == ""
    assert "x-treasurer-model" not in caller.last.headers


async def test_the_callers_own_errors_open_nothing(caller: Caller, breaking: list[str]) -> None:
    for _ in range(6):
        assert await ask(caller, breaking[1], {"status": 400}) not in ("breaker_open", "")
    assert await ask(caller, breaking[1]) == ""
