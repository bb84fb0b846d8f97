"""Charges other than text tokens: the ledger has them to the nano-dollar, or the call is refused by name in advance.

Each call sets the provider's usage. The right amounts were computed by hand from the providers' public pages.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import orjson
import pytest
from openai import APIStatusError

from benchmarks.overspend.models import ROUTED
from gateway.stack.state import StackState
from llm_service.administration.acknowledgements import AcknowledgePrices, acknowledge_prices
from llm_service.administration.inputs import read_input
from tests.integration.caller import Caller, open_caller, said

#: More bytes than the tokens that the scripts report, because no text has more tokens than bytes.
LONG = "What does it cost? " * 60


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


def silence(seconds: int, rate: int = 100) -> str:
    """A WAV file in base64, of so few bytes a second that it is small."""
    data = b"\x80" * (seconds * rate)
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 1, 8)
    return base64.b64encode(head + struct.pack("<4sI", b"data", len(data)) + data).decode()


def used(**numbers: int) -> dict[str, Any]:
    """A script by which the provider reports and bills this usage instead of what it has counted."""
    return {"usage": numbers, "billed": numbers, "output_tokens": 5}


async def acknowledge_the_search(caller: Caller, model: str) -> None:
    """LiteLLM's own figure has no search, also where the request has options for it."""
    await caller.ledger()
    note = {"model": model, "note": "LiteLLM leaves out the search"}
    await acknowledge_prices(caller.pool, read_input(AcknowledgePrices, note))


async def test_i4_a_built_in_search_is_posted(caller: Caller) -> None:
    """LiteLLM's cost lacks the fee for this model's search, so the audit fails until that difference is
    acknowledged."""
    model, script = "gpt-4o-search-preview", used(prompt_tokens=60, completion_tokens=150)
    await caller.call(model=model, messages=said(script=script), max_tokens=200)
    await caller.ledger()
    (fault,) = await caller.faults()
    assert fault.startswith(f"{model}: attempts that are priced differently: 1 (")
    assert "$0.02665 is posted, by LiteLLM it is $0.00165" in fault
    await acknowledge_the_search(caller, model)
    (entry,) = await caller.agrees(1)
    assert entry["cost_nano"] == 26_650_000
    assert entry["held_nano"] >= 26_650_000


async def test_i4_a_repricing_confirms_the_price_that_was_posted(caller: Caller) -> None:
    """The two price lists still differ, but an operator has said which one is right for these calls."""
    model, script = "gpt-4o-search-preview", used(prompt_tokens=60, completion_tokens=150)
    since = (await caller.pool.fetchval("SELECT now()")).isoformat()
    await caller.call(model=model, messages=said(script=script), max_tokens=200)
    await caller.ledger()
    (fault,) = await caller.faults()
    assert f"treasurer reprice {model}" in fault
    terms = {"model": model, "since": since}
    shown = await caller.admin("POST", "repricings", terms)
    assert (shown["attempts"], shown["confirmed"], shown["difference_nano"], shown["id"]) == (1, 1, 0, None)
    assert len(await caller.faults()) == 1
    made = await caller.admin("POST", "repricings", {**terms, "apply": True, "note": "LiteLLM leaves out the search"})
    assert [row["agent"] for row in made["agents"]] == [caller.agent]
    listed = (await caller.admin("GET", "repricings"))["data"]
    assert (made["id"], 1, "0.000000000") in {(row["id"], row["attempts"], row["difference"]) for row in listed}
    assert await caller.faults() == []
    assert await caller.posted_nano() == await caller.billed_nano() == 26_650_000


async def test_bad_repricings_are_refused_by_name(stack: StackState, caller: Caller) -> None:
    before = await caller.counts()
    for body, status, param in (
        ({"model": "no-such-model"}, 404, "model"),
        ({"model": "gpt-4o-mini-with-a-fee"}, 400, "model"),
        ({"model": "gpt-4o", "apply": True}, 400, None),
        ({"model": "gpt-4o", "since": "2d", "until": "3d"}, 400, "since"),
        ({"model": "gpt-4o", "until": "soon"}, 400, "until"),
        ({"model": "gpt-4o", "apply": "yes"}, 400, "apply"),
    ):
        address = f"{stack.gateway_url}/admin/v1/repricings"
        headers = {"Authorization": f"Bearer {stack.admin_key}"}
        async with caller.http.post(address, json=body, headers=headers) as answer:
            assert answer.status == status, body
            assert (await answer.json())["error"]["param"] == param, body
    assert await caller.counts() == before


