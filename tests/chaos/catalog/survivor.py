"""An agent with a tool of each policy, each of which has its effect at a receiver elsewhere (`tests/chaos/receiver.py`)."""

from __future__ import annotations

import os
from typing import Any

import aiohttp
from pydantic import BaseModel, ConfigDict
from pydantic_ai import Agent, RunContext

from agents.definition import AgentDefinition, Task
from agents.services import Services
from agents.tools import policy

#: Where the address of the receiver is.
RECEIVER = "TREASURER_TEST_RECEIVER"


class Errand(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


class Report(BaseModel):
    text: str


async def at(point: str) -> None:
    """Say where the run is. The receiver may take its time to answer."""
    await _post("points", {"key": policy.once_key(), "point": point})


async def _post(path: str, body: dict[str, str]) -> Any:
    timeout = aiohttp.ClientTimeout(total=120)
    url = f"{os.environ[RECEIVER]}/{path}"
    async with aiohttp.ClientSession(timeout=timeout) as session, session.post(url, json=body) as response:
        return await response.json()


async def _effect(tool: str) -> str:
    await at("before the effect")
    await _post("effects", {"key": policy.once_key(), "tool": tool})
    await at("after the effect")
    return "done"


async def _happened(key: str, arguments: dict[str, Any]) -> policy.Happened | policy.DidNotHappen:
    found = await _post("found", {"key": key})
    return policy.Happened("done") if found["times"] else policy.DidNotHappen()


agent = Agent[None, Report](deps_type=type(None), output_type=Report, name="survivor")


@agent.tool(metadata=policy.READ)
async def look(ctx: RunContext[None], at_what: str) -> str:
    return await _effect("look")


@agent.tool(metadata=policy.KEY)
async def send(ctx: RunContext[None], to: str) -> str:
    return await _effect("send")


@agent.tool(metadata=policy.verify(_happened))
async def book(ctx: RunContext[None], seat: int) -> str:
    return await _effect("book")


@agent.tool
async def delete(ctx: RunContext[None], name: str) -> str:
    return await _effect("delete")


def _task(given: Errand, services: Services) -> Task[None]:
    return Task(given.text, None)


DEFINITION = AgentDefinition(
    name="survivor",
    description="Does one errand.",
    model="gpt-4o-mini",
    input_type=Errand,
    agent=agent,
    task=_task,
    defaults={"time_limit": "10m"},
)
