"""Failover on the real stack: another model is another attempt with a separate hold. The invoice is the judge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import PATIENCE_S, Caller, open_caller, said, text_of

STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
FIRST, SECOND = "gpt-4.1-mini", "claude-haiku-5-5"


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar. Its calls for one model fall back to another provider's model."""
    async with open_caller(stack) as caller:
        await route(caller, fallbacks=[{"model": SECOND}])
        yield caller


async def route(caller: Caller, model: str = FIRST, **policy: Any) -> None:
    await caller.admin("PUT", "routes", {"agent": caller.agent, "model": model, **policy})


async def ask(
    caller: Caller, streamed: bool, script: dict[str, Any], model: str = FIRST, *, max_tokens: int = 60
) -> str:
    answer: Any = await caller.client().chat.completions.create(
        model=model, messages=said(script=script), max_tokens=max_tokens, stream=streamed
    )
    if not streamed:
        return answer.choices[0].message.content
    return text_of([chunk async for chunk in answer])


async def attempts(caller: Caller) -> list[tuple[int, str, str]]:
    return [(row["attempt"], row["model"], row["state"]) for row in await caller.ledger()]


@STREAMED
@pytest.mark.parametrize("status", [500, 502, 503, 529, 429])
async def test_another_model_serves_what_the_first_refused(caller: Caller, streamed: bool, status: int) -> None:
    assert await ask(caller, streamed, {"status": status, "times": 1})
    headers = caller.last.headers
    assert (headers["x-treasurer-model"], headers["x-treasurer-attempts"]) == (SECOND, "2")
    assert await attempts(caller) == [(0, FIRST, "voided"), (1, SECOND, "posted")]
    (line,) = await caller.invoice(1)
    assert line["cost_nano"] == await caller.posted_nano()
    assert await caller.faults() == []


async def test_embeddings_fall_back(caller: Caller) -> None:
    await route(caller, "text-embedding-3-small", fallbacks=[{"model": "text-embedding-3-large"}])
    text = said(script={"status": 500, "times": 1})[0]["content"]
    await caller.client().embeddings.create(model="text-embedding-3-small", input=text)
    assert await attempts(caller) == [
        (0, "text-embedding-3-small", "voided"), (1, "text-embedding-3-large", "posted"),
    ]  # fmt: skip
    assert await caller.posted_nano() == await caller.billed_nano() > 0


@STREAMED
async def test_the_callers_own_error_ends_the_call(caller: Caller, streamed: bool) -> None:
    with pytest.raises(openai.BadRequestError):
        await ask(caller, streamed, {"status": 400, "times": 1})
    assert await attempts(caller) == [(0, FIRST, "voided")]


async def test_a_request_that_is_too_long_goes_to_a_longer_model(caller: Caller) -> None:
    too_long = {"error": {"message": "This model's maximum context length is 8192 tokens.", "type": "invalid_request_error", "code": "context_length_exceeded"}}  # fmt: skip
    await ask(caller, False, {"status": 400, "error": too_long, "times": 1})
    assert await attempts(caller) == [(0, FIRST, "voided"), (1, SECOND, "posted")]


@STREAMED
async def test_the_same_model_again_and_then_the_last_error_with_all_attempts(caller: Caller, streamed: bool) -> None:
    await route(caller, fallbacks=[{"model": SECOND}], retries=1)
    with pytest.raises(openai.APIStatusError) as raised:
        await ask(caller, streamed, {"status": 500})
    told = raised.value.response.json()["error"]
    assert [each["model"] for each in told["treasurer"]["attempts"]] == [FIRST, FIRST, SECOND, SECOND]
    assert [state for _, _, state in await attempts(caller)] == ["voided"] * 4
    assert await caller.invoice() == []


async def test_attempts_are_bounded(caller: Caller) -> None:
    await route(caller, fallbacks=[{"model": SECOND}], retries=3, max_attempts=2)
    with pytest.raises(openai.APIStatusError):
        await ask(caller, False, {"status": 500})
    assert await attempts(caller) == [(0, FIRST, "voided"), (1, FIRST, "voided")]


async def test_money_bounds_a_call_with_all_its_attempts(caller: Caller) -> None:
    """The first attempt may have been billed, so its hold counts, and nothing is left for a second one."""
    await route(caller, fallbacks=[{"model": SECOND}], max_cost="0.0002")
    lost = {"cut_before_headers": True, "billed": "full", "times": 1}
    with pytest.raises(openai.APIStatusError):
        await ask(caller, False, lost)
    assert await caller.held() == 1
    assert len(await caller.invoice(1)) == 1


async def test_a_stream_that_breaks_before_its_first_token_goes_on_elsewhere(caller: Caller) -> None:
    assert await ask(caller, True, {"cut_after_tokens": 0, "first_token_s": 0.1, "times": 1})
    assert caller.last.headers["x-treasurer-model"] == SECOND


