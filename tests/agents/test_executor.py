"""The executor: the context of every run, its counts and its limits."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic_ai.models import override_allow_model_requests

import agents.executor
from agents.catalog.digest import Digest
from agents.executor import AgentExecutor, RunRequest
from llm_service.errors import BudgetExhausted, BudgetTooSmall, InvalidRequest, NotFound
from llm_service.model import StreamedAnswer
from llm_service.runs.money import RunMoney
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import Answer, Budget, CallContext, Principal, Scope, WindowKind

COST_NANO = 250_000


@pytest.fixture(autouse=True)
def _models_may_be_called():  # pyright: ignore[reportUnusedFunction]
    with override_allow_model_requests(True):
        yield


@dataclass
class Service:
    """A fake service. Its model calls read_feed, then the output tool. After `affords` calls it refuses."""

    affords: int = 100
    answers: asyncio.Event | None = None  # it answers nothing before this is set
    contexts: list[CallContext] = field(default_factory=list[CallContext])
    models: list[str] = field(default_factory=list[str])

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        request = json.loads(body)
        if self.answers is not None:
            await self.answers.wait()
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
        budgets = (Budget(3, "daily", Scope.AGENT, 7, WindowKind.DAY),)
        return Principal(1, "default", 1, "default", 7, name, None, None, epoch=1, budgets=budgets)

    async def renew(self, principal: Principal) -> Principal:
        return principal


@dataclass
class Agents:
    """Logs the agents that are registered."""

    log: list[str] = field(default_factory=list[str])

    async def register(self, agent: str) -> None:
        self.log.append(agent)


@dataclass
class Parts:
    service: Service = field(default_factory=Service)
    agents: Agents = field(default_factory=Agents)
    treasury: InMemoryTreasury = field(default_factory=lambda: InMemoryTreasury({3: 10**9}))

    @property
    def executor(self) -> AgentExecutor:
        money = RunMoney(self.treasury.envelopes, Principals(), freed=self.treasury.freed)
        return AgentExecutor(self.service, Principals(), self.agents, money)

    async def state(self, run: str) -> str:
        envelope = await self.treasury.envelopes.find(UUID(run))
        assert envelope is not None
        return envelope.state


async def test_a_run_is_attributed_counted_and_bounded() -> None:
    parts, run = Parts(), uuid4()
    request = RunRequest(
        "digest", budget_nano=50_000_000, reserve_nano=9, run=str(run), user="ana", session="s", tags=("a", "b")
    )  # fmt: skip
    result = await parts.executor.run(request)

    assert isinstance(result.output, Digest)
    assert (result.run_id, result.calls, result.cost_nano) == (str(run), 2, 2 * COST_NANO)
    assert result.usage.total_tokens == 24
    context = CallContext(run=str(run), user="ana", session="s", tags=("a", "b"), envelope=run)
    assert parts.service.contexts == [context] * 2
    assert parts.agents.log == ["digest"]
    envelope = await parts.treasury.envelopes.find(run)
    assert envelope is not None
    assert (envelope.budget_nano, envelope.reserve_nano, envelope.state) == (50_000_000, 9, "closed")
    assert envelope.context == replace(context, envelope=None)


async def test_a_refusal_ends_the_run_with_its_envelope_closed_and_its_spend_known() -> None:
    parts = Parts(Service(affords=1))
    run = parts.executor.prepare(RunRequest("digest", budget_nano=1))
    with pytest.raises(BudgetExhausted):
        await run.execute()
    assert await parts.state(run.id) == "closed"
    assert (run.tally.calls, run.tally.cost_nano) == (1, COST_NANO)


async def test_a_run_whose_reserve_cannot_be_held_does_not_begin() -> None:
    parts = Parts(treasury=InMemoryTreasury({3: 1_000}))
    run = parts.executor.prepare(RunRequest("digest", budget_nano=2_000, reserve_nano=1_001))
    with pytest.raises(BudgetTooSmall, match="this run needs at least"):
        await run.execute()
    assert parts.service.contexts == []
    assert await parts.treasury.envelopes.find(UUID(run.id)) is None


async def test_a_run_that_goes_on_keeps_its_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.executor, "LIFETIME_S", 1.0)
    answers = asyncio.Event()
    parts = Parts(Service(answers=answers))
    run = parts.executor.prepare(RunRequest("digest", budget_nano=1_000))
    running = asyncio.create_task(run.execute())

    async def until(end: datetime) -> datetime:
        """Wait until the envelope stays open to this time."""
        async with asyncio.timeout(20):
            while (held := await parts.treasury.envelopes.find(UUID(run.id))) is None or held.expires_at < end:
                await asyncio.sleep(0.01)
            return held.expires_at

    await until(await until(datetime.min.replace(tzinfo=UTC)) + timedelta(seconds=0.9))
    assert not running.done()
    assert await parts.treasury.envelopes.close_expired() == 0
    answers.set()
    await running
    assert await parts.state(run.id) == "closed"


async def test_a_run_with_a_budget_has_a_uuid() -> None:
    with pytest.raises(InvalidRequest, match="takes a UUID"):
        Parts().executor.prepare(RunRequest("digest", budget_nano=1, run="r1"))
    Parts().executor.prepare(RunRequest("digest", run="r1"))


async def test_without_a_budget_nothing_is_held_and_each_run_has_its_own_id() -> None:
    parts = Parts()
    first = await parts.executor.run(RunRequest("digest", model="claude-haiku-4-5"))
    assert {context.envelope for context in parts.service.contexts} == {None}
    parts.service.contexts.clear()
    second = await parts.executor.run(RunRequest("digest"))
    assert parts.agents.log == ["digest"] * 2
    assert first.run_id != second.run_id
    assert parts.service.models == ["claude-haiku-4-5"] * 2 + ["gpt-4o-mini"] * 2
    assert await parts.treasury.envelopes.find(UUID(first.run_id)) is None


def test_a_wrong_request_spends_nothing() -> None:
    executor = Parts().executor
    with pytest.raises(NotFound, match="The agents are: assistant, digest"):
        executor.prepare(RunRequest("nobody"))
    for wrong in ({"feeds": []}, {"stories": 0}, {"unknown": 1}, {"feeds": "a.xml"}):
        with pytest.raises(InvalidRequest, match="cannot run with this input"):
            executor.prepare(RunRequest("digest", input=wrong))
