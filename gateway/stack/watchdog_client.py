"""The supervisor's side of the watchdog: keeps one running and tells it what to stop.

What must hold: every process group that the supervisor starts is known to a living watchdog. One
that dies is started again and told everything.
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


class Guard:
    """Starts the watchdog on entering, and lets it go on leaving (it stops what is still named)."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._groups: dict[int, int] = {}
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Guard:
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

    def add(self, group: int, gentle: int) -> None:
        """From now on the group is stopped if we die, by the signal `gentle` first."""
        self._groups[group] = gentle
        self._tell(f"+ {group} {gentle}\n")

    def remove(self, group: int) -> None:
        """The group has ended."""
        if self._groups.pop(group, None) is not None:
            self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        # A watchdog that has just died takes no line; the next one is told everything.
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
        for group, gentle in self._groups.items():
            process.stdin.write(f"+ {group} {gentle}\n".encode())
        return process

    async def _keep(self) -> None:
        while self._process is not None:
            await self._process.wait()
            self._notice("The watchdog died; started again.")
            await asyncio.sleep(0.2)
            self._process = await self._start()
