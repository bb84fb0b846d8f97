"""What an administrator changes is in force at once, on every gateway process; and what each refusal tells.

"At once" is measured from the admin API's answer: the call that is sent right after it, to the other process
too, is already governed by the change.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import openai
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, nano, open_caller, said

#: Revoked keys, pauses and budgets are effective in less than this, on every process.
AT_ONCE_S = 1.0


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


async def call(caller: Caller, url: str | None = None, *, secret: str | None = None, **request: Any) -> Any:
    """One small call, without the SDK's retries."""
    client = caller.client(url, secret=secret)
    return await client.chat.completions.create(**{"model": "gpt-4o-mini", "messages": said(), "max_tokens": 20, **request})


async def becomes(caller: Caller, wanted: type[openai.APIStatusError] | None, **request: Any) -> None:
    """On each process, from now on: every call ends so, at the latest one second after the change was answered."""
    changed = time.monotonic()
    for url in caller.stack.gateway_urls:
        while True:
            asked = time.monotonic()
            try:
                await call(caller, url, **request)
                ended: type[openai.APIStatusError] | None = None
            except openai.APIStatusError as error:
                ended = type(error)
            if ended is wanted:
                break
            assert asked - changed < AT_ONCE_S, f"{url} still answers with {ended}, {asked - changed:.2f} s after the change"
            await asyncio.sleep(0.02)


async def warm(caller: Caller, **request: Any) -> None:
    """Both processes know the key, so that a change has something to overtake."""
    for url in caller.stack.gateway_urls:
        await call(caller, url, **request)


async def test_a_revoked_key_stops_at_once_and_others_go_on(caller: Caller) -> None:
    other = await caller.admin("POST", "keys", {"agent": caller.agent, "name": "other"})
    await warm(caller)
    await warm(caller, secret=other["secret"])
    await caller.admin("DELETE", f"keys/{other['id']}")
    await becomes(caller, openai.AuthenticationError, secret=other["secret"])
    await becomes(caller, None)


async def test_a_rotated_key_works_at_once_and_its_budgets_hold_for_both(caller: Caller) -> None:
    (key,) = (await caller.admin("GET", f"keys?agent={caller.agent}"))["data"]
    await caller.budget("0.5", key=f"{caller.agent}/default")
    await warm(caller)
    fresh = await caller.admin("POST", f"keys/{key['id']}/rotate", {"overlap": "1h"})
    await becomes(caller, None, secret=fresh["secret"])
    await becomes(caller, None)
    await caller.agrees(6)
    (budget,) = (await caller.admin("GET", f"budgets?key={caller.agent}/default"))["data"]
    assert budget["posted_nano"] == await caller.billed_nano()
    await caller.admin("POST", f"keys/{fresh['id']}/rotate", {"overlap": "0"})
    await becomes(caller, openai.AuthenticationError, secret=fresh["secret"])


async def test_a_new_key_works_at_once(caller: Caller) -> None:
    for url in caller.stack.gateway_urls:
        made = await caller.admin("POST", "keys", {"agent": caller.agent, "name": uuid4().hex[:8]}, url=url)
        for other in caller.stack.gateway_urls:
            await call(caller, other, secret=made["secret"])


@pytest.mark.parametrize("kind", ["agents", "teams", "organisations"])
async def test_pause_and_resume_are_in_force_at_once(stack: StackState, caller: Caller, kind: str) -> None:
    names = {"organisations": f"o-{uuid4().hex[:8]}", "teams": f"t-{uuid4().hex[:8]}", "agents": f"a-{uuid4().hex[:8]}"}
    await caller.admin("POST", "organisations", {"name": names["organisations"]})
    await caller.admin("POST", "teams", {"name": names["teams"], "organisation": names["organisations"]})
    await caller.admin("POST", "agents", {"name": names["agents"], "team": names["teams"]})
    secret = (await caller.admin("POST", "keys", {"agent": names["agents"]}))["secret"]
    await warm(caller, secret=secret)
    await caller.admin("POST", f"{kind}/{names[kind]}/pause", url=stack.gateway_urls[0])
    await becomes(caller, openai.PermissionDeniedError, secret=secret)
    with pytest.raises(openai.PermissionDeniedError, match=f"{kind.removesuffix('s')} {names[kind]} is paused"):
        await call(caller, secret=secret)
    await becomes(caller, None)  # the others go on
    await caller.admin("POST", f"{kind}/{names[kind]}/resume", url=stack.gateway_urls[1])
    await becomes(caller, None, secret=secret)


