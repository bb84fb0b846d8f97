"""Starts one more gateway of a running stack, with different settings."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gateway.stack.ports import listen
from gateway.stack.probe import http_ok
from gateway.stack.state import StackState

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def another_gateway(
    stack: StackState,
    stop_with_us: Callable[[int], None],
    log: Path,
    environ: Mapping[str, str],
    program: str = "from gateway.serve import main; main()",
) -> Iterator[tuple[str, int]]:
    """Yields its address and its process. It finds the stack's servers and secrets in the data folder."""
    with listen("127.0.0.1", 0) as listener, log.open("wb") as out:
        handed, port = listener.fileno(), int(listener.getsockname()[1])
        given = {"TREASURER_DATA_DIR": str(stack.data_dir), "TREASURER_PORT": str(port), **environ}
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=os.environ | {**given, "TREASURER_LISTEN_FD": str(handed)}, pass_fds=(handed,), cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
    stop_with_us(process.pid)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while not asyncio.run(http_ok(f"{url}/readyz")):
            assert process.poll() is None, f"it did not start:\n{log.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(20)
