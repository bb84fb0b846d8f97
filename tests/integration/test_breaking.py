"""Breakers on the real stack: a failing provider is not asked, calls go to another model, and recovery is noticed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.cli import main
from gateway.stack.state import StackState
from tests.integration.caller import PATIENCE_S, Caller, open_caller, said
from tests.integration.gateways import another_gateway

Capture = pytest.CaptureFixture[str]
MODEL, OTHER = "claude-sonnet-5-5", "gpt-4.1-mini"


@pytest.fixture(scope="module")
def breaking(stack: StackState, stop_with_us: Callable[[int], None], service_dir: Path) -> Iterator[list[str]]:
    """Two more gateway processes on the same stack, with breakers enabled; their addresses."""
    environ = {
        "TREASURER_ADMIN_KEY": stack.admin_key,
        "TREASURER_BREAKER_FAILURES": "3",
        "TREASURER_BREAKER_OPEN_S": "1.5",
    }
    one, other = (service_dir / f"breaking-gateway-{number}.log" for number in (0, 1))
    with (
        another_gateway(stack, stop_with_us, one, environ) as (url, _),
        another_gateway(stack, stop_with_us, other, environ) as (other_url, _),
    ):
        yield [url, other_url]


@pytest.fixture
async def caller(stack: StackState, breaking: list[str]) -> AsyncIterator[Caller]:
    """A caller. Both processes know that every breaker which an earlier test had left open is closed."""
    async with open_caller(stack) as caller:
        deadline = time.monotonic() + PATIENCE_S
        for url in breaking:
            while set((await states(caller, url)).values()) - {"closed"}:
                assert time.monotonic() < deadline, await states(caller, url)
                await asyncio.sleep(0.1)
        yield caller


async def ask(caller: Caller, url: str, script: dict[str, Any] | None = None) -> str:
    """Make a call; return the error's code, or ""."""
    try:
        await caller.client(url).chat.completions.create(model=MODEL, messages=said(script=script), max_tokens=20)
    except openai.APIStatusError as error:
        return str(error.code)
    return ""


async def heard(caller: Caller, url: str) -> None:
    """Wait until this process knows that its open breakers were closed through the other process."""
    deadline = time.monotonic() + PATIENCE_S
    while (await states(caller, url)).get(f"model:{MODEL}", "closed") != "closed":
        assert time.monotonic() < deadline, "it has not heard"
        await asyncio.sleep(0.05)


async def states(caller: Caller, url: str) -> dict[str, str]:
    return {row["name"]: row["state"] for row in (await caller.admin("GET", "breakers", url=url))["data"]}


async def test_a_model_that_fails_is_left_alone_everywhere_and_found_again(caller: Caller, breaking: list[str]) -> None:
    one, two = breaking
    for _ in range(3):
        assert await ask(caller, one, {"status": 500}) == "upstream_500"
    billed = len(await caller.ledger())
    refused = await asyncio.gather(*(ask(caller, one) for _ in range(5)))
    assert refused == ["breaker_open"] * 5
    assert len(await caller.ledger()) == billed  # nothing was held for the refused calls
    deadline = time.monotonic() + PATIENCE_S
    while await ask(caller, two) != "breaker_open":
        assert time.monotonic() < deadline, "the other process has not heard"
    assert caller.last.headers["retry-after"]
    # One of the next calls probes, and the breaker closes in both processes.
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


