"""When a LiteLLM worker gives memory back: after a crowd, and not while anything streams."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from llm_service.litellm_plugin import memory_release
from llm_service.litellm_plugin.memory_release import GivingBack


@dataclass
class Worker:
    under_way: int = 0
    given: int = 0

    def give(self) -> None:
        self.given += 1


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(memory_release, "_QUIET_S", 0.01)
    return Worker()


async def end(giving: GivingBack, worker: Worker, streams: int) -> None:
    worker.under_way = streams
    for _ in range(streams):
        worker.under_way -= 1
        giving.ended()


async def test_after_a_crowd_it_is_given_back_once(worker: Worker) -> None:
    giving = GivingBack(lambda: worker.under_way, worker.give)
    for crowds in (1, 2):
        await end(giving, worker, 60)
        await asyncio.sleep(0.1)
        assert worker.given == crowds
    await end(giving, worker, 10)
    await asyncio.sleep(0.1)
    assert worker.given == 2, "a few streams are no crowd"


async def test_while_anything_streams_it_is_put_off(worker: Worker) -> None:
    giving = GivingBack(lambda: worker.under_way, worker.give)
    await end(giving, worker, 60)
    worker.under_way = 1
    await asyncio.sleep(0.1)
    assert worker.given == 0
    worker.under_way = 0
    giving.ended()
    await asyncio.sleep(0.1)
    assert worker.given == 1


def test_it_can_be_given_back_here() -> None:
    memory_release.give_back()
