"""Runs the whole stack: starts the parts in order, watches them until the end, and stops them in the opposite order.

What must hold:
After `running_stack` has been left, however that happened, nothing that it started is running.
While its body runs, every part has been ready, and a part that dies is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from gateway.settings import Settings
from gateway.stack.data_lock import DataLock, data_lock
from gateway.stack.logs import bound
from gateway.stack.part import PartState, PartStatus, SupervisedPart
from gateway.stack.plan import Plan, make_plan
from gateway.stack.ports import listen
from gateway.stack.state import StackState
from gateway.stack.watchdog_client import WatchdogClient
from llm_service import process

#: What is shown while a stack runs: a part's change, or a notice.
Progress = PartStatus | str

_TIDY_S = 30.0
_LOOK_S = 10.0
_CANCEL_AGAIN_S = 1.0


@asynccontextmanager
async def running_stack(
    settings: Settings,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_plan: Callable[[Plan], None] = lambda _: None,
) -> AsyncIterator[StackState]:
    """Start the stack, return its state once every part is ready, and stop it at the end of the block.

    `on_progress` is called for each notice, for each part before the first one starts, and then at each change of a part.
    `on_plan` is called once, before anything starts. If a part cannot be started, or the block is cancelled, everything
    is stopped.

    Raises:
        AlreadyRunning: another supervisor has the data folder.
        DataFolderUnusable: the data folder cannot be made or written to.
        PlanError, SettingsError, PostgresError, ConfigError: something is missing or wrong; the message names it.
        PartFailed: a part did not start; the message has the last lines of its log.
    """
    process.forbid_core_dumps()  # every process that is started inherits this
    with data_lock(settings.data_dir.resolve()) as lock:
        plan = await asyncio.to_thread(make_plan, settings)
        on_plan(plan)
        for notice in plan.notices:
            on_progress(notice)
        async with WatchdogClient(on_progress) as watchdog:
            stack = _Stack(plan, watchdog, lock, on_progress)
            try:
                await stack.start()
                yield stack.state
            finally:
                # Shielded, so that a second cancellation cannot interrupt the stop and leave processes behind.
                await asyncio.shield(asyncio.ensure_future(stack.stop()))


class _Stack:
    def __init__(
        self, plan: Plan, watchdog: WatchdogClient, lock: DataLock, on_progress: Callable[[Progress], None]
    ) -> None:
        self.state = plan.state
        self._on_progress = on_progress
        self._started = False
        logs = plan.state.data_dir / "logs"
        self._parts = {
            part.name: SupervisedPart(part, logs / f"{part.name}.log", watchdog, lock, self._changed)
            for part in plan.parts
        }
        self._tasks: list[asyncio.Task[None]] = []
        # Shared by the gateways, and kept open while gateways are started again, so that callers wait and none is reset.
        self._listeners: dict[tuple[str, int], socket.socket] = {}
        for part in self._parts.values():
            on_progress(part.status)

    async def start(self) -> None:
        for part in self._parts.values():
            address = part.part.listens
            if address is not None:
                if address not in self._listeners:
                    self._listeners[address] = listen(*address)
                part.listener = self._listeners[address]
        self._tasks = [asyncio.create_task(self._run(part)) for part in self._parts.values()]
        all_ready = asyncio.create_task(self._all_ready(self._parts))
        try:
            pending: set[asyncio.Task[None]] = {all_ready, *self._tasks}
            while not all_ready.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises if the part failed, which ends the start
        finally:
            all_ready.cancel()
        self._started = True
        self._publish()
        self._tasks += [asyncio.create_task(self._tidy()), asyncio.create_task(self._look())]

    async def stop(self) -> None:
        StackState.remove(self.state.data_dir)
        self._started = False
        await _cancelled(self._tasks)
        for layer in _layers(self._parts):
            await asyncio.gather(*(self._parts[name].stop() for name in layer))
        for listener in self._listeners.values():
            listener.close()

    async def _run(self, part: SupervisedPart) -> None:
        await self._all_ready(part.part.depends_on)
        await part.run()

    async def _all_ready(self, names: Iterable[str]) -> None:
        for name in names:
            await self._parts[name].ready.wait()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_S)
            for part in self._parts.values():
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(bound, part.log)

    async def _look(self) -> None:
        while True:
            await asyncio.gather(*(part.look() for part in self._parts.values()))
            await asyncio.sleep(_LOOK_S)

    def _changed(self, status: PartStatus) -> None:
        self._on_progress(status)
        if self._started and status.state is PartState.READY:
            self._publish()

    def _publish(self) -> None:
        pids = {name: part.status.pid for name, part in self._parts.items() if part.status.pid is not None}
        self.state = self.state.model_copy(update={"pids": pids})
        self.state.write()


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel the tasks and wait for their end. A library may swallow a cancellation (redis-py does), so cancel again."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


def _layers(names: Iterable[str]) -> list[list[str]]:
    """Groups of parts that are stopped together, in order: callers before the parts that they call, Postgres last."""
    workers = [name for name in names if name.startswith("worker-")]
    gateways = [name for name in names if name.startswith("gateway-")]
    last = [name for name in names if name == "postgres"]
    return [workers, gateways, [name for name in names if name not in {*workers, *gateways, *last}], last]
