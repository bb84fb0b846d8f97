"""Idempotency keys over real HTTP, through both gateway processes (invariant I7): a retry is not a second purchase."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import openai
import pytest

from gateway.stack.state import StackState
from tests.chaos.gateways import killed
from tests.chaos.stack import one_more_gateway
from tests.integration.caller import Caller, details, open_caller, said


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


async def send(
    caller: Caller, body: dict[str, Any], key: str, url: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """The raw bytes of an answer, to compare the answers to repeated requests."""
    headers = {"Authorization": f"Bearer {caller.secret}", "Idempotency-Key": key}
    address = f"{url or caller.stack.gateway_url}/v1/chat/completions"
    async with caller.http.post(address, json=body, headers=headers) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.read()


def request(*, script: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "max_tokens": 50, "messages": said(script=script), **more}


def replayed(heads: Iterable[dict[str, str]]) -> int:
    return sum("x-treasurer-replayed" in head for head in heads)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_i7_the_same_key_and_body_is_the_same_call(caller: Caller, streamed: bool) -> None:
    body, key = request(stream=streamed), uuid4().hex
    first = await send(caller, body, key, caller.stack.gateway_urls[0])
    again = await send(caller, body, key, caller.stack.gateway_urls[1])
    assert first[0] == again[0] == 200
    assert first[2] == again[2] != b""
    assert "x-treasurer-replayed" not in first[1]
    assert again[1].pop("x-treasurer-replayed") == "true"
    assert again[1]["x-treasurer-call-id"] == first[1]["x-treasurer-call-id"]
    assert again[1]["content-type"] == first[1]["content-type"]
    await caller.agrees(1)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_i7_the_sdk_s_own_retries_are_free(caller: Caller, streamed: bool) -> None:
    """The SDK sends one key for all tries of a request."""
    messages, headers = said(), {"Idempotency-Key": uuid4().hex}
    texts: list[str] = []
    for url in caller.stack.gateway_urls:
        answer: Any = await caller.client(url).chat.completions.create(
            model="claude-haiku-4-5", max_tokens=60, messages=messages, stream=streamed, extra_headers=headers
        )
        if streamed:
            texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in answer]))
        else:
            texts.append(answer.choices[0].message.content)
    assert texts[0] == texts[1] != ""
    assert [answer.headers.get("x-treasurer-replayed") for answer in caller.responses] == [None, "true"]
    await caller.agrees(1)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_i7_twenty_at_once_are_one_call(caller: Caller, streamed: bool) -> None:
    body, key = request(stream=streamed, script={"first_token_s": 0.4}), uuid4().hex
    urls = caller.stack.gateway_urls
    answers = await asyncio.gather(*(send(caller, body, key, urls[number % 2]) for number in range(20)))
    assert {status for status, _, _ in answers} == {200}
    assert len({content for _, _, content in answers}) == 1
    assert len({head["x-treasurer-call-id"] for _, head, _ in answers}) == 1
    assert replayed(head for _, head, _ in answers) == 19
    await caller.agrees(1)


async def test_i7_twenty_at_once_whose_maker_fails_are_one_purchase(caller: Caller) -> None:
    """The first call fails and costs nothing. Then another of the twenty makes the call, and the others get its
    answer."""
    body, key = request(script={"status": 400, "times": 1, "first_token_s": 0.2}), uuid4().hex
    urls = caller.stack.gateway_urls
    answers = await asyncio.gather(*(send(caller, body, key, urls[number % 2]) for number in range(20)))
    assert sorted(status for status, _, _ in answers) == [200] * 19 + [400]
    assert len({content for status, _, content in answers if status == 200}) == 1
    assert replayed(head for _, head, _ in answers) == 18
    assert [entry["state"] for entry in await caller.ledger()].count("posted") == len(await caller.invoice(1)) == 1
    assert await caller.posted_nano() == await caller.billed_nano()


async def test_i7_embeddings_too(caller: Caller) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    client = caller.client()
    vectors = [
        (await client.embeddings.create(model="text-embedding-3-small", input="one", extra_headers=headers)).data
        for _ in range(2)
    ]
    assert vectors[0] == vectors[1]
    await caller.agrees(1)


async def test_i7_a_replay_costs_nothing(caller: Caller) -> None:
    """The budget has room for only one such call, and its repetitions need no room."""
    body, key = request(), uuid4().hex
    await send(caller, body, key)
    (entry,) = await caller.agrees(1)
    name = f"agent {caller.agent}: total"
    await caller.admin("PATCH", f"budgets/{name}", {"limit": f"{entry['cost_nano'] / 10**9:.9f}"})
    with pytest.raises(openai.RateLimitError):
        await caller.client().chat.completions.create(model="gpt-4o-mini", messages=said())
    status, head, _ = await send(caller, body, key)
    assert (status, head["x-treasurer-replayed"]) == (200, "true")
    await caller.agrees(1)


async def test_i7_another_body_is_a_named_conflict(caller: Caller) -> None:
    key = uuid4().hex
    _, head, _ = await send(caller, request(), key)
    client = caller.client(caller.stack.gateway_urls[1], max_retries=3)
    before = len(caller.responses)
    with pytest.raises(openai.ConflictError) as raised:
        await client.chat.completions.create(
            model="gpt-4o-mini", messages=said(), extra_headers={"Idempotency-Key": key}
        )
    assert raised.value.code == "idempotency_conflict"
    assert details(raised.value)["call_id"] == head["x-treasurer-call-id"]
    assert len(caller.responses) == before + 1  # one response: the SDK did not retry
    # the same key for another operation is a conflict, even with the same input
    with pytest.raises(openai.ConflictError):
        await client.embeddings.create(
            model="text-embedding-3-small", input="x", extra_headers={"Idempotency-Key": key}
        )
    await caller.agrees(1)


async def test_i7_keys_are_each_agent_s_own(stack: StackState, caller: Caller) -> None:
    body, key = request(), uuid4().hex
    async with open_caller(stack) as other:
        first, second = await send(caller, body, key), await send(other, body, key)
        assert replayed((first[1], second[1])) == 0
        await other.settled()
        assert len(await other.invoice()) == 2 or len(await caller.invoice(2)) == 2


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_i7_after_a_refusal_the_key_is_free(stack: StackState, streamed: bool) -> None:
    async with open_caller(stack, budget="0.000001") as caller:
        body, key = request(stream=streamed), uuid4().hex
        status, head, _ = await send(caller, body, key)
        assert (status, head["x-should-retry"]) == (429, "false")
        await caller.admin("PATCH", f"budgets/agent {caller.agent}: total", {"limit": "1"})
        status, head, _ = await send(caller, body, key)
        assert (status, replayed([head])) == (200, 0)
        await caller.agrees(1)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_i7_after_a_provider_s_error_the_key_is_free(caller: Caller, streamed: bool) -> None:
    body = request(stream=streamed, script={"status": 400, "times": 1})
    key = uuid4().hex
    status, _, _ = await send(caller, body, key)
    assert status == 400
    status, head, _ = await send(caller, body, key)
    assert (status, replayed([head])) == (200, 0)
    await caller.settled()
    assert len(await caller.invoice(1)) == 1
    assert await caller.posted_nano() == await caller.billed_nano()


async def plant(
    caller: Caller, body: bytes, key: str, *, state: str | None, cost_nano: int = 5000, source: str = "hold"
) -> UUID:
    """Insert a call whose process died. Its key is taken, the ledger has its end if `state` is given, and no answer was
    kept."""
    call_id = uuid4()
    digest = hashlib.sha256(b"chat\0" + body).digest()
    await caller.pool.execute(
        "INSERT INTO idempotency (agent_id, key, body_digest, call_id, created_at, expires_at)"
        " VALUES ($1, $2, $3, $4, now() - make_interval(secs => $5), now() + interval '1 day')",
        *(caller.agent_id, key, digest, call_id, 60),
    )
    if state is not None:
        await caller.pool.execute(
            "INSERT INTO ledger (call_id, attempt, state, organisation_id, team_id, agent_id, model, window_ids,"
            " held_nano, cost_nano, usage_source, started_at, settled_at) VALUES ($1, 0, $2, 1, 1, $3, 'gpt-4o-mini',"
            " '{}', 5000, $4, $5, now() - interval '1 minute', now() - interval '1 minute')",
            *(call_id, state, caller.agent_id, 0 if state == "voided" else cost_nano, source),
        )
    return call_id


async def send_bytes(caller: Caller, body: bytes, key: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    headers = {"Authorization": f"Bearer {caller.secret}", "Idempotency-Key": key}
    address = f"{caller.stack.gateway_url}/v1/chat/completions"
    async with caller.http.post(address, data=body, headers=headers) as response:
        return response.status, dict(response.headers), await response.json()


@pytest.mark.parametrize("state", ["posted", "expired"])
async def test_i7_an_answer_lost_with_its_process_is_said_and_not_bought_again(caller: Caller, state: str) -> None:
    body, key = json.dumps(request()).encode(), uuid4().hex
    call_id = await plant(caller, body, key, state=state)
    status, head, answer = await send_bytes(caller, body, key)
    assert (status, head["x-should-retry"]) == (409, "false")
    assert answer["error"]["code"] == "idempotency_answer_lost"
    assert answer["error"]["treasurer"] == {"call_id": str(call_id), "cost_nano": 5000}
    assert await caller.invoice() == []


async def test_i7_a_call_of_which_nobody_knows_is_not_bought_again_in_silence(caller: Caller) -> None:
    """The agent's policy releases an expired hold, but the provider may have billed the call all the same."""
    body, key = json.dumps(request()).encode(), uuid4().hex
    await plant(caller, body, key, state="expired", cost_nano=0, source="none")
    status, _, answer = await send_bytes(caller, body, key)
    assert (status, answer["error"]["code"]) == (409, "idempotency_answer_lost")
    assert "may have billed up to $0.000005" in answer["error"]["message"]
    assert await caller.invoice() == []


