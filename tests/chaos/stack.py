"""A separate stack for the chaos test. It can be killed and started again on the same data, and get one more gateway.

Lifetimes are short here (a hold lives eight seconds), so that holds expire while the test is watching.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.stack.ports import listen
from gateway.stack.probe import http_ok
from gateway.stack.state import StackState
from tests.faketime import MovableClock

ROOT = Path(__file__).parent.parent.parent
CALL_S, MARGIN_S, SWEEP_S = 6.0, 2.0, 1.0
LIFETIME_S = CALL_S + MARGIN_S
_TIMES = {
    "TREASURER_CALL_TIMEOUT_S": str(CALL_S),
    "TREASURER_HOLD_MARGIN_S": str(MARGIN_S),
    "TREASURER_SWEEP_INTERVAL_S": str(SWEEP_S),
    "TREASURER_LOG_LEVEL": "warning",
}
_UNDER_A_CLOCK = """
from gateway.stack.postgres import EmbeddedPostgres
_environ = EmbeddedPostgres.environ
EmbeddedPostgres.environ = lambda self: _environ(self) | {}
from gateway.cli import main
main()
"""


@dataclass
class Stack:
    """A running `treasurer up`. With a `clock`, its Postgres server uses that clock."""

    data_dir: Path
    clock: MovableClock | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_API_BASE"))}
        arguments = ["--data-dir", str(self.data_dir), "--port", "0", "--gateways", "2", "--proxy-workers", "2"]
        with self.data_dir.with_suffix(".log").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, *self._program(), "up", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environ | _TIMES | {"TREASURER_WORKERS": "0"},
                cwd=ROOT,
                start_new_session=True,
            )

    def _program(self) -> Sequence[str]:
        if self.clock is None:
            return ("-m", "gateway.cli")
        return ("-c", _UNDER_A_CLOCK.format(self.clock.environ()))

    async def ready(self, within_s: float = 240) -> StackState:
        assert self.process is not None
        deadline = time.monotonic() + within_s
        while (state := StackState.read(self.data_dir)) is None or state.pid != self.process.pid:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the stack did not start: {self.said()}")
            await asyncio.sleep(0.2)
        return state

    def said(self) -> str:
        return self.data_dir.with_suffix(".log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its watchdog stops the other processes
                self.process.wait()


@asynccontextmanager
async def one_more_gateway(
    state: StackState, program: str = "", **environ: str
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start another gateway process on the stack, which runs `program` first; return its address."""
    command = [sys.executable, "-c", f"{program}\nfrom gateway.serve import main\nmain()"]
    log = state.data_dir / "logs" / "one-more-gateway.log"
    with listen("127.0.0.1", 0) as listener, log.open("ab") as out:
        handed, port = listener.fileno(), int(listener.getsockname()[1])
        given = {"TREASURER_DATA_DIR": str(state.data_dir), "TREASURER_PORT": str(port), **_TIMES, **environ}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=os.environ | {**given, "TREASURER_LISTEN_FD": str(handed)}, pass_fds=(handed,), cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            if await http_ok(f"{url}/readyz") or process.poll() is not None:
                break
            await asyncio.sleep(0.2)
        yield url, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
