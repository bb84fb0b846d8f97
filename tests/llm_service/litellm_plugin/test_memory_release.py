"""When a LiteLLM worker releases memory: after a crowd of streams, and not while a stream is under way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from llm_service.litellm_plugin.memory_release import MemoryRelease, release_memory


@dataclass
class Worker:
    under_way: int = 0
    released: int = 0

    def release(self) -> None:
        self.released += 1


def memory_of(worker: Worker) -> MemoryRelease:
    return MemoryRelease(lambda: worker.under_way, worker.release, quiet_s=0.01)


async def end(memory: MemoryRelease, worker: Worker, streams: int) -> None:
    worker.under_way = streams
    for _ in range(streams):
        worker.under_way -= 1
        memory.stream_ended()


async def test_after_a_crowd_memory_is_released_once() -> None:
    worker = Worker()
    memory = memory_of(worker)
    for crowds in (1, 2):
        await end(memory, worker, 60)
        await asyncio.sleep(0.1)
        assert worker.released == crowds
    await end(memory, worker, 10)
    await asyncio.sleep(0.1)
    assert worker.released == 2, "a few streams are no crowd"


async def test_while_anything_streams_the_release_is_put_off() -> None:
    worker = Worker()
    memory = memory_of(worker)
    await end(memory, worker, 60)
    worker.under_way = 1
    await asyncio.sleep(0.1)
    assert worker.released == 0
    worker.under_way = 0
    memory.stream_ended()
    await asyncio.sleep(0.1)
    assert worker.released == 1


def test_memory_can_be_released_here() -> None:
    release_memory()
