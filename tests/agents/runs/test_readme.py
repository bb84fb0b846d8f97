"""The README's agent, run without changes as a module of the catalogue."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from agents.registry import definition_of
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import State
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from tests.agents.runs.scripted import Configurations, Principals, Script

README = Path(__file__).parents[3] / "README.md"


async def haiku() -> list[str]:
    return ["haiku"]


async def test_the_readmes_agent_runs(executor: RunExecutor, store: InMemoryRuns) -> None:
    found = re.search(r"<!-- tested: agent -->\n```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert found is not None
    module = ModuleType("haiku")
    exec(compile(found[1], "README.md", "exec"), module.__dict__)
    definition = definition_of("haiku", module)
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
