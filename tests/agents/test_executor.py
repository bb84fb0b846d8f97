"""The executor: the context of every run, its counts and its limits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from pydantic_ai.models import override_allow_model_requests

from agents.catalog.digest import Digest
from agents.executor import AgentExecutor, RunRequest
from llm_service.errors import BudgetExhausted, InvalidRequest, NotFound
from llm_service.model import StreamedAnswer
from llm_service.types import Answer, CallContext, Principal

COST_NANO = 250_000


@pytest.fixture(autouse=True)
def _models_may_be_called():  # pyright: ignore[reportUnusedFunction]
    with override_allow_model_requests(True):
        yield


@dataclass
class Service:
    """A fake service. Its model calls read_feed, then the output tool. After `affords` calls it refuses."""

    affords: int = 100
    contexts: list[CallContext] = field(default_factory=list[CallContext])
    models: list[str] = field(default_factory=list[str])

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        request = json.loads(body)
        if len(self.contexts) >= self.affords:
            raise BudgetExhausted("the run's budget is spent")
        self.contexts.append(context)
        self.models.append(request["model"])
        digest = {"title": "Today", "summary": "Quiet.", "items": []}
        name, arguments = (
            ("read_feed", {"feed": "sample:news.xml"}) if len(self.contexts) == 1 else ("final_result", digest)
        )
        call = {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
        }
        return Answer(200, json.dumps(answer).encode(), {}, uuid4(), COST_NANO)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer:
        raise NotImplementedError


@dataclass
class Principals:
    async def by_agent(self, name: str) -> Principal:
        return Principal(1, "default", 1, "default", 7, name, None, None, epoch=1)


@dataclass
class Budgets:
    """Fake budgets, which log their calls in order."""

    log: list[str] = field(default_factory=list[str])

    async def register(self, agent: str) -> None:
        self.log.append(f"register {agent}")

    @asynccontextmanager
    async def limited(self, agent: str, run: str, limit_nano: int) -> AsyncIterator[None]:
        self.log.append(f"limit {agent} {run} {limit_nano}")
        try:
            yield
        finally:
            self.log.append("archive")


async def test_a_run_is_attributed_counted_and_bounded() -> None:
    service, budgets = Service(), Budgets()
    executor = AgentExecutor(service, Principals(), budgets)
    request = RunRequest("digest", budget_nano=50_000_000, run="r1", user="ana", session="s", tags=("a", "b"))
    result = await executor.run(request)

    assert isinstance(result.output, Digest)
    assert (result.run_id, result.calls, result.cost_nano) == ("r1", 2, 2 * COST_NANO)
    assert result.usage.total_tokens == 24
    assert service.contexts == [CallContext(run="r1", user="ana", session="s", tags=("a", "b"))] * 2
    assert budgets.log == ["register digest", "limit digest r1 50000000", "archive"]


async def test_a_refusal_ends_the_run_with_its_budget_archived_and_its_spend_known() -> None:
    budgets = Budgets()
    run = AgentExecutor(Service(affords=1), Principals(), budgets).prepare(RunRequest("digest", budget_nano=1))
    with pytest.raises(BudgetExhausted):
        await run.execute()
    assert budgets.log[-1] == "archive"
    assert (run.tally.calls, run.tally.cost_nano) == (1, COST_NANO)


async def test_without_a_budget_none_is_made_and_each_run_has_its_own_id() -> None:
    service, budgets = Service(), Budgets()
    executor = AgentExecutor(service, Principals(), budgets)
    first = await executor.run(RunRequest("digest", model="claude-haiku-4-5"))
    service.contexts.clear()
    second = await executor.run(RunRequest("digest"))
    assert budgets.log == ["register digest"] * 2
    assert first.run_id != second.run_id
    assert service.models == ["claude-haiku-4-5"] * 2 + ["gpt-4o-mini"] * 2


def test_a_wrong_request_spends_nothing() -> None:
    executor = AgentExecutor(Service(), Principals(), Budgets())
    with pytest.raises(NotFound, match="The agents are: digest"):
        executor.prepare(RunRequest("nobody"))
    for wrong in ({"feeds": []}, {"stories": 0}, {"unknown": 1}, {"feeds": "a.xml"}):
        with pytest.raises(InvalidRequest, match="cannot run with this input"):
            executor.prepare(RunRequest("digest", input=wrong))
