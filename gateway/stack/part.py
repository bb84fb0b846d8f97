"""One supervised process: started, waited for, watched, started again, stopped.

What must hold:
A part is `ready` only while it answers as it should.
A part that ends, or has not answered for `patience_s`, is started again after a pause that grows with each failure.
A part that was ready once is started again forever. One that never was is given up after `_FIRST_TRIES` starts.
When a part ends, its whole process group is killed before the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from gateway.stack.data_lock import DataLock
from gateway.stack.logs import open_log, tail
from gateway.stack.postgres import Identity, PostgresError
from gateway.stack.watchdog_client import WatchdogClient

_FIRST_TRIES = 3
#: A part that was up for longer than this counts as healthy: its next failure counts as the first one again.
_HEALTHY_AFTER_S = 60.0
_LONGEST_PAUSE_S = 30.0


class PartState(StrEnum):
    """The state of a part's process."""

    WAITING = "waiting"  # it waits until the parts that it needs are ready
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    DOWN = "down"  # it will be started again
    FAILED = "failed"  # it was given up, so the stack does not start
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class PartStatus:
    """A part's state at one moment, to be shown. `since` is in seconds of the monotonic clock."""

    name: str
    address: str
    state: PartState = PartState.WAITING
    pid: int | None = None
    restarts: int = 0
    since: float = 0.0
    detail: str = ""
    external: bool = False


