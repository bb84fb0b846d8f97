"""A change by an administrator takes effect at once on every gateway process, and refusals report it.

"At once" means that from the admin API's answer on, the change applies to the next call to any process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import openai
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, details, open_caller, said

#: Revoked keys, pauses and budgets take effect on every process in less than this time.
AT_ONCE_S = 1.0


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


async def becomes(caller: Caller, wanted: type[openai.APIStatusError] | None, **request: Any) -> None:
    """Check that calls on each process end in this way at the latest one second after the change."""
    changed = time.monotonic()
    for url in caller.stack.gateway_urls:
        while True:
            asked = time.monotonic()
            try:
                await caller.call(url, **request)
                ended: type[openai.APIStatusError] | None = None
            except openai.APIStatusError as error:
                ended = type(error)
            if ended is wanted:
                break
            assert asked - changed < AT_ONCE_S, (
                f"{url} still answers with {ended}, {asked - changed:.2f} s after the change"
            )
            await asyncio.sleep(0.02)


async def warm(caller: Caller, **request: Any) -> None:
    """Make one call on each process, so that both have cached the key before the change."""
    for url in caller.stack.gateway_urls:
        await caller.call(url, **request)


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
            await caller.call(other, secret=made["secret"])


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
        await caller.call(secret=secret)
    await becomes(caller, None)  # other agents are not affected
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


async def test_i1_a_lowered_budget_refuses_at_once_and_a_raised_one_admits(caller: Caller) -> None:
    await warm(caller)
    posted = await caller.posted_nano()
    await caller.admin("PATCH", caller.first_budget, {"limit": f"{posted / 10**9:.9f}"})
    await becomes(caller, openai.RateLimitError)
    changed = await caller.admin("PATCH", caller.first_budget, {"limit": "1"})
    assert changed["posted_nano"] == posted
    await becomes(caller, None)
    await caller.agrees(4)


async def test_i1_a_budget_below_what_was_spent_is_no_overspend(caller: Caller) -> None:
    await warm(caller)
    await caller.settled()
    await caller.admin("PATCH", caller.first_budget, {"limit": "0.000000001"})
    await becomes(caller, openai.RateLimitError)
    assert await caller.faults() == []  # the audit allows money that was spent before the limit was lowered


async def test_a_top_up_admits_at_once_and_ends_by_itself(caller: Caller) -> None:
    await warm(caller)
    posted = await caller.posted_nano()
    await caller.admin("PATCH", caller.first_budget, {"limit": f"{posted / 10**9:.9f}"})
    await becomes(caller, openai.RateLimitError)
    topped = time.monotonic()
    await caller.admin("POST", f"{caller.first_budget}/top-ups", {"amount": "0.01", "lasts": "4s"})
    await becomes(caller, None)
    await asyncio.sleep(max(0.0, topped + 4.1 - time.monotonic()))
    with pytest.raises(openai.RateLimitError):
        await caller.call()
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
    await caller.budget("0.000060", team=team)  # 60,000 nano-dollars; a call holds about 55,000
    await caller.call(secret=secrets[0], max_tokens=60, messages=said(script={"output_tokens": 60}))
    await asyncio.sleep(0.2)
    with pytest.raises(openai.RateLimitError) as raised:
        await caller.call(secret=secrets[1], max_tokens=60, messages=said("x" * 200))
    assert raised.value.type == "insufficient_quota"
    assert details(raised.value)["budget"] == f"team {team}: total"


async def test_a_limit_is_in_force_and_gone_at_once(caller: Caller) -> None:
    await warm(caller)
    made = await caller.admin("PUT", "limits", {"agent": caller.agent, "tokens_per_minute": 1})
    await becomes(caller, openai.RateLimitError)
    await caller.admin("DELETE", f"limits/{made['id']}")
    await becomes(caller, None)
