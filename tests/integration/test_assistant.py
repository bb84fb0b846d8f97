"""The assistant on the real stack, as a model, with OpenAI's own client: it remembers, asks a person, and acts once."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
from openai import AsyncOpenAI

from gateway.stack.state import StackState
from llm_service.administration.inputs import read_input
from llm_service.administration.keys import NewKey, create_key
from llm_service.administration.organisations import NewAgent, create_agent
from llm_service.errors import Conflict
from tests.integration.administering import Treasurer
from tests.integration.caller import text_of


async def at_the_desk(stack: StackState, customer: str) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{stack.provider_url}/_sim/desk?customer={customer}") as response,
    ):
        return await response.json()


async def test_a_conversation_in_which_a_person_approves_and_the_effect_happens_once(
    stack: StackState, treasurer_on_stack: Treasurer
) -> None:
    customer, session = f"c{uuid4().hex[:12]}", uuid4().hex
    async with asyncpg.create_pool(stack.database_url, min_size=1, max_size=2) as pool:
        with suppress(Conflict):
            await create_agent(pool, read_input(NewAgent, {"name": "assistant"}))
        key = await create_key(pool, read_input(NewKey, {"agent": "assistant", "name": session[:8]}))
    async with AsyncOpenAI(
        api_key=key.secret, base_url=f"{stack.gateway_url}/v1", max_retries=0, timeout=120
    ) as client:

        async def say(text: str, again: str | None = None) -> Any:
            headers = {"x-treasurer-session": session, "idempotency-key": again or uuid4().hex}
            return await client.chat.completions.create(
                model="agent/assistant", messages=[{"role": "user", "content": text}], extra_headers=headers
            )

        assert "agent/assistant" in [model.id async for model in client.models.list()]
        told = f"list_subscriptions of customer {customer}, please"
        assert (await say(told)).treasurer["state"] == "succeeded"
        stream = await client.chat.completions.create(
            model="agent/assistant", messages=[{"role": "user", "content": 'What did I tell you? [[sim: {"tokens_per_s": 5}]]'}],
            stream=True, extra_headers={"x-treasurer-session": session},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        assert text_of(chunks) == f"You told me: {told}"
        assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 1  # while it was written

        again = uuid4().hex
        waits = await say(f"Now cancel_subscription {customer}-weekly.", again)
        assert waits.treasurer["state"] == "waiting"
        assert (await at_the_desk(stack, customer))["cancellations"] == []
        listed = await treasurer_on_stack("approvals", "list", "--run", waits.treasurer["run"], "--json")
        (approval,) = listed.rows
        assert approval["id"] in waits.choices[0].message.content
        assert (approval["tool"], approval["arguments"]) == (
            "cancel_subscription", {"subscription": f"{customer}-weekly"},
        )  # fmt: skip
        approved = await treasurer_on_stack("approvals", "approve", approval["id"], "--digest", approval["digest"])
        assert approved.code == 0, approved.err
        for _ in range(2):  # the same message again is the same run
            done = await say(f"Now cancel_subscription {customer}-weekly.", again)
            assert (done.treasurer["run"], done.treasurer["state"]) == (waits.treasurer["run"], "succeeded")
    account = await at_the_desk(stack, customer)
    assert [each["subscription"] for each in account["cancellations"]] == [f"{customer}-weekly"]
    assert account["repetitions"] == 0
