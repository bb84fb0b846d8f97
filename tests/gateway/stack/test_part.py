"""One supervised process: started, waited for, started again, stopped, and explained when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.stack import part as part_module
from gateway.stack.data_lock import DataLock
from gateway.stack.part import Part, PartFailed, PartState, PartStatus, SupervisedPart, describe_exit, pause_s
from gateway.stack.watchdog_client import WatchdogClient


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


def python(code: str, ready: Callable[[], Awaitable[bool]] = yes) -> Part:
    return Part(
        name="thing", address="nowhere", ready=ready, command=[sys.executable, "-c", code], environ=dict(os.environ)
    )


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "pause_s", lambda _failures: 0.01)


@pytest.fixture
async def watchdog() -> AsyncIterator[WatchdogClient]:
    async with WatchdogClient(lambda _: None) as watchdog:
        yield watchdog


class Watched:
    """A part that runs in a task, and the statuses that it has shown."""

    def __init__(self, part: Part, watchdog: WatchdogClient, folder: Path) -> None:
        self.shown: list[PartStatus] = []
        self.part = SupervisedPart(
            part, folder / "thing.log", watchdog, DataLock(folder / "children"), self.shown.append
        )
        self.task = asyncio.create_task(self.part.run())

    async def until(self, state: PartState, times: int = 1) -> PartStatus:
        async with asyncio.timeout(20):
            while len(found := [status for status in self.shown if status.state is state]) < times:
                await asyncio.sleep(0.01)
        return found[-1]

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.part.stop()


def test_pauses_grow_to_half_a_minute() -> None:
    assert [pause_s(failures) for failures in (1, 2, 3, 6, 7, 8, 1000)] == [0.5, 1, 2, 16, 30, 30, 30]


def test_an_exit_is_described_in_words() -> None:
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-250) == "killed by signal 250"
    assert describe_exit(3) == "exited with status 3"


async def test_a_part_that_dies_is_started_again_and_it_is_said(watchdog: WatchdogClient, tmp_path: Path) -> None:
    watched = Watched(python("import time; time.sleep(60)"), watchdog, tmp_path)
    first = await watched.until(PartState.READY)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    second = await watched.until(PartState.READY, times=2)
    assert second.restarts == 1
    assert second.pid != first.pid
    assert "killed by SIGKILL" in (await watched.until(PartState.DOWN)).detail
    await watched.stop()
    assert watched.shown[-1].state is PartState.STOPPED


async def test_what_a_part_warns_of_is_shown_while_it_is_ready(watchdog: WatchdogClient, tmp_path: Path) -> None:
    said = ["LiteLLM Proxy's clock is 3,600 s ahead", "LiteLLM Proxy's clock is 3,600 s ahead", ""]

    async def remark() -> str:
        return said.pop(0)

    watched = Watched(replace(python("import time; time.sleep(60)"), remark=remark), watchdog, tmp_path)
    await watched.part.look()
    assert len(said) == 3, "it is not ready yet"
    await watched.until(PartState.READY)
    for _ in range(3):
        await watched.part.look()
    ready = [status.detail for status in watched.shown if status.state is PartState.READY]
    assert ready == ["", "LiteLLM Proxy's clock is 3,600 s ahead", ""], "a change is said once"
    await watched.stop()


async def test_what_a_dead_part_leaves_in_its_group_is_killed(watchdog: WatchdogClient, tmp_path: Path) -> None:
    code = "import os, time\nchild = os.fork()\nprint(child if child else '', flush=True)\ntime.sleep(60)"
    watched = Watched(python(code), watchdog, tmp_path)
    first = await watched.until(PartState.READY)
    async with asyncio.timeout(10):
        while not (text := (tmp_path / "thing.log").read_text().strip()):
            await asyncio.sleep(0.01)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await watched.until(PartState.READY, times=2)
    await _gone(int(text.split()[0]))
    await watched.stop()


async def test_a_part_that_lives_and_answers_no_more_is_started_again(watchdog: WatchdogClient, tmp_path: Path) -> None:
    async def answers() -> bool:
        return [status.state for status in watched.shown].count(PartState.READY) > 1

    part = python("import time; time.sleep(60)")
    watched = Watched(replace(part, answers=answers, answers_every_s=0.02, patience_s=0.2), watchdog, tmp_path)
    first = await watched.until(PartState.READY)
    second = await watched.until(PartState.READY, times=2)
    assert second.pid != first.pid
    assert first.pid is not None
    await _gone(first.pid)
    assert "did not answer for 0.2 s" in (await watched.until(PartState.DOWN)).detail
    shown = len(watched.shown)
    await asyncio.sleep(0.5)  # longer than `patience_s`; the part answers now, so it is not restarted
    assert len(watched.shown) == shown
    await watched.stop()


async def test_a_part_that_never_starts_is_given_up_with_its_last_words(
    watchdog: WatchdogClient, tmp_path: Path
) -> None:
    watched = Watched(python("print('no such option'); raise SystemExit(2)", ready=no), watchdog, tmp_path)
    with pytest.raises(PartFailed, match=r"(?s)exited with status 2.*no such option") as caught:
        await watched.task
    assert "thing.log" in str(caught.value)
    assert watched.shown[-1].state is PartState.FAILED
    assert watched.shown[-1].restarts == 2


async def test_a_part_that_is_not_ready_in_time_is_given_up(watchdog: WatchdogClient, tmp_path: Path) -> None:
    part = replace(python("import time; time.sleep(60)", ready=no), start_timeout_s=0.05)
    watched = Watched(part, watchdog, tmp_path)
    with pytest.raises(PartFailed, match="not ready within"):
        await watched.task


async def test_a_program_that_is_not_there_is_said(watchdog: WatchdogClient, tmp_path: Path) -> None:
    part = replace(python(""), command=["/nowhere/redis-server"])
    with pytest.raises(PartFailed, match=r"cannot be run.*redis-server"):
        await Watched(part, watchdog, tmp_path).task


async def test_a_part_that_ignores_its_stop_signal_is_killed(watchdog: WatchdogClient, tmp_path: Path) -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)"
    )
    watched = Watched(replace(python(code), stop_timeout_s=0.1), watchdog, tmp_path)
    pid = (await watched.until(PartState.READY)).pid
    async with asyncio.timeout(10):
        while "deaf" not in (tmp_path / "thing.log").read_text():
            await asyncio.sleep(0.01)
    await watched.stop()
    assert pid is not None
    await _gone(pid)


async def test_an_external_server_is_awaited_and_never_started(watchdog: WatchdogClient, tmp_path: Path) -> None:
    watched = Watched(Part(name="redis", address="redis://elsewhere", ready=yes), watchdog, tmp_path)
    await watched.task
    assert watched.part.status.external
    assert watched.part.status.pid is None
    away = Watched(Part(name="redis", address="redis://away", ready=no, start_timeout_s=0.01), watchdog, tmp_path)
    with pytest.raises(PartFailed, match=r"redis at redis://away did not answer"):
        await away.task


async def test_the_client_starts_a_watchdog_that_died_again(watchdog: WatchdogClient) -> None:
    first = watchdog.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(10):
        while watchdog.pid == first:
            await asyncio.sleep(0.02)


async def _gone(pid: int) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return
            await asyncio.sleep(0.02)