async def test_a_call_under_way_survives_a_pause_and_is_charged(caller: Caller) -> None:
    client = caller.client()
    messages = said(script={"tokens_per_s": 40, "output_tokens": 40})
    stream = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_tokens=50, stream=True)
    await anext(aiter(stream))
    await caller.admin("POST", f"agents/{caller.agent}/pause")
    assert len([chunk async for chunk in stream]) > 30
    await caller.agrees(1)


def budget_of(caller: Caller) -> str:
    return f"budgets/agent {caller.agent}: total"


async def test_i1_a_lowered_budget_refuses_at_once_and_a_raised_one_admits(caller: Caller) -> None:
    await warm(caller)
    posted = await caller.posted_nano()
    await caller.admin("PATCH", budget_of(caller), {"limit": f"{posted / 10**9:.9f}"})
    await becomes(caller, openai.RateLimitError)
    changed = await caller.admin("PATCH", budget_of(caller), {"limit": "1"})
    assert changed["posted_nano"] == posted
    await becomes(caller, None)
    await caller.agrees(4)


async def test_i1_a_budget_below_what_was_spent_is_no_overspend(caller: Caller) -> None:
    await warm(caller)
    await caller.settled()
    await caller.admin("PATCH", budget_of(caller), {"limit": "0.000000001"})
    await becomes(caller, openai.RateLimitError)
    assert await caller.faults() == []  # what was spent before is grandfathered


async def test_a_top_up_admits_at_once_and_ends_by_itself(caller: Caller) -> None:
    await warm(caller)
    posted = await caller.posted_nano()
    await caller.admin("PATCH", budget_of(caller), {"limit": f"{posted / 10**9:.9f}"})
    await becomes(caller, openai.RateLimitError)
    topped = time.monotonic()
    await caller.admin("POST", f"{budget_of(caller)}/top-ups", {"amount": "0.01", "lasts": "2s"})
    await becomes(caller, None)
    await asyncio.sleep(max(0.0, topped + 2.1 - time.monotonic()))
    with pytest.raises(openai.RateLimitError):
        await call(caller)
    await caller.agrees(4)


async def test_a_new_budget_governs_at_once_and_an_archived_one_no_more(caller: Caller) -> None:
    await warm(caller)
    name = f"tight {uuid4().hex[:8]}"
    await caller.budget("0.000000001", name=name)
    await becomes(caller, openai.RateLimitError)
    assert caller.last.status == 429
    await caller.admin("DELETE", f"budgets/{name}")
    await becomes(caller, None)
    await caller.agrees(4)


async def test_a_team_s_budget_binds_all_of_its_agents(caller: Caller) -> None:
    team, first, second = (f"{kind}-{uuid4().hex[:8]}" for kind in ("t", "a", "a"))
    await caller.admin("POST", "teams", {"name": team})
    secrets: list[str] = []
    for name in (first, second):
        await caller.admin("POST", "agents", {"name": name, "team": team})
        secrets.append((await caller.admin("POST", "keys", {"agent": name}))["secret"])
    await caller.budget("0.000060", team=team)  # 60,000 nano-dollars; a call holds some 55,000
    await call(caller, secret=secrets[0], max_tokens=60, messages=said(script={"output_tokens": 60}))
    await asyncio.sleep(0.2)
    with pytest.raises(openai.RateLimitError) as raised:
        await call(caller, secret=secrets[1], max_tokens=60, messages=said("x" * 200))
    assert raised.value.type == "insufficient_quota"
    assert details(raised.value)["budget"] == f"team {team}: total"


def details(error: openai.APIStatusError) -> dict[str, Any]:
    """Treasurer's part of an error."""
    return error.response.json()["error"]["treasurer"]


async def test_exhausted_is_final_and_says_everything(caller: Caller) -> None:
    await caller.admin("PATCH", budget_of(caller), {"limit": "0.000000100"})
    client = caller.client(max_retries=3)
    with pytest.raises(openai.RateLimitError) as raised:
        await client.chat.completions.create(model="gpt-4o-mini", messages=said())
    error = raised.value
    assert (error.type, error.code) == ("insufficient_quota", "insufficient_quota")
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
    while True:  # refusals are counted, some time later
        counted = await caller.pool.fetch(
            "SELECT reason, sum(count)::int AS count FROM refusals WHERE agent_id = $1 GROUP BY reason", caller.agent_id
        )
        if [tuple(row) for row in counted] == [("insufficient_quota", 3)]:
            break
        assert time.monotonic() < deadline, counted
        await asyncio.sleep(0.1)


