"""A digest as a durable run, which one worker begins and another ends: it is as good as a plain one, and each answer is bought once.

Simulated: the service answers as a careful model does. `test_digest_quality.py` asks a real one.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.models import override_allow_model_requests

from agents.catalog.digest import DEFINITION, Digest, DigestRequest
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import State
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from agents.services import Services
from agents.services.feeds import FeedReader
from llm_service.model import StreamedAnswer
from llm_service.runs.money import RunMoney
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import Answer, CallContext, Principal
from tests.agents.runs.scripted import Configurations, Principals, calling
from tests.evals.digest_cases import dataset


@dataclass
class CarefulModel:
    """Reads every feed, then retells the first stories, in OpenAI's format. `answered`: after how many requests to tell `full`."""

    bought: list[str] = field(default_factory=list[str])
    answered: int = 0
    full: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        assert context.idempotency_key is not None
        if self.answered and len(self.bought) >= self.answered:
            self.full.set()
            await asyncio.sleep(3600)  # until its worker is stopped
        self.bought.append(context.idempotency_key)
        request = json.loads(body)
        read = [json.loads(each["content"]) for each in request["messages"] if each["role"] == "tool"]
        calls = [("final_result", digest(read))] if read else [("read_feed", {"feed": feed}) for feed in feeds(request)]
        return calling(request["model"], *calls)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer:
        raise AssertionError("a request was streamed, though nobody watches its run")


def feeds(request: dict[str, Any]) -> list[str]:
    (tool,) = [each["function"] for each in request["tools"] if each["function"]["name"] == "read_feed"]
    return tool["parameters"]["properties"]["feed"]["enum"]


def digest(read: list[dict[str, Any]]) -> dict[str, Any]:
    item = {"headline": "A story", "why_it_matters": "It may cost you money."}
    items = [item | {"source": feed["feed"], "url": feed["stories"][0]["url"]} for feed in read]
    return {"title": "Today", "summary": "Two things.", "items": items[:1]}


@pytest.mark.parametrize("answered", [0, 1], ids=["one worker", "a worker that stops in the middle"])
async def test_a_durable_digest_passes_every_measure(tmp_path: Path, answered: int) -> None:
    async def run(request: DigestRequest) -> Digest:
        model, store, principals = CarefulModel(answered=answered), InMemoryRuns(), Principals()
        money = RunMoney(InMemoryTreasury({}).envelopes, principals, freed=asyncio.sleep)
        services = Services(FeedReader(allow_files=True))

        def executor() -> RunExecutor:
            return RunExecutor(store, model, principals, money, services=services, find=lambda _name: DEFINITION)

        starter = RunStarter(store, principals, Configurations(DEFINITION), "1", find=lambda _name: DEFINITION)
        started = await starter.start(StartRequest("digest", request.model_dump(mode="json")))
        if answered:
            first = Worker(executor(), poll_s=0.01)
            working = asyncio.create_task(first.run())
            await model.full.wait()
            first.stop()  # hands the run over
            await working
            model.answered = 0
        await Worker(executor(), poll_s=0.01).work_off()
        ended = await store.find(started.id)
        assert ended.state is State.SUCCEEDED, ended
        assert ended.fence == 1 + bool(answered)
        assert len(set(model.bought)) == len(model.bought) == 2
        return Digest.model_validate(ended.output)

    with override_allow_model_requests(True):
        report = await (await dataset(tmp_path)).evaluate(run, progress=False, max_concurrency=1)
    assert report.failures == []
    assert len(report.cases) == 3
    failed = {
        (case.name, name) for case in report.cases for name, result in case.assertions.items() if not result.value
    }
    assert failed == set()
