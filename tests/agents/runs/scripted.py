"""An agent with a tool of each policy, and a service that answers its requests by a script and keeps answers by key."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict
from pydantic_ai import Agent, RunContext

from agents.approvals.record import Approval, ApprovalFilter, Decision
from agents.configuration.inputs import default_terms
from agents.configuration.terms import AgentConfiguration
from agents.definition import AgentDefinition, AnyAgent, Task
from agents.runs.record import Run
from agents.runs.store import RunStore
from agents.runs.worker import Worker
from agents.services import Services
from agents.tools import policy
from llm_service.call.response_headers import CALL_ID, COST, REPLAYED
from llm_service.errors import IdempotencyConflict, NotFound
from llm_service.model import StreamedAnswer
from llm_service.money import format_decimal
from llm_service.types import Answer, CallContext, Principal

COST_NANO = 10_000
#: Another worker each time, as another process would be.
MakeWorker = Callable[[], Worker]


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str = "go"


class Output(BaseModel):
    text: str


@dataclass
class World:
    """What the tools of a process change: effects are counted by their once key, as a receiver does."""

    effects: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    #: Called before and after each effect, to break something at that point.
    before: Callable[[str], Awaitable[None]] | None = None
    after: Callable[[str], Awaitable[None]] | None = None
    returns: Any = "ok"

    async def effect(self, tool: str) -> Any:
        if self.before is not None:
            await self.before(tool)
        self.effects.append((tool, policy.once_key()))
        if self.after is not None:
            await self.after(tool)
        return self.returns

    def times(self, tool: str) -> int:
        return sum(name == tool for name, _ in self.effects)

    async def happened(self, key: str, arguments: dict[str, Any]) -> policy.Happened | policy.DidNotHappen:
        return policy.Happened("found") if any(key == each for _, each in self.effects) else policy.DidNotHappen()


def define(world: World, name: str = "demo") -> AgentDefinition[Input, World, Output]:
    agent = Agent[World, Output](deps_type=World, output_type=Output, name=name)

    @agent.tool(metadata=policy.READ)
    async def look(ctx: RunContext[World], at: str) -> Any:
        return await ctx.deps.effect("look")

    @agent.tool(metadata=policy.KEY)
    async def send(ctx: RunContext[World], to: str) -> Any:
        return await ctx.deps.effect("send")

    @agent.tool(metadata=policy.verify(world.happened))
    async def book(ctx: RunContext[World], seat: int) -> Any:
        return await ctx.deps.effect("book")

    @agent.tool
    async def delete(ctx: RunContext[World], name: str) -> Any:
        return await ctx.deps.effect("delete")

    def task(given: Input, services: Services) -> Task[World]:
        return Task(given.text, world)

    return AgentDefinition(
        name=name, description="For tests.", model="gpt-4o-mini", input_type=Input, agent=agent, task=task
    )


ARGUMENTS: dict[str, dict[str, Any]] = {
    "look": {"at": "x"}, "send": {"to": "ann"}, "book": {"seat": 7}, "delete": {"name": "old"},
    "read_feed": {"feed": "sample:news.xml"},
}  # fmt: skip


@dataclass
class Script:
    """A provider: answers with the tool calls of `tools`, one a request, then with the output. Keeps answers by key."""

    tools: tuple[str, ...] = ("look", "send")
    output: dict[str, Any] = field(default_factory=lambda: {"text": "done"})
    bought: list[str] = field(default_factory=list[str])  # the key of each answer that was paid for
    kept: dict[str, tuple[bytes, Answer]] = field(default_factory=dict[str, tuple[bytes, Answer]])
    lost: set[str] = field(default_factory=set[str])
    contexts: list[CallContext] = field(default_factory=list[CallContext])
    offered: set[str] = field(default_factory=set[str])  # the tools that the last request has offered
    #: Called with the key before a request is answered, and before its answer is returned, to break something there.
    before: Callable[[str], Awaitable[None]] | None = None
    after: Callable[[str], Awaitable[None]] | None = None

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        key = context.idempotency_key
        assert key is not None
        self.contexts.append(context)
        self.offered = {tool["function"]["name"] for tool in json.loads(body)["tools"]}
        if key in self.lost:
            raise IdempotencyConflict(
                "The answer is lost.", code="idempotency_answer_lost", details={"cost_nano": COST_NANO}
            )
        if key in self.kept:
            sent, answer = self.kept[key]
            if sent != body:
                raise IdempotencyConflict("Another body.")
            return Answer(200, answer.body, {**answer.headers, REPLAYED: "true"}, answer.call_id, 0)
        if self.before is not None:
            await self.before(key)
        answer = answer_to(body, self.tools, self.output)
        self.kept[key] = (body, answer)
        self.bought.append(key)
        if self.after is not None:
            await self.after(key)
        return answer

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer:
        raise NotImplementedError


def answer_to(body: bytes, tools: tuple[str, ...], output: dict[str, Any]) -> Answer:
    request = json.loads(body)
    roles = [message["role"] for message in reversed(request["messages"])]
    turn = roles[: roles.index("user")].count("assistant")  # since the user's last message
    name, arguments = (tools[turn], ARGUMENTS.get(tools[turn], {})) if turn < len(tools) else ("final_result", output)
    return calling(request["model"], (name, arguments), first=turn)


def calling(model: str, *calls: tuple[str, dict[str, Any]], first: int = 0) -> Answer:
    """A model's answer that calls these tools with these arguments; the calls are numbered from `first`."""
    tool_calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for number, (name, arguments) in enumerate(calls, first)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": tool_calls}
    answer = {
        "id": "1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }  # fmt: skip
    call_id: UUID = uuid4()
    headers = {CALL_ID: str(call_id), COST: format_decimal(COST_NANO)}
    return Answer(200, json.dumps(answer).encode(), headers, call_id, COST_NANO)


class Configurations:
    """The defaults of one definition, with changes."""

    def __init__(self, definition: AnyAgent, **changes: object) -> None:
        self.terms = default_terms(definition).model_copy(update=changes)

    async def current(self, agent: str) -> AgentConfiguration:
        if agent not in ("demo", "digest", "haiku", "news", "worker-test"):
            raise NotFound(f"no agent {agent}")
        return AgentConfiguration(agent, 0, self.terms)


@dataclass
class Principals:
    async def by_agent(self, name: str) -> Principal:
        if name not in ("demo", "digest", "haiku"):
            raise NotFound(f"no agent {name}")
        return Principal(1, "default", 1, "default", 7, name, None, None, epoch=1)

    async def renew(self, principal: Principal) -> Principal:
        return principal


async def asked(store: RunStore, run: Run) -> Approval:
    """The question that a run waits for."""
    (approval,) = await store.approvals(ApprovalFilter(run_id=run.id))
    return approval


async def approve(store: RunStore, run: Run, arguments: dict[str, Any] | None = None) -> Approval:
    """A person approves what a run asks."""
    approval = await asked(store, run)
    return await store.decide(approval.id, Decision(True, approval.digest, "ops", arguments=arguments))