async def test_i1_searches_pass_no_limit(stack: StackState) -> None:
    async with open_caller(stack, "0.05") as caller:
        script = used(prompt_tokens=60, completion_tokens=150)
        for _ in range(4):
            with suppress(APIStatusError):
                await caller.call(model="gpt-4o-search-preview", messages=said(script=script), max_tokens=200)
        # Two calls would cost $0.0533, and the budget is $0.05.
        assert [answer.status for answer in caller.responses] == [200, 429, 429, 429]
        assert await caller.billed_nano() <= 50_000_000
        assert await caller.posted_nano() == await caller.billed_nano()


async def test_i4_a_fee_for_each_request_is_posted(caller: Caller) -> None:
    """The search context is small where a request does not name its size."""
    await caller.call(model="sonar", messages=said(script=used(prompt_tokens=6, completion_tokens=150)), max_tokens=200)
    (entry,) = await caller.agrees(1)
    assert entry["cost_nano"] == 5_156_000
    assert entry["held_nano"] >= 5_156_000


@pytest.mark.parametrize("named", [True, False], ids=["the provider says what it cost", "priced by us"])
@pytest.mark.parametrize(("size", "nano"), [("low", 5_156_000), ("medium", 8_156_000), ("high", 12_156_000)])
async def test_i4_a_search_is_held_and_posted_by_the_size_that_is_asked_for(
    caller: Caller, size: str, nano: int, named: bool
) -> None:
    """https://docs.perplexity.ai/getting-started/pricing: $5, $8 or $12 for a thousand requests, and $1 a million tokens."""
    model = "sonar"
    script = used(prompt_tokens=6, completion_tokens=150) | {"silent_about_cost": not named}
    options = {"search_context_size": size}
    await caller.call(model=model, messages=said(script=script), max_tokens=200, web_search_options=options)
    if not named:
        await acknowledge_the_search(caller, model)
    (entry,) = await caller.agrees(1)
    assert (entry["cost_nano"], entry["cost_source"]) == (nano, "provider" if named else "rates")
    assert (
        nano <= entry["held_nano"] < nano + 1_000_000
    )  # the fee of this size, and tokens at a thousand nano-dollars each
    assert orjson.loads(entry["more_usage"])["search_context"] == size


@pytest.mark.parametrize("size", ["low", "medium", "high"])
async def test_i4_a_search_of_openai_arrives_with_its_size_and_is_posted(caller: Caller, size: str) -> None:
    model, mark = "gpt-4o-search-preview", uuid4().hex
    script = used(prompt_tokens=60, completion_tokens=150) | {"keep_request": True, "mark": mark}
    options: dict[str, Any] = {
        "search_context_size": size,
        "user_location": {"type": "approximate", "approximate": {"country": "CH"}},
    }
    await caller.call(model=model, messages=said(script=script), max_tokens=200, web_search_options=options)
    await acknowledge_the_search(caller, model)
    (entry,) = await caller.agrees(1)
    assert entry["cost_nano"] == 26_650_000
    assert entry["held_nano"] >= 26_650_000
    async with caller.http.get(f"{caller.stack.provider_url}/_sim/requests?mark={mark}") as response:
        (kept,) = (await response.json())["requests"]
    assert kept["body"]["web_search_options"] == options


async def test_i1_searches_that_are_asked_for_of_other_models_are_refused_before_they_are_sent(caller: Caller) -> None:
    before = await caller.counts()
    for model in ("gpt-4o", "gemini-2.5-flash", "claude-sonnet-5-5", ROUTED):
        with pytest.raises(APIStatusError) as refused:
            await caller.call(model=model, web_search_options={"search_context_size": "high"})
        assert (refused.value.status_code, refused.value.code) == (400, "not_priced")
    assert await caller.counts() == before


