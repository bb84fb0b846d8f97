"""The supervisor's side of the watchdog: keeps one running, and gives it the list of process groups to stop.

What must hold: every process group that the supervisor starts is known to a living watchdog. A watchdog that dies is
started again, with the whole list.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path

from gateway.stack import watchdog

_SCRIPT = Path(watchdog.__file__)


class WatchdogClient:
    """A watchdog that runs during the block. At the end it stops the groups that are still on its list, and exits."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._groups: dict[int, int] = {}
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> WatchdogClient:
        self._process = await self._start()
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), watchdog.GRACE_S + 2)

    def add(self, group: int, stop_signal: int) -> None:
        """Put a group on the list: if this process dies, the group is stopped, first with `stop_signal`."""
        self._groups[group] = stop_signal
        self._write(f"+ {group} {stop_signal}\n")

    def remove(self, group: int) -> None:
        """Take a group that has ended off the list."""
        if self._groups.pop(group, None) is not None:
            self._write(f"- {group}\n")

    def _write(self, line: str) -> None:
        # A watchdog that has just died reads nothing; the next one gets the whole list.
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(line.encode())

    async def _start(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_SCRIPT),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert process.stdin is not None
        for group, stop_signal in self._groups.items():
            process.stdin.write(f"+ {group} {stop_signal}\n".encode())
        return process

    async def _keep(self) -> None:
        while self._process is not None:
            await self._process.wait()
            self._notice("The watchdog died, and is started again.")
            await asyncio.sleep(0.2)
            self._process = await self._start()
