"""Governed calls that go wrong: providers that refuse, report wrong usage, cut or hang, and callers that leave.

What must hold (I2):
- Each call has one end in the ledger, no hold is left, and the audit finds no fault.
- A call that a provider refused costs nothing.
- If a provider's report of usage is missing or wrong, the ledger is not below its invoice.
- If no answer came, the hold stays until a witness arrives, or until it expires and is posted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import openai
import pytest

from gateway.stack.state import StackState
from tests.chaos.gateways import killed
from tests.chaos.stack import one_more_gateway
from tests.integration.caller import PATIENCE_S, Caller, open_caller, said
from tests.integration.gateways import another_gateway

STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
#: One model for each wire format and price.
KINDS = ("gpt-4.1-mini", "claude-haiku-5-5", "gemini-2.5-flash", "local/llama-3.3-70b")
#: LiteLLM does not use a deployment for this long after it failed too often (router_settings.cooldown_time).
COOLDOWN_S = 5.5
#: The hasty gateway allows a call this many seconds, and a hold one more.
HASTE_S = 2.0


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


@pytest.fixture(scope="module", autouse=True)
def cooled_down(stack: StackState) -> Iterator[None]:
    """Wait at the end until LiteLLM uses all deployments again. After failures it does not use them for a while."""
    yield
    time.sleep(COOLDOWN_S)


@pytest.fixture(scope="module")
def hasty(stack: StackState, stop_with_us: Callable[[int], None], service_dir: Path) -> Iterator[str]:
    """One more gateway process on the same stack, with a short time-out for calls; its address."""
    environ = {
        "TREASURER_CALL_TIMEOUT_S": str(HASTE_S),
        "TREASURER_HOLD_MARGIN_S": "1",
        "TREASURER_SWEEP_INTERVAL_S": "0.5",
    }
    with another_gateway(stack, stop_with_us, service_dir / "hasty-gateway.log", environ) as (url, _):
        yield url


async def ask(caller: Caller, model: str, streamed: bool, script: dict[str, Any], url: str | None = None) -> int:
    """Make the call and read the answer to its end; return the number of chunks (1 for a whole answer)."""
    answer: Any = await caller.client(url).chat.completions.create(
        model=model, messages=said(script=script), max_tokens=300, stream=streamed
    )
    return len([chunk async for chunk in answer]) if streamed else 1


async def one_end(caller: Caller) -> asyncpg.Record:
    """The one entry of the one call, when nothing is held any more and the audit finds no fault."""
    (entry,) = await caller.ledger()
    assert await caller.faults() == []
    return entry


async def not_below_the_bill(caller: Caller) -> asyncpg.Record:
    """Like `one_end`, and check that the entry is at least the provider's bill and at most the hold."""
    entry = await one_end(caller)
    await caller.invoice(1)
    assert await caller.billed_nano() <= entry["cost_nano"] <= entry["held_nano"]
    return entry


#: Without whole answers of Anthropic and Google: LiteLLM cannot read them without usage, so they are lost (see below).
UNTOLD = [
    (usage, model, streamed)
    for usage in ("missing", "zero")
    for model in KINDS
    for streamed in (False, True)
    if usage == "zero" or streamed or model in ("gpt-4.1-mini", "local/llama-3.3-70b")
]


@pytest.mark.parametrize(("usage", "model", "streamed"), UNTOLD)
async def test_i2_a_usage_that_is_not_reported_is_estimated_not_below_the_bill(
    caller: Caller, usage: str, model: str, streamed: bool
) -> None:
    await ask(caller, model, streamed, {"usage": usage})
    entry = await not_below_the_bill(caller)
    assert (entry["state"], entry["usage_source"], entry["status"]) == ("posted", "estimated", 200)


