"""The plugin in the real LiteLLM Proxy: nothing is served without a grant, and every attempt leaves a witness."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest

from gateway.stack.postgres import postgres_answers
from gateway.stack.state import StackState
from llm_service.grants import Grant, digest_of, for_service, sign

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


class Caller:
    """Calls LiteLLM Proxy as the service does, with a grant for each request."""

    def __init__(self, stack: StackState, session: aiohttp.ClientSession) -> None:
        self._stack = stack
        self._session = session

    def grant(self, body: bytes, path: str = CHAT, **changes: Any) -> tuple[UUID, str]:
        now = int(time.time())
        fields: dict[str, Any] = {
            "call_id": uuid4(), "attempt": 1, "agent_id": 1, "agent": "digest", "team": "research",
            "organisation": "default", "key_id": None, "model": json.loads(body)["model"], "path": path,
            "digest": digest_of(body), "issued_at": now, "expires_at": now + 60, **changes,
        }  # fmt: skip
        grant = Grant(**fields)
        return grant.call_id, sign(self._stack.grant_secret, grant)

    def open(self, body: bytes, token: str, path: str = CHAT) -> Any:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return self._session.post(self._stack.proxy_url + path, data=body, headers=headers)

    async def send(self, body: bytes, token: str, path: str = CHAT) -> tuple[int, str]:
        async with self.open(body, token, path) as response:
            return response.status, await response.text()

    async def call(self, body: bytes, path: str = CHAT) -> tuple[UUID, int, str]:
        call_id, token = self.grant(body, path)
        return call_id, *await self.send(body, token, path)


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(keepalive_timeout=4)) as session:
        yield Caller(stack, session)


def chat(model: str = "gpt-4o", text: str = "hello", script: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """The body of a request; `script` tells the simulated provider what to do with it."""
    marker = f" [[sim: {json.dumps(script)}]]" if script else ""
    message = {"role": "user", "content": f"{text} {uuid4()}{marker}"}
    return json.dumps({"model": model, "max_tokens": 40, "messages": [message], **fields}).encode()


async def witnesses(stack: StackState, call_id: UUID, count: int = 1) -> list[asyncpg.Record]:
    """The call's witnesses, sorted by the time of their ends, once there are this many. (After an outage of Postgres, a
    spool may be replayed up to ten seconds late.)
    """
    connection = await asyncpg.connect(stack.database_url)
    try:
        deadline = time.monotonic() + 40
        while True:
            rows = await connection.fetch("SELECT * FROM witnesses WHERE call_id = $1 ORDER BY ended_at", call_id)
            if len(rows) >= count or time.monotonic() > deadline:
                return rows
            await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def test_i3_a_stolen_key_opens_nothing(stack: StackState, caller: Caller) -> None:
    for token in ("sk-tr-" + "x" * 43, stack.proxy_master_key, ""):
        status, text = await caller.send(chat(), token)
        assert status == 401, text
        assert "not a grant" in text
        assert not token or token not in text


async def test_i3_a_replay_is_refused(caller: Caller) -> None:
    body = chat()
    _, token = caller.grant(body)
    answers = await asyncio.gather(*(caller.send(body, token) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [200] + [401] * 7
    assert all("used before" in text for status, text in answers if status == 401)
    async with caller.open(body, token) as response:
        assert response.headers["x-treasurer-refused"] == "grant_used"


async def test_i3_a_grant_opens_no_other_request(caller: Caller) -> None:
    body, other = chat("gpt-4o-mini"), chat("gpt-4o")
    _, token = caller.grant(body)
    assert (await caller.send(other, token))[0] == 401
    _, token = caller.grant(body, model="gpt-4o")
    assert (await caller.send(body, token))[0] == 401
    _, token = caller.grant(body, expires_at=int(time.time()) - 60)
    status, text = await caller.send(body, token)
    assert (status, "expired" in text) == (401, True)
    async with caller.open(body, token) as response:
        assert response.headers["x-treasurer-refused"] == "clock"
        assert abs(float(response.headers["x-treasurer-time"]) - time.time()) < 60


async def test_i3_the_proxy_s_own_pages_are_closed(stack: StackState) -> None:
    headers = {"Authorization": f"Bearer {stack.proxy_master_key}"}
    async with aiohttp.ClientSession(stack.proxy_url, headers=headers) as session:
        for path in ("/v1/models", "/model/info", "/health", "/config/yaml", "/metrics"):
            async with session.get(path) as response:
                assert response.status == 401, path
        async with session.get("/health/liveliness") as response:
            assert response.status == 200


async def test_the_service_reads_models_and_counts_tokens(stack: StackState, caller: Caller) -> None:
    token = sign(stack.grant_secret, for_service("/model/info"))
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{stack.proxy_url}/model/info") as response,
    ):
        models = (await response.json())["data"]
    prices = {model["model_info"]["id"]: model["model_info"] for model in models}
    assert prices["openai-gpt-4o"]["input_cost_per_token"] == 2.5e-06
    assert prices["local-qwen3-8b"]["treasurer_free"] is True
    assert "api_key" not in json.dumps(models)
    body = chat()
    token = sign(stack.grant_secret, for_service("/utils/token_counter", model="gpt-4o", body=body))
    status, text = await caller.send(body, token, "/utils/token_counter")
    assert (status, json.loads(text)["total_tokens"] > 0) == (200, True)


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-4o", "openai"),
        ("claude-haiku-5-5", "anthropic"),
        ("gemini-2.5-flash", "gemini"),
        ("local/llama-3.3-70b", "openai"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_i2_a_success_is_witnessed(
    stack: StackState, caller: Caller, model: str, provider: str, stream: bool
) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    call_id, status, text = await caller.call(chat(model, **options))
    assert status == 200, text
    (witness,) = await witnesses(stack, call_id)
    assert (witness["outcome"], witness["model"], witness["provider"]) == ("success", model, provider)
    assert witness["cost_nano"] > 0
    answers = [line[6:] for line in text.splitlines() if '"usage"' in line] if stream else [text]
    usage = json.loads(answers[-1])["usage"]
    assert (witness["input_tokens"], witness["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])


async def test_i2_embeddings_are_witnessed(stack: StackState, caller: Caller) -> None:
    body = json.dumps({"model": "text-embedding-3-small", "input": "hello"}).encode()
    call_id, status, _ = await caller.call(body, EMBEDDINGS)
    (witness,) = await witnesses(stack, call_id)
    assert (status, witness["outcome"], witness["output_tokens"]) == (200, "success", 0)


async def test_i2_an_attempt_that_the_router_retried_is_witnessed(stack: StackState, caller: Caller) -> None:
    call_id, status, text = await caller.call(chat("gpt-4o-mini", script={"status": 429, "times": 1}))
    assert status == 200, text
    failed, served = await witnesses(stack, call_id, 2)
    assert (failed["outcome"], failed["status"], failed["error"]) == ("failure", 429, "RateLimitError")
    assert served["outcome"] == "success"


async def test_i2_a_failure_is_witnessed_and_not_retried(stack: StackState, caller: Caller) -> None:
    call_id, status, _ = await caller.call(chat("gpt-4.1-mini", script={"status": 500}))
    assert status == 500
    (witness,) = await witnesses(stack, call_id)
    assert (witness["outcome"], witness["status"], witness["cost_nano"]) == ("failure", 500, 0)


async def test_i2_a_caller_who_leaves_a_stream_leaves_a_witness(stack: StackState, caller: Caller) -> None:
    body = chat(script={"output_tokens": 40, "tokens_per_s": 10}, stream=True)
    call_id, token = caller.grant(body)
    async with caller.open(body, token) as response:
        assert response.status == 200
        for _ in range(6):
            await response.content.readline()
    (witness,) = await witnesses(stack, call_id)
    assert (witness["outcome"], witness["status"]) == ("cancelled", 499)
    assert 0 < witness["output_tokens"] < 40
    assert witness["cost_nano"] > 0


async def test_i2_a_stream_that_is_cut_leaves_a_witness_of_what_came(stack: StackState, caller: Caller) -> None:
    body = chat("gpt-4.1-mini", script={"output_tokens": 40, "tokens_per_s": 40, "cut_after_tokens": 10}, stream=True)
    call_id, status, text = await caller.call(body)
    assert status == 200
    assert '"error"' in text
    assert "[DONE]" not in text
    (witness,) = await witnesses(stack, call_id)
    assert witness["outcome"] == "failure"
    assert 0 < witness["output_tokens"] < 40
    assert witness["cost_nano"] > 0


async def test_i2_no_witness_is_lost_while_postgres_restarts(stack: StackState, caller: Caller) -> None:
    running = StackState.read(stack.data_dir)
    assert running is not None
    connection = await asyncpg.connect(stack.database_url)
    try:
        bodies = [chat(script={"first_token_s": 8}) for _ in range(25)]
        granted = [caller.grant(body) for body in bodies]
        slow = [asyncio.create_task(caller.send(body, token)) for body, (_, token) in zip(bodies, granted, strict=True)]
        used = "SELECT count(*) FROM used_grants WHERE call_id = ANY ($1)"
        async with asyncio.timeout(30):
            while await connection.fetchval(used, [call_id for call_id, _ in granted]) < len(slow):
                await asyncio.sleep(0.05)
                assert not any(task.done() for task in slow), "the calls end before Postgres does"
    finally:
        await connection.close()
    os.kill(running.pids["postgres"], signal.SIGINT)
    while await postgres_answers(stack.database_url):
        await asyncio.sleep(0.05)
    late = await caller.call(chat())
    answers = await asyncio.gather(*slow)
    assert {status for status, _ in answers} == {200}, "calls that were under way are served without Postgres"
    deadline = time.monotonic() + 30
    while not await postgres_answers(stack.database_url):
        assert time.monotonic() < deadline, "the supervisor has not brought Postgres back"
        await asyncio.sleep(0.2)
    for call_id, _ in granted:
        assert len(await witnesses(stack, call_id)) == 1
    if late[1] == 503:  # otherwise the supervisor had restarted Postgres before this call
        assert "Postgres does not say" in late[2]
        assert await witnesses(stack, late[0], 0) == []
    await _ready(stack)


async def _ready(stack: StackState) -> None:
    """Wait until the gateways can use Postgres again, for the tests that come next."""
    async with aiohttp.ClientSession() as session:
        for url in stack.gateway_urls:
            for _ in range(100):
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.1)
            else:
                pytest.fail(f"{url} is not ready again")
