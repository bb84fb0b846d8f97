"""The digest as a recorded run: taken up in another process, it comes to the same output, and reads no feed again."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agents.catalog.digest import DEFINITION
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import State
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from tests.agents.runs.scripted import Configurations, Principals, Script


async def digest() -> list[str]:
    return ["digest"]


LINK = "https://ledger.example/2026/token-prices"


@pytest.mark.parametrize("step", [2, 3])
async def test_a_digest_that_is_taken_up_again_keeps_its_links(
    executor: RunExecutor, store: InMemoryRuns, step: int
) -> None:
    item = {"headline": "h", "source": "s", "why_it_matters": "w"}
    items = [item | {"url": LINK}, item | {"url": "https://made-up.example/"}]
    script = Script(("read_feed",), {"title": "t", "summary": "s", "items": items})
    executor = replace(executor, service=script, find=lambda _name: DEFINITION, agents=digest)
    starter = RunStarter(store, Principals(), Configurations(DEFINITION), "1", find=lambda _name: DEFINITION)
    run = await starter.start(StartRequest("digest", {"feeds": ["sample:news.xml"]}))
    (claimed,) = await store.claim(run.id, 1, None)
    record = store.record

    async def die(*arguments: object) -> None:
        if len(await store.steps(run.id)) == step:
            raise asyncio.CancelledError  # the process is gone once so many steps are recorded
        await record(*arguments)  # pyright: ignore[reportArgumentType]

    store.record = die  # pyright: ignore[reportAttributeAccessIssue]
    if step == 3:
        await executor.execute(claimed)  # it came to its end, which was not written
    else:
        with pytest.raises(asyncio.CancelledError):
            await executor.execute(claimed)
    store.record = record
    store.pass_time(60)
    await store.recover()
    await Worker(executor).work_off()
    run = await store.find(run.id)
    assert run.state is State.SUCCEEDED
    assert [each["url"] for each in run.output["items"]] == [LINK, ""]
    assert len(script.bought) == 2