async def test_i1_research_that_nothing_bounds_is_refused_by_name_before_it_is_sent(caller: Caller) -> None:
    numbers = {"citation_tokens": 7299, "searches": 74, "reasoning_tokens": 73_248}
    script = used(prompt_tokens=108, completion_tokens=3256 + 73_248, **numbers)
    before = await caller.counts()
    with pytest.raises(APIStatusError) as refused:
        await caller.call(model="sonar-deep-research", messages=said(script=script), max_tokens=4000)
    assert refused.value.status_code in (400, 404)
    assert "search" in refused.value.message
    assert await caller.counts() == before


async def test_i4_a_region_that_nobody_asked_for_is_posted(caller: Caller) -> None:
    script = {**used(prompt_tokens=1000, completion_tokens=500), "region": "us"}
    await caller.call(model="claude-sonnet-5-5", messages=said(LONG, script), max_tokens=500)
    (entry,) = await caller.agrees(1)
    assert entry["cost_nano"] == 7_700_000
    assert entry["held_nano"] >= 7_700_000


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_i4_what_a_provider_says_that_a_call_cost_is_posted(caller: Caller, streamed: bool) -> None:
    script = {**used(prompt_tokens=1000, completion_tokens=100), "cost_nano": 123_456}
    answer = await caller.call(model=ROUTED, messages=said(LONG, script), max_tokens=400, stream=streamed)
    if streamed:
        async for _ in answer:
            pass
    (entry,) = await caller.agrees(1)
    assert entry["cost_nano"] == 123_456


async def test_i4_what_is_billed_off_peak_is_posted(caller: Caller) -> None:
    script = used(prompt_tokens=1000, completion_tokens=100)
    await caller.call(model="deepseek-flash", messages=said(LONG, script), max_tokens=100)
    (entry,) = await caller.agrees(1)
    assert entry["cost_nano"] in (210_000, 420_000)
    assert entry["held_nano"] >= entry["cost_nano"]


async def test_i1_a_model_with_a_price_that_nobody_knows_is_refused_by_that_name(caller: Caller) -> None:
    with pytest.raises(APIStatusError) as refused:
        await caller.call(model="gpt-4o-mini-with-a-fee")
    assert refused.value.status_code in (400, 404)
    assert "output_cost_per_answer" in refused.value.message
    assert await caller.invoice() == []


async def test_i4_audio_that_costs_as_much_as_text_is_posted_at_that_price(caller: Caller) -> None:
    """Google's page has one price of input for Gemini 2.5 Pro: $1.25 a million tokens, and $10 of output."""
    script = used(prompt_tokens=9610, completion_tokens=50, audio_tokens=9600)
    sound = {"type": "file", "file": {"file_data": f"data:audio/wav;base64,{silence(300)}"}}
    content = [{"type": "text", "text": said(script=script)[0]["content"]}, sound]
    await caller.call(model="gemini-2.5-pro", messages=[{"role": "user", "content": content}], max_tokens=60)
    (entry,) = await caller.agrees(1)
    assert entry["cost_nano"] == 12_512_500
    assert entry["held_nano"] >= 12_512_500


async def test_i4_images_and_audio_are_posted_at_their_own_price(caller: Caller) -> None:
    """Gemini reports its input by modality, and audio costs three times as much as text."""
    script = used(prompt_tokens=9610, completion_tokens=50, audio_tokens=9600)
    sound = {"type": "file", "file": {"file_data": f"data:audio/wav;base64,{silence(300)}"}}
    content = [{"type": "text", "text": said(script=script)[0]["content"]}, sound]
    with suppress(APIStatusError):
        await caller.call(model="gemini-2.5-flash", messages=[{"role": "user", "content": content}], max_tokens=60)
    if caller.last.status == 200:
        (entry,) = await caller.agrees(1)
        assert entry["cost_nano"] == 9_728_000
        assert entry["held_nano"] >= 9_728_000
    else:
        assert caller.last.status == 400
        assert await caller.invoice() == []