async def asked(caller: Caller, method: str, url: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {caller.stack.admin_key}"}
    async with caller.http.request(method, url, headers=headers) as response:
        return response.status, (await response.json())["error"]["message"]


async def test_only_breakers_of_the_catalogue_are_set_by_hand(caller: Caller, breaking: list[str]) -> None:
    before = await states(caller, breaking[0])
    for name in ("model:gpt-4oo", "provider:nobody", "gpt-4o", "proxyy", "model:%00", "x" * 3_000):
        status, message = await asked(caller, "POST", f"{breaking[0]}/admin/v1/breakers/{name}/open")
        assert (status, "There is no breaker" in message) == (404, True)
    for seconds in ("0", "-1", "1e9", "nan", "inf"):
        url = f"{breaking[0]}/admin/v1/breakers/proxy/open?seconds={seconds}"
        assert (await asked(caller, "POST", url))[0] in (400, 422)
    assert await states(caller, breaking[0]) == before
    # In these tests the stack's own gateways have no breakers, and report that.
    status, message = await asked(caller, "POST", f"{caller.stack.gateway_url}/admin/v1/breakers/proxy/open")
    assert (status, "TREASURER_BREAKER_FAILURES is 0" in message) == (400, True)


async def test_the_command_line(
    caller: Caller,
    breaking: list[str],
    service_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("TREASURER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    async def treasurer(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["treasurer", "breaker", *arguments])
        code = 0
        try:
            await asyncio.to_thread(main)
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out + err

    assert (await treasurer("list"))[0] == 3  # exit code 3: no stack runs on this data folder
    at = caller.stack.model_copy(update={"data_dir": tmp_path, "gateway_url": breaking[0]})
    at.write()
    code, told = await treasurer("open", f"model:{MODEL}", "--for", "600")
    assert (code, told) == (
        0,
        f"model:{MODEL} is open: no call passes for 600 s, or until `treasurer breaker reset model:{MODEL}`.\n",
    )
    assert await ask(caller, breaking[0]) == "breaker_open"
    assert int(caller.last.headers["retry-after"]) > 500
    code, table = await treasurer("list")
    [line] = [line for line in table.splitlines() if f"model:{MODEL} " in line]
    assert (code, "open" in line, "by hand" in line) == (0, True, True)
    rows = {row["name"]: row for row in json.loads((await treasurer("list", "--json"))[1])}
    assert rows[f"model:{MODEL}"]["state"] == "open"
    code, told = await treasurer("open", "model:slip")
    assert (code, "There is no breaker 'model:slip'" in told) == (1, True)
    assert (await treasurer("reset", f"model:{MODEL}")) == (0, f"model:{MODEL} is closed.\n")
    (closed, opened, *_) = (await caller.admin("GET", "changes?kind=breakers"))["data"]
    assert (opened["actor"], opened["before"]["state"], opened["after"]) == (
        "the fixed administrator's key",
        "closed",
        {"name": f"model:{MODEL}", "state": "open", "seconds": 600},
    )
    assert (closed["before"]["state"], closed["after"]) == ("open", {"name": f"model:{MODEL}", "state": "closed"})
    written = (service_dir / "breaking-gateway-0.log").read_text()
    assert f"breaker model:{MODEL} is set by hand (close) by the fixed administrator's key" in written
    assert await ask(caller, breaking[0]) == ""
    at.model_copy(update={"gateway_url": "http://127.0.0.1:1"}).write()
    code, told = await treasurer("list")
    assert (code, "does not answer" in told) == (3, True)


async def test_the_callers_own_errors_open_nothing(caller: Caller, breaking: list[str]) -> None:
    await heard(caller, breaking[1])
    for _ in range(6):
        assert await ask(caller, breaking[1], {"status": 400}) not in ("breaker_open", "")
    assert await ask(caller, breaking[1]) == ""


async def test_bodies_that_nobody_can_read_open_no_breaker(caller: Caller, breaking: list[str]) -> None:
    """LiteLLM reports mistakes of one agent as its own errors (500). They must not stop other agents from using a
    model."""
    url = breaking[1]
    await heard(caller, url)
    client = caller.client(url)
    bodies: list[tuple[list[Any], dict[str, Any]]] = [
        (said(), {"response_format": "no object"}),
        ([*said(), {"role": "assistant", "tool_calls": 5}], {}),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}], {}),
    ]
    for stream in (False, True):
        for messages, more in bodies:
            with pytest.raises(openai.BadRequestError) as raised:
                await client.chat.completions.create(
                    model=MODEL, messages=messages, max_tokens=20, extra_body=more | {"stream": stream}
                )
            assert (raised.value.code, raised.value.type) == ("upstream_400", "invalid_request_error")
    assert await ask(caller, url) == ""
    assert [entry["state"] for entry in await caller.ledger()] == ["voided"] * 6 + ["posted"]
    assert len(await caller.invoice(1)) == 1
