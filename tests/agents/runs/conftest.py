"""A store in memory, an agent with a tool of each policy, a scripted provider, and executors and workers of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from pydantic_ai.models import override_allow_model_requests

from agents.definition import AnyAgent
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.starting import RunStarter
from agents.runs.worker import Worker
from llm_service.runs.money import RunMoney
from llm_service.treasury.in_memory import InMemoryTreasury
from tests.agents.runs.scripted import Configurations, MakeWorker, Principals, Script, World, define


@pytest.fixture(autouse=True)
def _models_may_be_called() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with override_allow_model_requests(True):
        yield


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def store() -> InMemoryRuns:
    return InMemoryRuns()


@pytest.fixture
def definition(world: World) -> AnyAgent:
    return define(world)


@pytest.fixture
def executor(store: InMemoryRuns, script: Script, definition: AnyAgent) -> RunExecutor:
    async def agents() -> list[str]:
        return ["demo"]

    principals = Principals()
    money = RunMoney(InMemoryTreasury({}).envelopes, principals, freed=asyncio.sleep)
    return RunExecutor(store, script, principals, money, find=lambda _name: definition, agents=agents)


@pytest.fixture
def starter(store: InMemoryRuns, definition: AnyAgent) -> RunStarter:
    return RunStarter(store, Principals(), Configurations(definition), "1", find=lambda _name: definition)


@pytest.fixture
def worker(executor: RunExecutor) -> MakeWorker:
    """Another worker each time, as another process would be."""
    return lambda: Worker(executor, poll_s=0.01, renew_s=0.01)
