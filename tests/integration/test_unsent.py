"""A call that was never sent to a provider is voided at once; and a provider's refusal of one caller affects no other.

What must hold:
- A call that LiteLLM refuses before it asks a provider (a cooldown, a request that it cannot translate) is voided within
  moments, streamed or not, and the provider, which counts its requests, was not asked (I2).
- A provider's 404 (the caller's mistake) or 401, 402 or 403 (the operator's key) keeps the model from nobody else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import PATIENCE_S, Caller, open_caller, said
from tests.stack_configuration import BALANCED_UNDERLYING, OUT_OF_USE

STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack, "0.02") as caller:
        yield caller
        await script(caller, [])


async def script(caller: Caller, rules: list[dict[str, Any]]) -> None:
    async with caller.http.post(f"{caller.stack.provider_url}/_sim/script", json=rules) as response:
        assert response.status == 200, await response.text()


async def asked(caller: Caller) -> int:
    """How often the provider was asked since the script's only rule was set."""
    async with caller.http.get(f"{caller.stack.provider_url}/_sim/script") as response:
        (rule,) = (await response.json())["rules"]
    return rule["matched"]


async def ask(caller: Caller, model: str, streamed: bool, **request: Any) -> openai.APIStatusError | None:
    """Make the call and read it to its end; return its error, if it has one."""
    request = {"messages": said(), "max_tokens": 20} | request
    try:
        answer: Any = await caller.client().chat.completions.create(model=model, stream=streamed, **request)
        if streamed:
            async for _ in answer:
                pass
    except openai.APIStatusError as error:
        return error
    return None


async def test_i2_calls_in_a_cooldown_cost_nothing_and_are_voided_at_once(stack: StackState, caller: Caller) -> None:
    """One agent's 429s take both deployments out of use. What other agents ask in that time reaches nobody. Afterwards
    the model serves them again.

    It takes two calls: LiteLLM counts one failure of a request only. The first call asks both deployments, and only the
    one that it asked first is taken out of use. The second call asks the other one.
    """
    async with open_caller(stack) as other:
        await script(other, [{"model": BALANCED_UNDERLYING, "do": {"status": 429}}])
        for times in (2, 3, 3):
            error = await ask(other, OUT_OF_USE, False)
            assert (error and error.status_code, await asked(other)) == (429, times)
        await script(other, [{"model": BALANCED_UNDERLYING, "do": {"output_tokens": 1}}])
        errors = await asyncio.gather(*(ask(caller, OUT_OF_USE, streamed) for streamed in (False, True) * 2))
    assert {error and (error.status_code, error.code) for error in errors} == {(429, "deployments_cooling_down")}
    assert await asked(caller) == 0
    await caller.settled()
    entries = await caller.ledger()
    assert [(entry["state"], entry["cost_nano"]) for entry in entries] == [("voided", 0)] * 4
    (budget,) = (await caller.admin("GET", f"budgets?agent={caller.agent}"))["data"]
    assert (budget["posted_nano"], budget["pending_nano"]) == (0, 0)
    assert await caller.faults() == []
    async with asyncio.timeout(PATIENCE_S):
        while await ask(caller, OUT_OF_USE, False) is not None:
            await asyncio.sleep(0.2)
    assert await ask(caller, OUT_OF_USE, True) is None


@STREAMED
@pytest.mark.parametrize("model", ["claude-haiku-5-5", "gemini-2.5-flash", "gpt-4.1-mini"])
async def test_i2_a_request_that_litellm_cannot_translate_costs_nothing_and_is_voided_at_once(
    caller: Caller, model: str, streamed: bool
) -> None:
    await script(caller, [{"do": {"output_tokens": 1}}])
    bodies: list[dict[str, Any]] = [
        {"messages": [*said(), {"role": "assistant", "tool_calls": 5}]},
        {"extra_body": {"response_format": "no object"}},
    ]
    refused = 0
    for body in bodies:
        error = await ask(caller, model, streamed, **body)
        if error is not None:  # LiteLLM passes some bodies on, and then the provider decides
            refused += 1
            assert error.status_code == 400
            assert "litellm" not in json.dumps(error.body).lower()
    assert refused > 0
    assert await asked(caller) == len(bodies) - refused
    await caller.settled()
    assert [entry["state"] for entry in await caller.ledger()].count("voided") == refused
    assert await caller.faults() == []


@STREAMED
@pytest.mark.parametrize("status", [401, 402, 403, 404])
@pytest.mark.parametrize("model", ["gpt-4.1-mini", "claude-haiku-5-5", "gemini-2.5-flash", BALANCED_UNDERLYING])
async def test_what_a_provider_refuses_one_caller_keeps_the_model_from_nobody_else(
    stack: StackState, caller: Caller, model: str, status: int, streamed: bool
) -> None:
    async with open_caller(stack) as other:
        await script(other, [{"model": model, "do": {"status": status}}])
        for _ in range(6):
            error = await ask(other, model, streamed)
            assert error is not None
            assert error.status_code == (404 if status == 404 else 502)
            assert error.code == ("provider_key_refused" if status != 404 else error.code)
        assert await asked(other) == 6
        assert {(entry["state"], entry["cost_nano"]) for entry in await other.ledger()} == {("voided", 0)}
    await script(caller, [])
    for each in (True, False):
        assert await ask(caller, model, each) is None
    await caller.agrees(2)


async def test_keys_that_a_provider_refuses_are_counted_for_the_operator(caller: Caller) -> None:
    await script(caller, [{"model": "gpt-4.1-mini", "do": {"status": 403}}])
    await ask(caller, "gpt-4.1-mini", False)
    name = 'treasurer_upstream_errors_total{code="provider_key_refused",model="gpt-4.1-mini"'
    async with caller.http.get(
        f"{caller.stack.gateway_url}/metrics", headers={"Authorization": f"Bearer {caller.stack.admin_key}"}
    ) as response:
        text = await response.text()
    assert any(line.startswith(name) for line in text.splitlines()), [
        line for line in text.splitlines() if "upstream_errors" in line
    ]