class PartFailed(Exception):
    """A part cannot be started. The message has the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Part:
    """How a part is started and checked. One without a `command` is an external server, which is only waited for."""

    name: str
    address: str
    ready: Callable[[], Awaitable[bool]]
    command: Sequence[str] | None = None
    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    depends_on: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None  # called before each start; may block
    prepare_detail: str = ""  # shown while `prepare` runs; `start_detail` and `once_detail` likewise
    start_detail: str = ""
    once_ready: Callable[[], Awaitable[None]] | None = None  # awaited once, before the part counts as ready
    once_detail: str = ""
    on_exit: Callable[[int], None] | None = None
    identity: Identity = field(default_factory=Identity)
    directory: Path | None = None
    listens: tuple[str, int] | None = None  # the supervisor listens on this address, and the part inherits the socket
    stop_signal: signal.Signals = signal.SIGTERM
    start_timeout_s: float = 30.0
    stop_timeout_s: float = 5.0
    answers: Callable[[], Awaitable[bool]] | None = None  # checks whether a running part answers; None: no such check
    answers_every_s: float = 5.0
    patience_s: float = 120.0  # after so many seconds without an answer the part is started again
    remark: Callable[[], Awaitable[str]] | None = None  # a warning about a part that is ready, or ""


def pause_s(failures: int) -> float:
    """The pause before the next start, after `failures` failures in a row: 0.5, 1, 2 … 30 seconds."""
    return min(_LONGEST_PAUSE_S, 0.5 * 2 ** min(failures - 1, 10))


def describe_exit(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-returncode).name}"
        return f"killed by signal {-returncode}"
    return f"exited with status {returncode}"


class SupervisedPart:
    """Runs one part until it is stopped."""

    def __init__(
        self,
        part: Part,
        log: Path,
        watchdog: WatchdogClient,
        data_lock: DataLock,
        changed: Callable[[PartStatus], None],
    ) -> None:
        self.part = part
        self.log = log
        self.ready = asyncio.Event()
        self.listener: socket.socket | None = None
        self.status = PartStatus(part.name, part.address, since=time.monotonic(), external=part.command is None)
        self._watchdog = watchdog
        self._data_lock = data_lock
        self._changed = changed
        self._process: Process | None = None
        self._was_ready = False

    async def run(self) -> None:
        """Keep the part running, until this task is cancelled. For an external part, return once it is ready.

        Raises:
            PartFailed: the part never became ready.
        """
        failures = 0
        while True:
            started = time.monotonic()
            reason = await self._start()
            if reason is None:
                self._show(PartState.READY)
                self.ready.set()
                if self.part.command is None:
                    return
                assert self._process is not None
                reason = await self._ended(self._process)
            self._end()
            failures = 1 if self._was_ready and time.monotonic() - started > _HEALTHY_AFTER_S else failures + 1
            if not self._was_ready and (failures >= _FIRST_TRIES or self.part.command is None):
                self._show(PartState.FAILED, reason)
                raise PartFailed(self._failure(reason))
            pause = pause_s(failures)
            self._show(PartState.DOWN, f"{reason}; starting again in {pause:g} s", restarts=self.status.restarts + 1)
            await asyncio.sleep(pause)

    async def look(self) -> None:
        """Show the warning about a part that is ready, if there is one."""
        if self.part.remark is None or self.status.state is not PartState.READY:
            return
        remark = await self.part.remark()
        if self.status.state is PartState.READY and remark != self.status.detail:
            self.status = replace(self.status, detail=remark)
            self._changed(self.status)

    async def stop(self) -> None:
        """Ask the process to end. If it has not ended after `stop_timeout_s`, kill its whole group."""
        process = self._process
        self.ready.clear()
        if process is None or process.returncode is not None:
            return
        self._show(PartState.STOPPING)
        await self._bring_to_an_end(process)
        self._end()
        self._show(PartState.STOPPED)

    async def _bring_to_an_end(self, process: Process) -> None:
        # Signal the whole group, because a uvicorn that waits for a worker's imports ignores a signal to itself alone.
        self._signal_group(process.pid, self.part.stop_signal)
        try:
            await asyncio.wait_for(process.wait(), self.part.stop_timeout_s)
        except TimeoutError:
            self._signal_group(process.pid, signal.SIGKILL)
            await process.wait()

    async def _ended(self, process: Process) -> str:
        """Wait until the process has ended, or end it when it no longer answers. Returns the reason."""
        if self.part.answers is None:
            return describe_exit(await process.wait())
        answered = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                return describe_exit(await asyncio.wait_for(process.wait(), self.part.answers_every_s))
            if await self.part.answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > self.part.patience_s:
                await self._bring_to_an_end(process)
                return f"did not answer for {self.part.patience_s:g} s"

    async def _start(self) -> str | None:
        """Start the part and wait until it is ready. Returns None, or the reason why it is not ready."""
        if self.part.prepare is not None:
            self._show(PartState.PREPARING, self.part.prepare_detail)
            try:
                await asyncio.to_thread(self.part.prepare)
            except (OSError, PostgresError) as error:
                return f"could not be prepared: {error}"
        if self.part.command is not None:
            try:
                self._process = await self._spawn(self.part.command)
            except OSError as error:
                return f"cannot be run: {error}"
        self._show(PartState.STARTING, self.part.start_detail)
        deadline = time.monotonic() + self.part.start_timeout_s
        while not await self.part.ready():
            if self._process is not None and self._process.returncode is not None:
                return describe_exit(self._process.returncode)
            if time.monotonic() > deadline:
                return f"was not ready within {self.part.start_timeout_s:g} s"
            await asyncio.sleep(0.1)
        if self.part.once_ready is not None and not self._was_ready:
            self._show(PartState.STARTING, self.part.once_detail)
            await self.part.once_ready()
        self._was_ready = True
        return None

    async def _spawn(self, command: Sequence[str]) -> Process:
        environ, handed = dict(self.part.environ), tuple[int, ...]()
        if self.listener is not None:
            handed = (self.listener.fileno(),)
            environ["TREASURER_LISTEN_FD"] = str(self.listener.fileno())
        with open_log(self.log) as out:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environ,
                pass_fds=handed,
                cwd=self.part.directory,
                start_new_session=True,  # a separate group: Ctrl-C reaches only us, and we stop the parts in order
                **self.part.identity,
            )
        self._watchdog.add(process.pid, self.part.stop_signal)
        self._data_lock.record(process.pid, self.part.stop_signal)
        return process

    def _end(self) -> None:
        """Kill what is left of the process's group, and remove the group from the watchdog's list."""
        self.ready.clear()
        process, self._process = self._process, None
        if process is None:
            return
        self._signal_group(process.pid, signal.SIGKILL)
        self._watchdog.remove(process.pid)
        if self.part.on_exit is not None:
            self.part.on_exit(process.pid)

    @staticmethod
    def _signal_group(group: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)

    def _show(self, state: PartState, detail: str = "", *, restarts: int | None = None) -> None:
        self.status = replace(
            self.status,
            state=state,
            detail=detail,
            pid=None if self._process is None else self._process.pid,
            restarts=self.status.restarts if restarts is None else restarts,
            since=time.monotonic(),
        )
        self._changed(self.status)

    def _failure(self, reason: str) -> str:
        if self.part.command is None:
            return f"{self.part.name} at {self.part.address} {reason.replace('was not ready', 'did not answer')}."
        lines = tail(self.log)
        said = f" The last lines of {self.log}:\n{lines}" if lines else f" It wrote nothing to {self.log}."
        return f"{self.part.name} did not start: it {reason}.{said}"