@pytest.mark.parametrize(
    ("model", "streamed", "script"),
    [
        ("gpt-5-mini", False, {"usage": "missing"}),
        ("gpt-5-mini", True, {"usage": "zero"}),
        ("gemini-2.5-flash", False, {"usage": "zero"}),
        ("gemini-2.5-flash", True, {"usage": "missing"}),
        ("gpt-5-mini", True, {"cut_after_tokens": 10, "tokens_per_s": 300}),
        ("gemini-2.5-flash", True, {"cut_after_tokens": 10, "tokens_per_s": 300}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
async def test_i2_what_a_model_thought_unseen_is_not_below_the_bill(
    caller: Caller, model: str, streamed: bool, script: dict[str, Any]
) -> None:
    """Only the provider can count hidden reasoning. Without its report, the whole output of the hold is paid for."""
    script = {"reasoning_tokens": 200, "output_tokens": 40, **script}
    await asyncio.gather(ask(caller, model, streamed, script), return_exceptions=True)
    entry = await not_below_the_bill(caller)
    assert (entry["usage_source"], entry["output_tokens"]) == ("estimated", 300)


@STREAMED
async def test_i2_an_input_that_was_written_to_a_cache_is_not_below_the_bill(caller: Caller, streamed: bool) -> None:
    """Writing to a cache for an hour costs twice as much as input, and this provider's usage does not report the
    writing."""
    script = {"usage": "missing" if streamed else "zero", "cache_write_1h_tokens": 5000, "output_tokens": 5}
    (message,) = said("Think about caches and their costs. " * 100, script)
    part: Any = {"type": "text", "text": message["content"], "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    answer: Any = await caller.client().chat.completions.create(
        model="claude-haiku-4-5", messages=[{"role": "user", "content": [part]}], max_tokens=20, stream=streamed
    )
    if streamed:
        assert len([chunk async for chunk in answer]) > 2
    entry = await not_below_the_bill(caller)
    assert entry["usage_source"] == "estimated"


#: Reports of usage for an answer of 200 tokens; the provider bills the real numbers.
CONTRADICTIONS = ({"completion_tokens": 1}, {"cached_tokens": 9999}, {"completion_tokens": 2 * 10**18})


@pytest.mark.parametrize("usage", CONTRADICTIONS, ids=str)
async def test_i2_a_usage_that_contradicts_itself_or_its_answer_is_not_believed(
    caller: Caller, usage: dict[str, int]
) -> None:
    script = {"usage": usage, "output_tokens": 200}
    await asyncio.gather(*(ask(caller, model, streamed, script) for model in KINDS for streamed in (False, True)))
    entries = await caller.ledger()
    assert {entry["usage_source"] for entry in entries} == {"estimated"}
    assert all(entry["cost_nano"] <= entry["held_nano"] for entry in entries)
    for model in KINDS:  # a line of the bill does not name its call, so compare the sums for each model
        billed = sum(line["cost_nano"] for line in await caller.invoice() if line["model"] == model.rpartition("/")[2])
        assert 0 < billed <= sum(entry["cost_nano"] for entry in entries if entry["model"] == model)
    assert await caller.faults() == []


async def test_i2_a_usage_that_is_not_believed_proves_nothing_after_a_crash_either(caller: Caller) -> None:
    """The sweeper must not believe a report in a witness that the gateway would not believe. The whole hold is
    posted."""
    async with one_more_gateway(caller.stack, killed("llm_service.call.settlement:Settler.settle", "before")) as (
        url,
        _,
    ):
        script = {"usage": {"completion_tokens": 1}, "output_tokens": 250}
        calls = [ask(caller, "gpt-4.1-mini", streamed, script, url) for streamed in (False, True)]
        await asyncio.gather(*calls, return_exceptions=True)
    await caller.settled(60)
    entries = await caller.ledger()
    assert [(entry["state"], entry["cost_nano"] - entry["held_nano"]) for entry in entries] == [("expired", 0)] * 2
    assert 0 < await caller.billed_nano() <= await caller.posted_nano()


@pytest.mark.parametrize(
    ("streamed", "script"),
    [
        (False, {"usage": "missing"}),
        (True, {"usage": "missing"}),
        (True, {"cut_after_tokens": 90, "output_tokens": 60, "tokens_per_s": 300}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
async def test_i2_all_choices_are_estimated_not_below_the_bill(
    caller: Caller, streamed: bool, script: dict[str, Any]
) -> None:
    request = caller.client().chat.completions.create(
        model="gpt-4.1-mini", messages=said(script=script), max_tokens=300, n=3, stream=streamed
    )

    async def read() -> int:
        answer: Any = await request
        return len([chunk async for chunk in answer]) if streamed else 1

    await asyncio.gather(read(), return_exceptions=True)
    entry = await not_below_the_bill(caller)
    assert entry["usage_source"] == "estimated"
    assert entry["cost_nano"] < entry["held_nano"]


@pytest.mark.parametrize("usage", ["missing", "zero"])
async def test_i2_embeddings_without_usage_are_estimated_not_below_the_bill(caller: Caller, usage: str) -> None:
    text = said(script={"usage": usage})[0]["content"]
    await caller.client().embeddings.create(model="text-embedding-3-small", input=[text, "日本語"])
    entry = await not_below_the_bill(caller)
    assert (entry["usage_source"], entry["output_tokens"]) == ("estimated", 0)


@STREAMED
@pytest.mark.parametrize("model", KINDS)
async def test_a_usage_that_is_too_high_is_posted_as_reported(caller: Caller, model: str, streamed: bool) -> None:
    await ask(caller, model, streamed, {"usage": {"completion_tokens": 299}, "output_tokens": 20})
    entry = await not_below_the_bill(caller)
    assert (entry["usage_source"], entry["output_tokens"]) == ("provider", 299)
    assert await caller.billed_nano() < entry["cost_nano"]


async def test_i1_a_usage_above_the_hold_is_posted_and_the_audit_names_it(caller: Caller) -> None:
    """No hold covers whatever a provider may report. The report is posted; the gauge and the audit show the overshoot."""
    await ask(
        caller, "gpt-4.1-mini", False, {"usage": {"completion_tokens": 5000}, "billed": {"completion_tokens": 5000}}
    )
    (entry,) = await caller.ledger()
    assert entry["output_tokens"] == 5000
    assert entry["cost_nano"] == await caller.billed_nano() > entry["held_nano"]
    (fault,) = await caller.faults()
    assert "overshoot" in fault


@pytest.mark.parametrize(
    ("model", "streamed", "script", "status"),
    [
        ("gpt-5-mini", False, {"status": 429, "retry_after": 7}, 429),
        ("gpt-5-mini", True, {"status": 429, "retry_after": 7}, 429),
        ("claude-sonnet-5-5", False, {"status": 500}, 500),
        ("claude-sonnet-5-5", True, {"status": 503, "retry_after": 3}, 503),
        ("gemini-2.5-pro", False, {"status": 429, "retry_after": 7}, 429),
        ("gemini-2.5-pro", True, {"status": 500}, 500),
        ("gpt-4o", False, {"status": 400}, 400),
        ("gpt-4o", True, {"status": 400}, 400),
        (
            "local/qwen3-8b",
            True,
            {"status": 401},
            502,
        ),  # a wrong provider key is not the caller's fault
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
async def test_what_a_provider_refuses_costs_nothing(
    caller: Caller, model: str, streamed: bool, script: dict[str, Any], status: int
) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        await ask(caller, model, streamed, script)
    error = raised.value
    assert error.status_code == status
    assert error.response.headers.get("retry-after") == (
        str(script["retry_after"]) if "retry_after" in script else None
    )
    # Callers must not learn what is wrong with the operator's key.
    assert ("Simulated error" in error.message) is (script["status"] != 401)
    entry = await one_end(caller)
    assert (entry["state"], entry["cost_nano"]) == ("voided", 0)
    assert await caller.invoice() == []
    (budget,) = (await caller.admin("GET", f"budgets?agent={caller.agent}"))["data"]
    assert (budget["posted_nano"], budget["pending_nano"]) == (0, 0)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_another_deployment_is_tried_and_billed_once(caller: Caller, streamed: bool) -> None:
    """gpt-4o-mini has two deployments: the second serves what the first refuses, under the same hold."""
    await ask(caller, "gpt-4o-mini", streamed, {"status": 503, "times": 1})
    entry = (await caller.agrees(1))[0]
    assert entry["deployment"] in ("openai-gpt-4o-mini-a", "openai-gpt-4o-mini-b")


@pytest.mark.parametrize("model", KINDS)
async def test_i2_a_stream_that_the_provider_cuts_is_posted_once(caller: Caller, model: str) -> None:
    script = {"cut_after_tokens": 40, "output_tokens": 200, "tokens_per_s": 100}
    with pytest.raises(openai.APIError):
        await ask(caller, model, True, script)
    entry = await not_below_the_bill(caller)
    assert (entry["state"], entry["status"], entry["error_code"]) == ("posted", 502, "upstream_cut")
    (line,) = await caller.invoice(1)
    assert (line["state"], line["output_tokens"] >= 40) == ("cut", True)
    assert entry["cost_nano"] < entry["held_nano"]  # an estimate, not the whole hold


async def leave(caller: Caller, model: str, after: int, script: dict[str, Any]) -> None:
    """Ask for a stream, and leave in the middle of it."""
    stream: Any = await caller.client().chat.completions.create(
        model=model, messages=said(script=script), max_tokens=600, stream=True
    )
    chunks = aiter(stream)
    for _ in range(after):
        await anext(chunks)
    await stream.close()


@pytest.mark.parametrize("model", ["gpt-4.1-mini", "claude-haiku-5-5", "local/llama-3.3-70b"])
@pytest.mark.parametrize("after", [1, 8])
async def test_i2_a_caller_that_leaves_a_stream_pays_for_what_it_got(caller: Caller, model: str, after: int) -> None:
    await leave(caller, model, after, {"tokens_per_s": 25, "output_tokens": 500})
    entry = await not_below_the_bill(caller)
    assert (entry["state"], entry["status"], entry["error_code"]) == ("posted", 499, "client_left")
    (line,) = await caller.invoice(1)
    assert line["state"] == "client_left"  # the proxy closed its connection, so the provider stops generating
    assert line["output_tokens"] < 400
    assert entry["cost_nano"] < entry["held_nano"] // 2
    assert (await caller.witness(entry["call_id"]))["outcome"] == "cancelled"


@pytest.mark.parametrize("model", [*KINDS, "gpt-5-mini"])
async def test_i2_a_caller_that_leaves_after_the_last_token_pays_what_is_billed(caller: Caller, model: str) -> None:
    """The whole answer is generated, and only the report of usage has not arrived."""
    stream: Any = await caller.client().chat.completions.create(
        model=model, messages=said(script={"output_tokens": 60}), max_tokens=300, stream=True
    )
    async for chunk in stream:
        if chunk.choices[0].finish_reason:
            await stream.close()
            break
    (entry,) = await caller.agrees(1)
    assert (entry["usage_source"] in ("provider", "witness"), entry["output_tokens"]) == (True, 60)


@pytest.mark.parametrize("model", ["gpt-5-mini", "gemini-2.5-flash"])
async def test_i2_what_a_model_thought_unseen_is_paid_by_who_leaves(caller: Caller, model: str) -> None:
    """Only the end of the stream reports hidden reasoning, so the stream is read to its end, and the ledger equals the
    bill."""
    await leave(caller, model, 1, {"tokens_per_s": 100, "reasoning_tokens": 60, "output_tokens": 40})
    (entry,) = await caller.agrees(1)
    assert (entry["reasoning_tokens"], entry["usage_source"]) == (60, "provider")


async def test_i2_a_caller_that_leaves_before_the_first_token_pays_for_its_input(caller: Caller) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask(caller, "gpt-4.1-mini", True, {"first_token_s": 30}), 1.0)
    entry = await not_below_the_bill(caller)
    assert entry["cost_nano"] > 0
    assert len(await caller.invoice(1)) == 1


@pytest.mark.parametrize("model", ["gpt-4.1-mini", "claude-haiku-5-5", "gemini-2.5-flash"])
async def test_i2_a_caller_that_leaves_a_whole_answer_pays_its_true_cost(caller: Caller, model: str) -> None:
    """The provider bills the whole answer although the caller has left, so Treasurer waits for the answer."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask(caller, model, False, {"first_token_s": 1.0}), 0.4)
    assert await caller.held() == 1
    (entry,) = await caller.agrees(1)
    assert (entry["usage_source"], entry["status"]) == ("provider", 200)


async def test_i2_many_that_leave_leave_nothing_behind(caller: Caller) -> None:
    script = {"tokens_per_s": 25, "output_tokens": 200}
    await asyncio.gather(*(leave(caller, "gpt-4.1-mini", number % 4 + 1, script) for number in range(12)))
    entries = await caller.ledger()
    assert [entry["state"] for entry in entries] == ["posted"] * 12
    assert len(await caller.invoice(12)) == 12
    assert await caller.faults() == []
    assert sum(entry["cost_nano"] for entry in entries) >= await caller.billed_nano()


LOST: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("gpt-4.1-mini", False, {"cut_before_headers": True, "billed": "full"}),
    ("claude-haiku-5-5", False, {"cut_after_tokens": 10}),
    ("claude-haiku-5-5", False, {"usage": "missing"}),
    ("gemini-2.5-flash", False, {"usage": "missing"}),
    ("gemini-2.5-flash", True, {"cut_before_headers": True, "billed": "full"}),
    ("local/llama-3.3-70b", True, {"cut_before_headers": True, "billed": "full"}),
)


async def test_i2_answers_that_were_billed_and_lost_are_not_free(caller: Caller, hasty: str) -> None:
    """LiteLLM answers with its own error. Nobody knows whether the provider served the call, so the hold is posted."""
    answers = await asyncio.gather(*(ask(caller, *each, hasty) for each in LOST), return_exceptions=True)
    assert all(isinstance(answer, openai.APIStatusError) for answer in answers), answers
    assert len(await caller.invoice(len(LOST))) == len(LOST)
    entries = await caller.ledger()
    assert [(entry["state"], entry["usage_source"]) for entry in entries] == [("expired", "hold")] * len(LOST)
    assert all(entry["cost_nano"] == entry["held_nano"] for entry in entries)
    assert await caller.posted_nano() >= await caller.billed_nano()
    assert await caller.faults() == []


async def test_i2_a_retry_that_consumed_tokens_is_paid_twice(caller: Caller, hasty: str) -> None:
    """Each first attempt was served, but its answer was lost. Each second attempt has its own hold and cost."""
    await caller.admin("PUT", "routes", {"agent": caller.agent, "model": "*", "retries": 1})
    lost: dict[str, Any] = {"cut_before_headers": True, "billed": "full", "times": 1}
    await asyncio.gather(*(ask(caller, "gpt-4.1-mini", streamed, lost, hasty) for streamed in (False, True)))
    entries = await caller.ledger()
    ends = sorted((entry["attempt"], entry["state"], entry["usage_source"]) for entry in entries)
    assert ends == [(0, "expired", "hold")] * 2 + [(1, "posted", "provider")] * 2
    lines = await caller.invoice()
    assert len(lines) == 4
    again = {entry["cost_nano"] for entry in entries if entry["attempt"] == 1}
    assert again <= {line["cost_nano"] for line in lines}
    assert await caller.billed_nano() <= await caller.posted_nano()
    assert await caller.faults() == []


async def test_i2_a_provider_that_hangs_is_given_up(caller: Caller, hasty: str) -> None:
    """The holds expire and are posted. If an answer arrives later, the proxy's witness corrects the ledger."""
    hang: dict[str, Any] = {"hang_s": HASTE_S + 2.5}
    calls = [(False, hang), (True, hang), (True, {**hang, "hang_after_tokens": 5, "output_tokens": 50})]
    began = time.monotonic()
    errors = await asyncio.gather(
        *(ask(caller, "gpt-4.1-mini", streamed, script, hasty) for streamed, script in calls), return_exceptions=True
    )
    assert time.monotonic() - began >= HASTE_S
    assert [error.code for error in errors if isinstance(error, openai.APIError)] == ["upstream_timeout"] * 3, errors
    deadline = time.monotonic() + PATIENCE_S
    while {entry["state"] for entry in await caller.ledger()} != {"expired", "adjusted"}:
        assert time.monotonic() < deadline, "the witness of the whole answer did not correct the ledger"
        await asyncio.sleep(0.2)
    entries = await caller.ledger()
    corrected = [entry["call_id"] for entry in entries if entry["state"] == "adjusted"]
    paid = [sum(entry["cost_nano"] for entry in entries if entry["call_id"] == call_id) for call_id in corrected]
    while len(lines := await caller.invoice()) < 3:
        assert time.monotonic() < deadline, "the provider has not ended all three"
        await asyncio.sleep(0.2)
    assert set(paid) <= {line["cost_nano"] for line in lines if line["state"] == "complete"}
    assert await caller.posted_nano() >= await caller.billed_nano()
    assert await caller.faults() == []