async def test_a_stream_that_breaks_after_its_first_token_does_not(caller: Caller) -> None:
    with pytest.raises(openai.APIError):
        await ask(caller, True, {"cut_after_tokens": 20, "tokens_per_s": 100, "times": 1})
    assert await attempts(caller) == [(0, FIRST, "posted")]
    assert "x-treasurer-model" not in caller.last.headers
    assert await caller.billed_nano() <= await caller.posted_nano()


async def test_a_first_token_that_does_not_come_in_time(caller: Caller) -> None:
    await route(caller, fallbacks=[{"model": SECOND}], timeouts={"first_token_s": 1.0}, on_leave="finish")
    assert await ask(caller, True, {"first_token_s": 4, "times": 1})
    assert caller.last.headers["x-treasurer-model"] == SECOND
    # The slow attempt is read to its end, and posted at its true cost.
    states = await attempts(caller)
    assert sorted(states) == [(0, FIRST, "posted"), (1, SECOND, "posted")]
    assert await caller.posted_nano() == await caller.billed_nano()
    assert len(await caller.invoice(2)) == 2


async def test_a_stream_that_is_abandoned_before_its_first_token_is_reported_and_booked_as_such(caller: Caller) -> None:
    await route(caller, timeouts={"first_token_s": 1.0})
    with pytest.raises(openai.APIStatusError) as told:
        await ask(caller, True, {"first_token_s": 3})
    assert (told.value.status_code, told.value.code) == (504, "upstream_timeout")
    (row,) = await caller.ledger()
    assert (row["state"], row["status"], row["error_code"]) == ("posted", 504, "upstream_timeout")
    assert await caller.billed_nano() <= row["cost_nano"]


@pytest.mark.parametrize("on_leave", ["cancel", "finish"])
async def test_a_stream_that_takes_too_long_in_all_is_ended_with_an_error(caller: Caller, on_leave: str) -> None:
    await route(caller, fallbacks=[{"model": SECOND}], timeouts={"total_s": 1.5}, on_leave=on_leave)
    with pytest.raises(openai.APIError, match="did not answer in time"):
        await ask(caller, True, {"tokens_per_s": 15, "output_tokens": 60})
    assert "x-treasurer-model" not in caller.last.headers  # the first token had already been sent to the caller
    (row,) = await caller.ledger()
    source = "witness" if on_leave == "finish" else "estimated"
    assert (row["model"], row["state"], row["usage_source"]) == (FIRST, "posted", source)
    billed = await caller.billed_nano()
    assert billed == row["cost_nano"] if on_leave == "finish" else 0 < billed <= row["cost_nano"]
    assert await caller.faults() == []


async def test_a_stream_that_falls_silent_costs_what_was_got_of_it(caller: Caller) -> None:
    """The cost is less than the whole hold, although the stream never ended, because the proxy reports what it had
    read."""
    await route(caller, fallbacks=[{"model": SECOND}], timeouts={"silence_s": 1.0})
    script = {"hang_after_tokens": 10, "hang_s": 8, "output_tokens": 600}
    with pytest.raises(openai.APIError, match="did not answer in time"):
        await ask(caller, True, script, max_tokens=2000)
    (row,) = await caller.ledger()
    assert (row["state"], row["status"], row["error_code"]) == ("posted", 504, "upstream_timeout")
    assert row["usage_source"] == "estimated"
    assert 0 < await caller.billed_nano() <= row["cost_nano"] < row["held_nano"] / 5
    assert await caller.faults() == []


async def test_a_stream_whose_time_is_over_before_its_first_token_goes_on_elsewhere(caller: Caller) -> None:
    await route(caller, fallbacks=[{"model": SECOND}], timeouts={"total_s": 1.0})
    assert await ask(caller, True, {"first_token_s": 3, "times": 1})
    assert caller.last.headers["x-treasurer-model"] == SECOND
    assert sorted(await attempts(caller)) == [(0, FIRST, "posted"), (1, SECOND, "posted")]
    assert await caller.billed_nano() <= await caller.posted_nano()


async def test_a_whole_answer_that_does_not_come_in_time(caller: Caller) -> None:
    await route(caller, fallbacks=[{"model": SECOND}], timeouts={"total_s": 1.0})
    assert await ask(caller, False, {"hang_s": 3, "times": 1})
    assert caller.last.headers["x-treasurer-model"] == SECOND
    assert sorted(await attempts(caller)) == [(0, FIRST, "posted"), (1, SECOND, "posted")]
    assert await caller.posted_nano() == await caller.billed_nano()


