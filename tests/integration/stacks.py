"""Starts one more whole stack, with its own configuration. All its providers are simulated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gateway.stack.state import StackState

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def another_stack(
    folder: Path, stop_with_us: Callable[[int], None], config: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[StackState]:
    """Yields the stack's addresses once it serves. `folder` gets its data, its configuration and its log."""
    file, data, log = folder / "litellm.yaml", folder / "data", folder / "log"
    file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_API_BASE"))}
    arguments = ["--data-dir", str(data), "--port", "0", "--proxy-workers", "1"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**inherited, "TREASURER_LITELLM_CONFIG": str(file), "TREASURER_WORKERS": "0", **environ},
            cwd=ROOT,
            start_new_session=True,
        )
    stop_with_us(process.pid)
    try:
        while (state := StackState.read(data)) is None:
            assert process.poll() is None, f"the stack did not start:\n{log.read_text(errors='replace')[-4000:]}"
            time.sleep(0.2)
        yield state
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()  # the stack's watchdog stops the rest
            process.wait()