async def test_i7_after_a_crash_one_purchase_and_no_stuck_key(caller: Caller) -> None:
    """kill -9 while calls are in flight, and just after an answer was kept. A repeated request gets the answer, or an
    error that says that it is lost and what it cost. Nothing is bought twice.
    """
    slow = {"first_token_s": 1.5, "output_tokens": 20}
    bodies = [
        request(script=slow),
        request(model="gpt-4.1-mini", stream=True, script={"tokens_per_s": 20, "output_tokens": 45}),
        request(model="gemini-2.5-flash", stream=True, script=slow),
    ]
    kept, url = request(), caller.stack.gateway_urls
    async with one_more_gateway(caller.stack, killed("llm_service.call.idempotency:Idempotency.finish", "after")) as (
        one,
        _,
    ):
        calls = [send(caller, body, f"key {n}", one) for n, body in enumerate([*bodies, kept])]
        ends = await asyncio.gather(*calls, return_exceptions=True)  # wait for all calls, also if one fails
    assert all(isinstance(end, aiohttp.ClientError) for end in ends), ends
    status, head, _ = await send(caller, kept, "key 3", url[0])
    assert (status, head["x-treasurer-replayed"]) == (200, "true")
    again = [send(caller, body, f"key {n}", url[side]) for n, body in enumerate(bodies) for side in (0, 1)]
    answers = await asyncio.gather(*again)
    assert [status for status, _, _ in answers] == [409] * 6
    told = [json.loads(content)["error"] for _, _, content in answers]
    assert {error["code"] for error in told} == {"idempotency_answer_lost"}
    entries = {str(entry["call_id"]): entry["cost_nano"] for entry in await caller.ledger()}
    assert len(entries) == len(await caller.invoice(4)) == 4
    for error in told:
        assert entries[error["treasurer"]["call_id"]] == error["treasurer"]["cost_nano"] > 0
    assert await caller.billed_nano() <= sum(entries.values())
    status, head, _ = await send(caller, bodies[0], "another key")
    assert (status, replayed([head])) == (200, 0)
    assert await caller.faults() == []