async def test_exhausted_says_when_it_resets(stack: StackState) -> None:
    async with open_caller(stack, budget="0.000000100", window="day", time_zone="Asia/Kolkata") as caller:
        with pytest.raises(openai.RateLimitError) as raised:
            await call(caller)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT18:30:00\+00:00", details(raised.value)["resets_at"])
        assert "resets at" in raised.value.message


async def test_busy_is_not_exhausted_and_says_when_to_come_back(caller: Caller) -> None:
    """One call in flight holds what is left: another one waits a little, is told to come back, and then has room."""
    await caller.admin("PATCH", budget_of(caller), {"limit": "0.000050"})  # 50,000 nano-dollars
    script = {"first_token_s": 4.0, "output_tokens": 1}
    holding = asyncio.create_task(call(caller, max_tokens=70, messages=said(script=script)))
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
    await caller.admin("PATCH", budget_of(caller), {"limit": "0.000050"})
    script = {"first_token_s": 0.7, "output_tokens": 1}
    holding = asyncio.create_task(call(caller, max_tokens=70, messages=said(script=script)))
    while not await caller.held():
        await asyncio.sleep(0.02)
    await call(caller, caller.stack.gateway_urls[1], messages=said("x" * 150), max_tokens=16)
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
        await call(caller, url)
        assert caller.last.headers["x-ratelimit-limit-requests"] == "3"
        assert int(caller.last.headers["x-ratelimit-remaining-requests"]) >= left
    error = await pace_refusal(lambda: call(caller, urls[1]))
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
    await call(caller, max_tokens=700, messages=said(script={"output_tokens": 10}))  # held: 700 and the text; used: some 60
    assert caller.last.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(caller.last.headers["x-ratelimit-remaining-tokens"]) < 300
    await asyncio.sleep(0.3)
    await call(caller, caller.stack.gateway_urls[1], max_tokens=700, messages=said(script={"output_tokens": 690}))
    await asyncio.sleep(0.3)
    error = await pace_refusal(lambda: call(caller, max_tokens=700))
    assert int(error.response.headers["x-ratelimit-remaining-tokens"]) < 700
    assert int(error.response.headers["retry-after"]) >= 1
    never = await pace_refusal(lambda: call(caller, max_tokens=5000))
    assert never.response.headers["x-should-retry"] == "false"
    await caller.agrees(2)


async def test_calls_in_flight_are_counted_over_both_processes(caller: Caller) -> None:
    await limited(caller, concurrent=2)
    under_way = [
        asyncio.create_task(call(caller, url, messages=said(script={"first_token_s": 1.5})))
        for url in caller.stack.gateway_urls
    ]
    while await caller.held() < 2:
        await asyncio.sleep(0.02)
    for url in caller.stack.gateway_urls:
        error = await pace_refusal(lambda url=url: call(caller, url))
        assert error.response.headers["retry-after"] == "1"
    await asyncio.gather(*under_way)
    await asyncio.sleep(0.2)
    await call(caller)
    stream = await caller.client().chat.completions.create(
        model="gpt-4o-mini", messages=said(script={"tokens_per_s": 20, "output_tokens": 400}), max_tokens=400, stream=True
    )
    await stream.close()  # a caller who leaves gives its slot back
    await caller.settled()
    await asyncio.gather(*(call(caller, url) for url in caller.stack.gateway_urls))


async def test_a_limit_is_in_force_and_gone_at_once(caller: Caller) -> None:
    await warm(caller)
    made = await caller.admin("PUT", "limits", {"agent": caller.agent, "tokens_per_minute": 1})
    await becomes(caller, openai.RateLimitError)
    await caller.admin("DELETE", f"limits/{made['id']}")
    await becomes(caller, None)


async def test_a_limit_on_a_model_leaves_the_others(caller: Caller) -> None:
    await limited(caller, tokens_per_minute=1, model="gpt-4*")
    await pace_refusal(lambda: call(caller))
    await call(caller, model="claude-haiku-4-5")
    assert "x-ratelimit-limit-tokens" not in caller.last.headers


