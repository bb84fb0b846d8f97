"""LiteLLM's router and the service's chain together: how often they ask the provider, by the provider's own count.

What must hold: no error is retried in both layers. LiteLLM tries another deployment of the same model after 429 and
503, if there is one. The service retries the same model only after errors that LiteLLM has not retried.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said
from tests.stack_configuration import BALANCED, BALANCED_UNDERLYING

STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller
        await script(caller, [])


async def script(caller: Caller, rules: list[dict[str, Any]]) -> None:
    async with caller.http.post(f"{caller.stack.provider_url}/_sim/script", json=rules) as response:
        assert response.status == 200, await response.text()


async def ask(caller: Caller, model: str, streamed: bool) -> None:
    answer: Any = await caller.client().chat.completions.create(
        model=model, messages=said(), max_tokens=20, stream=streamed
    )
    if streamed:
        async for _ in answer:
            pass


async def asked(caller: Caller, model: str, do: dict[str, Any], *, streamed: bool = False) -> int:
    """How often the provider was asked for one call that fails in this way."""
    underlying = BALANCED_UNDERLYING if model in BALANCED else model.rpartition("/")[2]
    await script(caller, [{"model": underlying, "do": do}])
    with pytest.raises(openai.APIError):
        await ask(caller, model, streamed)
    async with caller.http.get(f"{caller.stack.provider_url}/_sim/script") as response:
        (rule,) = (await response.json())["rules"]
    return rule["matched"]


@STREAMED
@pytest.mark.parametrize(
    ("model", "do"),
    [
        ("gpt-4o", {"status": 500}),
        ("gpt-4.1-mini", {"status": 503, "retry_after": 1}),
        ("gpt-5-mini", {"status": 429, "retry_after": 1}),
        ("claude-haiku-4-5", {"status": 504}),
        ("claude-sonnet-5-5", {"status": 502}),
        ("gemini-2.5-pro", {"status": 408}),
        ("claude-haiku-5-5", {"status": 400}),
        ("local/llama-3.3-70b", {"cut_before_headers": True}),
        ("gemini-2.5-flash", {"status": 500}),
    ],
    ids=str,
)
async def test_without_a_route_a_failure_is_asked_for_once(
    caller: Caller, model: str, do: dict[str, Any], streamed: bool
) -> None:
    assert await asked(caller, model, do, streamed=streamed) == 1


@pytest.mark.parametrize("model", ["gpt-4o", "claude-haiku-4-5", "gemini-2.5-flash", "local/llama-3.3-70b"])
async def test_a_stream_that_breaks_is_asked_for_once_before_its_first_token_and_after(
    caller: Caller, model: str
) -> None:
    assert await asked(caller, model, {"cut_after_tokens": 0}, streamed=True) == 1
    assert await asked(caller, model, {"cut_after_tokens": 8}, streamed=True) == 1


async def test_embeddings_are_asked_for_once(caller: Caller) -> None:
    await script(caller, [{"model": "text-embedding-3-large", "do": {"status": 500}}])
    with pytest.raises(openai.APIError):
        await caller.client().embeddings.create(model="text-embedding-3-large", input="x")
    async with caller.http.get(f"{caller.stack.provider_url}/_sim/script") as response:
        assert [rule["matched"] for rule in (await response.json())["rules"]] == [1]


@pytest.mark.parametrize(("streamed", "first", "second"), [(False, *BALANCED[:2]), (True, *BALANCED[2:4])])
async def test_no_error_is_retried_in_both_layers(caller: Caller, streamed: bool, first: str, second: str) -> None:
    """The route has two retries, so there are three tries, or two if LiteLLM has already tried another deployment.

    After a failure LiteLLM does not use a deployment for some seconds, so each failure has its own model.
    """
    await caller.admin("PUT", "routes", {"agent": caller.agent, "model": "*", "retries": 2})
    assert await asked(caller, first, {"status": 503}, streamed=streamed) == 2
    assert await asked(caller, second, {"status": 500}, streamed=streamed) == 3
    assert {(row["attempt"], row["state"]) for row in await caller.ledger()} == {
        (0, "voided"),
        (1, "voided"),
        (2, "voided"),
    }
    assert await caller.faults() == []
