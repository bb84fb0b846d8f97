"""Budgets and rate limits over real HTTP: which calls they apply to, and what each refusal tells a program.

There are four different answers: exhausted and too small for this call (final for the window), busy (retry when other
calls have been settled), and too fast (slow down).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import openai
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, details, nano, open_caller, said


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


async def test_too_small_for_a_call_is_final_and_says_everything(caller: Caller) -> None:
    await caller.admin("PATCH", caller.first_budget, {"limit": "0.000000100"})
    client = caller.client(max_retries=3)
    with pytest.raises(openai.RateLimitError) as raised:
        await client.chat.completions.create(model="gpt-4o-mini", messages=said())
    error = raised.value
    assert (error.type, error.code) == ("insufficient_quota", "budget_too_small_for_call")
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers
    assert len(caller.responses) == 1  # the SDK did not try again
    said_ = details(error)
    assert (said_["agent"], said_["budget"], said_["window"]) == (caller.agent, f"agent {caller.agent}: total", "total")
    assert (said_["limit"], said_["spent"], said_["held"], said_["left"]) == (
        "0.000000100", "0.000000000", "0.000000000", "0.000000100",
    )  # fmt: skip
    assert nano(said_["needed"]) > 100
    assert said_["resets_at"] is None
    assert caller.agent in error.message
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(model="gpt-4o-mini", messages=said(), stream=True)
    with pytest.raises(openai.RateLimitError):
        await client.embeddings.create(model="text-embedding-3-large", input="x" * 2000)
    assert len(caller.responses) == 3
    assert await caller.ledger() == []
    assert await caller.invoice() == []
    deadline = time.monotonic() + 10
    while True:  # refusals are counted a little later
        counted = await caller.pool.fetch(
            "SELECT reason, sum(count)::int AS count FROM refusals WHERE agent_id = $1 GROUP BY reason", caller.agent_id
        )
        if [tuple(row) for row in counted] == [("budget_too_small_for_call", 3)]:
            break
        assert time.monotonic() < deadline, counted
        await asyncio.sleep(0.1)


async def test_exhausted_is_final_and_told_from_too_small(caller: Caller) -> None:
    await caller.call(max_tokens=60, messages=said(script={"output_tokens": 60}))
    await caller.settled()
    await caller.admin("PATCH", caller.first_budget, {"limit": f"{(caller.last.cost_nano + 1) / 10**9:.9f}"})
    with pytest.raises(openai.RateLimitError) as raised:
        await caller.call()
    assert (raised.value.type, raised.value.code) == ("insufficient_quota", "insufficient_quota")
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert "has used up budget" in raised.value.message
    assert details(raised.value)["left"] == "0.000000001"


async def test_what_does_not_fit_into_a_minute_is_served_in_the_next(stack: StackState) -> None:
    """The SDK waits for as long as Retry-After says, because the window is over then."""
    async with open_caller(stack, budget="0.000060", window="minute") as caller:
        if datetime.now(UTC).second > 50:  # too late in this minute for two calls
            await asyncio.sleep(11)
        await caller.call(max_tokens=60, messages=said(script={"output_tokens": 60}))
        await caller.settled()
        with pytest.raises(openai.RateLimitError) as raised:
            await caller.call(max_tokens=16, messages=said("x" * 150))
        error = raised.value
        assert error.code == "budget_too_small_for_call"
        assert error.response.headers["x-should-retry"] == "true"
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
        assert "Try again then." in error.message
        await caller.client(max_retries=1).chat.completions.create(
            model="gpt-4o-mini", max_tokens=16, messages=said("x" * 150)
        )


async def test_one_call_may_hold_a_share_of_what_is_left(caller: Caller) -> None:
    await caller.admin("PATCH", caller.first_budget, {"limit": "0.001", "most_per_call": "20%"})
    await caller.call(max_tokens=16_000, messages=said(script={"output_tokens": 30}))
    clamped = caller.last.headers["x-treasurer-max-tokens"].removeprefix("clamped:")
    assert 100 < int(clamped) < 334  # a fifth of $0.001, minus the input, at $0.60 for a million tokens of output
    (entry,) = await caller.ledger()
    assert entry["held_nano"] <= 200_000
    await caller.agrees(1)
    await caller.admin("PATCH", caller.first_budget, {"most_per_call": "0.01%"})
    with pytest.raises(openai.RateLimitError) as raised:
        await caller.call()
    assert raised.value.code == "budget_too_small_for_call"
    assert "of which one call may hold 0.01%" in raised.value.message
    await caller.admin("PATCH", caller.first_budget, {"most_per_call": "none"})
    await caller.call()


async def test_callers_without_max_tokens_do_not_lock_each_other_out(stack: StackState) -> None:
    """Six callers at the same time share a budget of a third of a cent, and their answers take some seconds."""
    async with open_caller(stack, budget="0.0033") as caller:
        slow = said(script={"first_token_s": 3.0, "output_tokens": 30})
        await asyncio.gather(*(caller.call(messages=slow, max_tokens=openai.omit) for _ in range(6)))
        asked = [answer.headers["x-treasurer-max-tokens"].partition(":") for answer in caller.responses]
        assert {how for how, _, _ in asked} == {"clamped"}
        await caller.agrees(6)


async def test_exhausted_says_when_it_resets(stack: StackState) -> None:
    async with open_caller(stack, budget="0.000000100", window="day", time_zone="Asia/Kolkata") as caller:
        with pytest.raises(openai.RateLimitError) as raised:
            await caller.call()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00\+05:30", details(raised.value)["resets_at"])
        assert re.search(r"resets at \d{4}-\d\d-\d\d 00:00:00\+05:30 \(Asia/Kolkata\)\. ", raised.value.message)


async def test_busy_is_not_exhausted_and_says_when_to_come_back(caller: Caller) -> None:
    """One call in flight holds the rest of the budget. A second call waits a little, learns when to retry, and is then
    served."""
    await caller.admin("PATCH", caller.first_budget, {"limit": "0.000050"})  # 50,000 nano-dollars
    script = {"first_token_s": 4.0, "output_tokens": 1}
    holding = asyncio.create_task(caller.call(max_tokens=70, messages=said(script=script)))
    while not await caller.held():
        await asyncio.sleep(0.02)
    client = caller.client(caller.stack.gateway_urls[1])
    with pytest.raises(openai.RateLimitError) as raised:
        await client.chat.completions.create(model="gpt-4o-mini", messages=said("x" * 150), max_tokens=16)
    error = raised.value
    assert (error.type, error.code) == ("rate_limit_error", "budget_busy")
    assert error.response.headers["x-should-retry"] == "true"
    assert 1 <= int(error.response.headers["retry-after"]) <= 2
    assert nano(details(error)["held"]) > 0
    assert details(error)["budget"] == f"agent {caller.agent}: total"
    retrying = caller.client(caller.stack.gateway_urls[1], max_retries=5)
    await retrying.chat.completions.create(model="gpt-4o-mini", messages=said("x" * 150), max_tokens=16)
    await holding
    await caller.agrees(2)


async def test_a_short_wait_for_held_money_is_not_refused(caller: Caller) -> None:
    await caller.admin("PATCH", caller.first_budget, {"limit": "0.000050"})
    script = {"first_token_s": 0.7, "output_tokens": 1}
    holding = asyncio.create_task(caller.call(max_tokens=70, messages=said(script=script)))
    while not await caller.held():
        await asyncio.sleep(0.02)
    await caller.call(caller.stack.gateway_urls[1], messages=said("x" * 150), max_tokens=16)
    await holding
    await caller.agrees(2)


async def limited(caller: Caller, **limits: object) -> None:
    await caller.admin("PUT", "limits", {"agent": caller.agent, **limits})


async def pace_refusal(attempt: Callable[[], Awaitable[Any]]) -> openai.RateLimitError:
    with pytest.raises(openai.RateLimitError) as raised:
        await attempt()
    error = raised.value
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    return error


async def test_requests_a_minute_are_counted_over_both_processes(caller: Caller) -> None:
    await limited(caller, requests_per_minute=3)
    urls = [caller.stack.gateway_urls[number % 2] for number in range(3)]
    for left, url in zip((2, 1, 0), urls, strict=True):
        await caller.call(url)
        assert caller.last.headers["x-ratelimit-limit-requests"] == "3"
        assert int(caller.last.headers["x-ratelimit-remaining-requests"]) >= left
    error = await pace_refusal(lambda: caller.call(urls[1]))
    heads = error.response.headers
    assert heads["x-should-retry"] == "true"
    assert 1 <= int(heads["retry-after"]) <= 20
    assert 0 < int(heads["retry-after-ms"]) <= 20_000
    assert (heads["x-ratelimit-limit-requests"], heads["x-ratelimit-remaining-requests"]) == ("3", "0")
    assert re.fullmatch(r"(\d+m)?[\d.]+(ms|s)", heads["x-ratelimit-reset-requests"])
    assert caller.agent in error.message
    await caller.agrees(3)


async def test_tokens_a_minute_are_held_before_and_corrected_after(caller: Caller) -> None:
    await limited(caller, tokens_per_minute=1000)
    await caller.call(
        max_tokens=700, messages=said(script={"output_tokens": 10})
    )  # 700 tokens and the text are held, and about 60 are used
    assert caller.last.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(caller.last.headers["x-ratelimit-remaining-tokens"]) < 300
    deadline = time.monotonic() + 15  # in that time 250 tokens flow in, which is not enough for the next call
    while True:
        try:
            await caller.call(
                caller.stack.gateway_urls[1], max_tokens=700, messages=said(script={"output_tokens": 690})
            )
            break
        except openai.RateLimitError:
            assert time.monotonic() < deadline, "the tokens that were not used are not given back"
            await asyncio.sleep(0.05)
    error = await pace_refusal(lambda: caller.call(max_tokens=700))
    assert int(error.response.headers["x-ratelimit-remaining-tokens"]) < 700
    assert int(error.response.headers["retry-after"]) >= 1
    never = await pace_refusal(lambda: caller.call(max_tokens=5000))
    assert never.response.headers["x-should-retry"] == "false"
    await caller.agrees(2)


async def test_calls_in_flight_are_counted_over_both_processes(caller: Caller) -> None:
    await limited(caller, concurrent=2)
    under_way = [
        asyncio.create_task(caller.call(url, messages=said(script={"first_token_s": 1.5})))
        for url in caller.stack.gateway_urls
    ]
    while await caller.held() < 2:
        await asyncio.sleep(0.02)
    for url in caller.stack.gateway_urls:
        error = await pace_refusal(lambda url=url: caller.call(url))
        assert error.response.headers["retry-after"] == "1"
    await asyncio.gather(*under_way)
    await asyncio.sleep(0.2)
    await caller.call()
    stream = await caller.client().chat.completions.create(
        model="gpt-4o-mini",
        messages=said(script={"tokens_per_s": 20, "output_tokens": 400}),
        max_tokens=400,
        stream=True,
    )
    await stream.close()  # when a caller leaves, its slot is free again
    await caller.settled()
    await asyncio.gather(*(caller.call(url) for url in caller.stack.gateway_urls))


async def test_a_limit_on_a_model_leaves_the_others(caller: Caller) -> None:
    await limited(caller, tokens_per_minute=1, model="gpt-4*")
    await pace_refusal(lambda: caller.call())
    await caller.call(model="claude-haiku-4-5")
    assert "x-ratelimit-limit-tokens" not in caller.last.headers


@pytest.mark.parametrize(
    ("per", "header"),
    [
        ("run", "x-treasurer-run"),
        ("user", "x-treasurer-user"),
        ("session", "x-treasurer-session"),
        ("tag", "x-treasurer-tags"),
    ],
)
async def test_a_budget_for_each_value_is_a_budget_each(caller: Caller, per: str, header: str) -> None:
    """Each value has room for one call. Calls with another value, or without one, use separate windows."""
    await caller.budget("0.000030", per=per)  # 30,000 nano-dollars: enough for the text and some tokens
    used = said(script={"output_tokens": 60})
    for value in ("one", "two", None):
        extra = {} if value is None else {header: value}
        await caller.call(messages=used, max_tokens=60, extra_headers=extra)
        await caller.settled()
        with pytest.raises(openai.RateLimitError) as raised:
            await caller.call(messages=said("x" * 60), extra_headers=extra)
        assert raised.value.code == "budget_too_small_for_call"  # most of the budget was held, but not spent
        assert details(raised.value)["subject"] == value
    await caller.agrees(3)


async def test_every_tag_s_budget_must_have_room(caller: Caller) -> None:
    await caller.budget("0.000020", per="tag", per_value="tight")
    await caller.call(extra_headers={"x-treasurer-tags": "wide"}, max_tokens=500)
    with pytest.raises(openai.RateLimitError) as raised:
        await caller.call(extra_headers={"x-treasurer-tags": "wide,tight"}, messages=said("x" * 200))
    assert details(raised.value)["subject"] == "tight"
    await caller.call(max_tokens=500)
    await caller.agrees(2)


async def test_a_body_s_user_is_a_user_for_budgets(caller: Caller) -> None:
    await caller.budget("0.000000001", per="user", per_value="ana")
    with pytest.raises(openai.RateLimitError):
        await caller.call(user="ana")
    await caller.call(user="ben")


async def test_a_budget_for_a_model_pattern_leaves_other_models(caller: Caller) -> None:
    await caller.budget("0.000000001", model="claude-*")
    for name in ("claude-haiku-4-5", "claude-sonnet-5-5"):
        with pytest.raises(openai.RateLimitError) as raised:
            await caller.call(model=name)
        assert details(raised.value)["budget"] == f"agent {caller.agent}: total, claude-*"
    await caller.call(model="gpt-4o-mini")
    await caller.call(model="local/qwen3-8b")
    await caller.agrees(2)


async def test_what_is_free_passes_an_exhausted_budget(stack: StackState) -> None:
    async with open_caller(stack, budget="0.000000001") as caller:
        await caller.call(model="local/qwen3-8b")
        assert (caller.last.cost_nano, caller.last.left_nano) == (0, 1)
        await caller.agrees(1)


async def test_a_key_is_limited_to_its_models(caller: Caller) -> None:
    made = await caller.admin(
        "POST", "keys", {"agent": caller.agent, "name": "few", "models": ["gpt-4o*", "local/qwen3-8b"]}
    )
    secret = made["secret"]
    await caller.call(secret=secret, model="gpt-4o-mini")
    await caller.call(secret=secret, model="local/qwen3-8b")
    for model in ("claude-haiku-4-5", "gpt-4.1-mini", "local/llama-3.3-70b", "gpt-99"):
        with pytest.raises(openai.PermissionDeniedError) as raised:
            await caller.call(secret=secret, model=model)
        assert raised.value.code == "model_not_allowed"
        assert raised.value.param == "model"
    with pytest.raises(openai.PermissionDeniedError):
        await caller.client(secret=secret).embeddings.create(model="text-embedding-3-small", input="x")
    assert {model.id async for model in caller.client(secret=secret).models.list()} == {
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-4o-search-preview",
        "local/qwen3-8b",
    }
    await caller.agrees(2)


async def test_i1_many_at_once_never_pass_a_small_budget(caller: Caller) -> None:
    """Forty callers through both processes. Each refusal must have the right reason."""
    await caller.admin("PATCH", caller.first_budget, {"limit": "0.000400"})

    async def one(number: int) -> str | None:
        try:
            await caller.call(caller.stack.gateway_urls[number % 2], messages=said("多" * (number % 7)), max_tokens=60)
        except openai.RateLimitError as error:
            return error.code
        return "served"

    ends = await asyncio.gather(*(one(number) for number in range(40)))
    # The last is right where more than a twentieth is left and the call needs more than that.
    assert set(ends) <= {"served", "insufficient_quota", "budget_busy", "budget_too_small_for_call"}
    served = ends.count("served")
    assert 5 < served < 40
    await caller.agrees(served)
    assert await caller.billed_nano() <= 400_000