@pytest.mark.parametrize(("per", "header"), [("run", "x-treasurer-run"), ("user", "x-treasurer-user"), ("session", "x-treasurer-session"), ("tag", "x-treasurer-tags")])
async def test_a_budget_for_each_value_is_a_budget_each(caller: Caller, per: str, header: str) -> None:
    """Room for one call of a value; another value, and none at all, have a window of their own."""
    await caller.budget("0.000030", per=per)  # 30,000 nano-dollars: the text, and some tokens
    used = said(script={"output_tokens": 60})
    for value in ("one", "two", None):
        extra = {} if value is None else {header: value}
        await call(caller, messages=used, max_tokens=60, extra_headers=extra)
        await caller.settled()
        with pytest.raises(openai.RateLimitError) as raised:
            await call(caller, messages=said("x" * 60), extra_headers=extra)
        assert raised.value.code == "insufficient_quota"
        assert details(raised.value)["subject"] == value
    await caller.agrees(3)


async def test_every_tag_s_budget_must_have_room(caller: Caller) -> None:
    await caller.budget("0.000020", per="tag", per_value="tight")
    await call(caller, extra_headers={"x-treasurer-tags": "wide"}, max_tokens=500)
    with pytest.raises(openai.RateLimitError) as raised:
        await call(caller, extra_headers={"x-treasurer-tags": "wide,tight"}, messages=said("x" * 200))
    assert details(raised.value)["subject"] == "tight"
    await call(caller, max_tokens=500)
    await caller.agrees(2)


async def test_a_body_s_user_is_a_user_for_budgets(caller: Caller) -> None:
    await caller.budget("0.000000001", per="user", per_value="ana")
    with pytest.raises(openai.RateLimitError):
        await call(caller, user="ana")
    await call(caller, user="ben")


async def test_a_budget_for_a_model_pattern_leaves_other_models(caller: Caller) -> None:
    await caller.budget("0.000000001", model="claude-*")
    for name in ("claude-haiku-4-5", "claude-sonnet-5-5"):
        with pytest.raises(openai.RateLimitError) as raised:
            await call(caller, model=name)
        assert details(raised.value)["budget"] == f"agent {caller.agent}: total, claude-*"
    await call(caller, model="gpt-4o-mini")
    await call(caller, model="local/qwen3-8b")
    await caller.agrees(2)


async def test_what_is_free_passes_an_exhausted_budget(stack: StackState) -> None:
    async with open_caller(stack, budget="0.000000001") as caller:
        await call(caller, model="local/qwen3-8b")
        assert (caller.last.cost_nano, caller.last.left_nano) == (0, 1)
        await caller.agrees(1)


async def test_a_key_is_limited_to_its_models(caller: Caller) -> None:
    made = await caller.admin("POST", "keys", {"agent": caller.agent, "name": "few", "models": ["gpt-4o*", "local/qwen3-8b"]})
    secret = made["secret"]
    await call(caller, secret=secret, model="gpt-4o-mini")
    await call(caller, secret=secret, model="local/qwen3-8b")
    for model in ("claude-haiku-4-5", "gpt-4.1-mini", "local/llama-3.3-70b", "gpt-99"):
        with pytest.raises(openai.PermissionDeniedError) as raised:
            await call(caller, secret=secret, model=model)
        assert raised.value.code == "model_not_allowed"
        assert raised.value.param == "model"
    with pytest.raises(openai.PermissionDeniedError):
        await caller.client(secret=secret).embeddings.create(model="text-embedding-3-small", input="x")
    assert {model.id async for model in caller.client(secret=secret).models.list()} == {"gpt-4o", "gpt-4o-mini", "local/qwen3-8b"}
    await caller.agrees(2)


async def test_i1_many_at_once_never_pass_a_small_budget(caller: Caller) -> None:
    """Forty callers through both processes; what is refused was refused for the right reason."""
    await caller.admin("PATCH", budget_of(caller), {"limit": "0.000400"})

    async def one(number: int) -> int:
        try:
            await call(caller, caller.stack.gateway_urls[number % 2], messages=said("多" * (number % 7)), max_tokens=60)
        except openai.RateLimitError as error:
            assert error.code in ("insufficient_quota", "budget_busy")
            return 0
        return 1

    served = sum(await asyncio.gather(*(one(number) for number in range(40))))
    assert 5 < served < 40
    await caller.agrees(served)
    assert await caller.billed_nano() <= 400_000