@pytest.mark.parametrize("state", ["voided", None])
async def test_i7_a_call_that_died_before_it_cost_anything_is_made_again(caller: Caller, state: str | None) -> None:
    body, key = json.dumps(request()).encode(), uuid4().hex
    await plant(caller, body, key, state=state)
    status, head, _ = await send_bytes(caller, body, key)
    assert (status, replayed([head])) == (200, 0)
    await caller.settled()
    assert len(await caller.invoice(1)) == 1


async def test_i7_a_caller_that_left_finds_its_answer(caller: Caller) -> None:
    """The connection breaks before the answer arrives. The call continues, is paid for once, and its answer is kept."""
    body, key = request(script={"first_token_s": 1.0}), uuid4().hex
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send(caller, body, key), 0.5)
    status, head, _ = await send(caller, body, key, caller.stack.gateway_urls[1])
    assert (status, head["x-treasurer-replayed"]) == (200, "true")
    await caller.agrees(1)


async def test_i7_a_stream_that_its_caller_left_is_read_to_its_end_and_replayed(caller: Caller) -> None:
    body = request(stream=True, script={"tokens_per_s": 30, "output_tokens": 45})
    headers = {"Authorization": f"Bearer {caller.secret}", "Idempotency-Key": "left"}
    address = f"{caller.stack.gateway_url}/v1/chat/completions"
    async with caller.http.post(address, json=body, headers=headers) as response:
        first = await response.content.readany()
    status, head, whole = await send(caller, body, "left", caller.stack.gateway_urls[1])
    assert (status, head["x-treasurer-replayed"]) == (200, "true")
    assert whole.startswith(first)
    assert whole.endswith(b"data: [DONE]\n\n")
    await caller.agrees(1)


@pytest.mark.parametrize("key", ["x" * 256, "a\tb"], ids=["long", "tab"])
async def test_i7_a_key_that_is_none_is_refused(caller: Caller, key: str) -> None:
    status, _, content = await send(caller, request(), key)
    assert status == 400
    assert json.loads(content)["error"]["param"] == "idempotency-key"
    assert await caller.invoice() == []
