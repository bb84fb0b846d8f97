"""A chat agent with a harmless and a destructive tool, a model that answers by a script, and a worker: all in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict
from pydantic_ai import Agent

from agents.definition import AgentDefinition, AnyAgent, Task
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.starting import RunStarter
from agents.runs.watching import Watching
from agents.runs.worker import Worker
from agents.services import Services
from agents.tools import policy
from llm_service.call.response_headers import CALL_ID
from llm_service.errors import NotFound
from llm_service.model import StreamedAnswer
from llm_service.runs.money import RunMoney
from llm_service.runs.usage import Tokens
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import Answer, CallContext, Principal
from tests.agents.runs.scripted import Configurations

COST_NANO = 1_500_000


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    message: str


@dataclass
class Model:
    """Answers with the next of `says`: a text, a call of a tool, or an error. It keeps what it was sent. `before` is awaited
    before it answers."""

    says: list[str | tuple[str, dict[str, Any]] | Exception] = field(default_factory=list[Any])
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    before: Callable[[], Awaitable[object]] | None = None

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        self.bodies.append(json.loads(body))
        if self.before is not None:
            await self.before()
        said = self.says.pop(0)
        if isinstance(said, Exception):
            raise said
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if not isinstance(said, str):
            name, arguments = said
            function = {"name": name, "arguments": json.dumps(arguments)}
            call = {"id": f"call_{len(self.bodies)}", "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [call]}
        finish = "stop" if isinstance(said, str) else "tool_calls"
        answer = {
            "id": "1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
        }  # fmt: skip
        call_id = uuid4()
        return Answer(200, json.dumps(answer).encode(), {CALL_ID: str(call_id)}, call_id, COST_NANO)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer:
        raise NotImplementedError


@dataclass
class Chats:
    """The runs of agent `news`, which chats, and what its tools have done."""

    store: InMemoryRuns
    watching: Watching
    starter: RunStarter
    model: Model
    worker: Worker
    wiped: list[str] = field(default_factory=list[str])

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """A worker does what is queued, until the block is left."""
        working = asyncio.create_task(self.worker.run())
        try:
            yield
        finally:
            self.worker.stop()
            await working


class _Principals:
    async def by_agent(self, name: str) -> Principal:
        if name != "news":
            raise NotFound(f"There is no agent {name[:20]!r}.", param="agent")
        return Principal(1, "acme", 1, "team 1", 1, name, 5, "laptop", epoch=1)

    async def renew(self, principal: Principal) -> Principal:
        return principal


class _Counts:
    async def of_run(self, agent_id: int, run: str, since: object) -> Tokens:
        return Tokens(10, 4, 2)


def chats_at(runtime: Any, **changes: object) -> Chats:
    """Give a gateway these chats. `changes` are of the agent's configuration."""
    wiped: list[str] = []
    definition = _definition(wiped)
    model, store, principals = Model(), InMemoryRuns(), _Principals()

    async def agents() -> list[str]:
        return ["news"]

    find: Callable[[str], AnyAgent] = lambda _name: definition  # noqa: E731
    money = RunMoney(InMemoryTreasury({}).envelopes, principals, freed=asyncio.sleep)
    executor = RunExecutor(store, model, principals, money, find=find, agents=agents)
    starter = RunStarter(store, principals, Configurations(definition, **changes), "1", find=find)
    runtime.runs, runtime.starter, runtime.watching = store, starter, Watching(store, look_s=0.01)
    runtime.token_counts = _Counts()
    runtime.settings.call_timeout_s, runtime.settings.max_body_bytes = 20, 100_000
    return Chats(store, runtime.watching, starter, model, Worker(executor, poll_s=0.01, renew_s=0.05), wiped)


def _definition(wiped: list[str]) -> AnyAgent:
    agent = Agent(output_type=str, name="news")

    @agent.tool_plain(metadata=policy.READ)
    async def look(at: str) -> str:
        return f"seen {at}"

    @agent.tool_plain
    async def wipe(what: str) -> str:
        wiped.append(what)
        return f"wiped {what}"

    def task(given: Message, services: Services) -> Task[object]:
        return Task(given.message, None)

    return AgentDefinition(
        name="news",
        description="Chats.",
        model="gpt-4o-mini",
        input_type=Message,
        agent=agent,
        task=task,  # pyright: ignore[reportArgumentType]
    )
