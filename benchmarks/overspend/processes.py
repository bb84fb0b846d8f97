"""The processes that this program starts. Each is in a separate process group, which is ended with it.

What must hold: when the block ends, nothing that was started in it is running. If this program is killed, a watchdog
ends what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from gateway.stack.watchdog_client import WatchdogClient


class Processes:
    """Starts and ends processes, which it knows by their ids."""

    def __init__(self) -> None:
        self._watchdog = WatchdogClient(lambda _: None)
        self._running: dict[int, tuple[Process, signal.Signals]] = {}

    async def __aenter__(self) -> Processes:
        await self._watchdog.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for process, _ in reversed(list(self._running.values())):
            await self.end(process)
        await self._watchdog.__aexit__(kind, error, trace)

    async def start(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> Process:
        """Start a process and append its output to `log`. `stop_signal` is the signal that asks it to end."""
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=None if environ is None else dict(environ),
                cwd=cwd,
                start_new_session=True,
            )
        self._running[process.pid] = (process, stop_signal)
        self._watchdog.add(process.pid, stop_signal)
        return process

    async def end(self, process: Process, patience_s: float = 15) -> None:
        """Ask the process to end, wait for this long, and kill what is left of its group."""
        _, stop_signal = self._running.pop(process.pid, (process, signal.SIGTERM))
        if process.returncode is None:
            _signal(process.pid, stop_signal)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), patience_s)
        await self._gone(process)

    async def kill(self, process: Process) -> None:
        """`kill -9` the process and its group."""
        self._running.pop(process.pid, None)
        await self._gone(process)

    async def _gone(self, process: Process) -> None:
        _signal(process.pid, signal.SIGKILL)
        await process.wait()
        self._watchdog.remove(process.pid)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