async def test_i7_a_call_that_failed_over_is_repeated_as_it_was_answered(caller: Caller) -> None:
    message = said(script={"status": 500, "times": 1})
    answers = [
        await caller.client().chat.completions.create(
            model=FIRST, messages=message, max_tokens=40, extra_headers={"idempotency-key": "k"}
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(await caller.invoice(1)) == 1
    assert await attempts(caller) == [(0, FIRST, "voided"), (1, SECOND, "posted")]


async def test_many_at_once_while_a_provider_fails(caller: Caller) -> None:
    answers = await asyncio.gather(*(ask(caller, n % 2 == 0, {"status": 503, "times": 1}) for n in range(20)))
    assert all(answers)
    ledger = await caller.ledger()
    assert sum(row["state"] == "posted" for row in ledger) == len(await caller.invoice(20)) == 20
    assert await caller.posted_nano() == await caller.billed_nano()
    assert await caller.faults() == []


async def test_near_a_budgets_limit_a_cheaper_model_serves(stack: StackState) -> None:
    """Calls of the expensive model may use only a share of the budget. The rest is left for cheaper calls.

    The first of the cheaper models is not good enough, so it is skipped.
    """
    async with open_caller(stack, "0.01") as caller:
        downgrade = {"at_percent": 50, "models": ["local/qwen3-8b", "gpt-4.1-mini"], "min_quality": 50}
        await route(caller, "gpt-4o", downgrade=downgrade)
        for _ in range(12):
            await ask(caller, False, {"output_tokens": 60}, "gpt-4o")
        ledger = await caller.ledger()
        dear = [row for row in ledger if row["model"] == "gpt-4o"]
        cheap = [row for row in ledger if row["model"] == "gpt-4.1-mini"]
        assert dear
        assert cheap
        assert sum(row["cost_nano"] for row in dear) <= 5_000_000
        assert {row["requested_model"] for row in cheap} == {"gpt-4o"}
        assert {row["attempt"] for row in cheap} == {1}  # attempt 1, because attempt 0 asked the expensive model
        assert await caller.posted_nano() == await caller.billed_nano()
        assert await caller.faults() == []


async def test_a_paced_call_waits_as_long_as_its_route_says(stack: StackState) -> None:
    async with open_caller(stack, "0.000001", window="minute", pace="linear") as caller:
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(caller, False, {"output_tokens": 1})
        assert refused.value.code in ("budget_paced", "budget_too_small_for_call")


@STREAMED
async def test_a_fallback_after_a_billed_failure_pays_for_both(caller: Caller, streamed: bool) -> None:
    """The route says that errors are billed, so the first attempt costs its whole hold, which is not below the bill."""
    await route(caller, fallbacks=[{"model": SECOND}], bills_errors=True)
    assert await ask(caller, streamed, {"status": 500, "billed": "full", "times": 1})
    first, second = await caller.ledger()
    assert (first["state"], first["usage_source"], first["cost_nano"]) == ("posted", "hold", first["held_nano"])
    assert (second["state"], second["usage_source"]) == ("posted", "provider")
    lines = await caller.invoice()
    assert len(lines) == 2
    assert second["cost_nano"] in [line["cost_nano"] for line in lines]
    assert first["cost_nano"] >= await caller.billed_nano() - second["cost_nano"] > 0
    assert await caller.faults() == []


@STREAMED
async def test_where_errors_are_billed_another_deployment_is_another_purchase(caller: Caller, streamed: bool) -> None:
    """LiteLLM must not try the second deployment under a hold that the first has spent. The service does, with a new hold."""
    await route(caller, "gpt-4o-mini", retries=1, bills_errors=True)
    assert await ask(caller, streamed, {"status": 503, "billed": "full", "times": 1}, "gpt-4o-mini")
    first, second = await caller.ledger()
    assert (first["state"], first["usage_source"]) == ("posted", "hold")
    assert (second["attempt"], second["usage_source"]) == (1, "provider")
    assert len(await caller.invoice(2)) == 2
    assert await caller.billed_nano() <= await caller.posted_nano()
    assert await caller.faults() == []


async def test_a_retry_that_consumed_tokens_is_an_attempt_with_a_cost(caller: Caller) -> None:
    """A connection broke after the work was done. The cost stays held for the first attempt while the retry is
    served."""
    await route(caller, retries=1)
    assert await ask(caller, False, {"cut_before_headers": True, "billed": "full", "times": 1})
    async with asyncio.timeout(PATIENCE_S):
        while await caller.held() > 1:  # the retry is settled after the caller has its answer
            await asyncio.sleep(0.05)
    assert await caller.held() == 1
    assert len(await caller.invoice(2)) == 2
    (budget,) = (await caller.admin("GET", f"budgets?agent={caller.agent}"))["data"]
    assert budget["posted_nano"] + budget["pending_nano"] >= await caller.billed_nano()
