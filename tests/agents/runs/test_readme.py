"""The agents of the README and of docs/agents.md, run without changes as modules of the catalogue."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel
from pydantic_ai.models.test import TestModel

from agents.registry import definition_of
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Policy, State
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from agents.tools.policy import DidNotHappen, Happened, under_key
from tests.agents.runs.scripted import Configurations, Principals, Script

ROOT = Path(__file__).parents[3]


class Request(BaseModel):
    question: str


class Reply(BaseModel):
    text: str


class Desk:
    """What the tools of docs/agents.md call. It knows each call with its once key."""

    def __init__(self, services: object) -> None:
        self.calls: list[tuple[str, str | None]] = []

    async def order(self, order: str) -> dict[str, str]:
        self.calls.append(("look_up", None))
        return {"order": order}

    async def refund(self, order: str, *, idempotency_key: str) -> str:
        self.calls.append(("refund", idempotency_key))
        return "refunded"

    async def send(self, to: str, text: str, *, reference: str) -> str:
        self.calls.append(("send_letter", reference))
        return "sent"

    async def close(self, account: str) -> str:
        self.calls.append(("close_account", None))
        return "closed"


async def find_letter(once_key: str) -> str | None:
    return {"sent": "the letter"}.get(once_key)


def example(file: str, name: str, **known: object) -> ModuleType:
    """A module with the code that a document shows. `known`: what the document says that the reader has."""
    found = re.search(rf"<!-- tested: {name} -->\n```python\n(.*?)```", (ROOT / file).read_text("utf-8"), re.DOTALL)
    assert found is not None
    module = ModuleType(name)
    vars(module).update(known)
    exec(compile(found[1], file, "exec"), module.__dict__)
    return module


async def haiku() -> list[str]:
    return ["haiku"]


async def test_the_readmes_agent_runs(executor: RunExecutor, store: InMemoryRuns) -> None:
    definition = definition_of("haiku", example("README.md", "agent"))
    script = Script((), {"lines": ["a coin", "is counted", "once"]})
    executor = replace(executor, service=script, find=lambda _name: definition, agents=haiku)
    starter = RunStarter(store, Principals(), Configurations(definition), "1", find=lambda _name: definition)
    run = await starter.start(StartRequest("haiku", {"topic": "money"}))
    await Worker(executor).work_off()
    run = await store.find(run.id)
    assert run.state is State.SUCCEEDED, run
    assert run.output == {"lines": ["a coin", "is counted", "once"]}
    assert run.budget_nano == 20_000_000
    assert len(script.bought) == 1


async def test_the_agent_of_the_docs_has_a_tool_of_each_policy() -> None:
    module = example("docs/agents.md", "tools", Request=Request, Reply=Reply, Desk=Desk, find_letter=find_letter)
    definition = definition_of("desk", module)
    assert definition.tools == {
        "look_up": Policy.READ, "refund": Policy.KEY, "send_letter": Policy.VERIFY, "close_account": Policy.ASK
    }  # fmt: skip
    desk = Desk(None)
    with under_key("run/2"):
        result = await definition.agent.run("Close it.", model=TestModel(), deps=desk)
    assert isinstance(result.output, Reply)
    assert sorted(desk.calls, key=str) == [
        ("close_account", None), ("look_up", None), ("refund", "run/2"), ("send_letter", "run/2")
    ]  # fmt: skip
    assert isinstance(await module.was_sent("sent", {}), Happened)
    assert isinstance(await module.was_sent("lost", {}), DidNotHappen)
