"""Starts one more LiteLLM Proxy of a running stack: with our plugin, but a separate grants folder and configuration."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gateway.settings import load_settings
from gateway.stack.litellm import NOT_INHERITED, proxy_command
from gateway.stack.plan import proxy_python
from gateway.stack.probe import http_ok
from gateway.stack.state import StackState

ROOT = Path(__file__).parent.parent.parent


def configuration(stack: StackState) -> dict[str, Any]:
    """The configuration that the stack's own proxy was started with."""
    return yaml.safe_load((stack.data_dir / "litellm" / "config.yaml").read_text())


@contextmanager
def another_proxy(
    stack: StackState,
    stop_with_us: Callable[[int], None],
    folder: Path,
    port: int,
    config: Mapping[str, Any],
) -> Iterator[str]:
    """Yields its address. `folder` gets its configuration, its used grants, its spool and its log."""
    folder.mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(dict(config)))
    command, extra = proxy_command(python=proxy_python(load_settings()), config_path=file, port=port, workers=1)
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    environ = extra | {
        "LITELLM_MASTER_KEY": stack.proxy_master_key,
        "PYTHONPATH": str(ROOT),
        "TREASURER_GRANT_SECRET": stack.grant_secret,
        "TREASURER_DATABASE_URL": stack.database_url,
        "TREASURER_GRANT_DIR": str(folder / "grants"),
        "TREASURER_SPOOL_DIR": str(folder / "spool"),
    }
    log = folder / "log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder, env={**inherited, **environ},
            start_new_session=True,
        )  # fmt: skip
    stop_with_us(process.pid)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while not asyncio.run(http_ok(f"{url}/health/liveliness")):
            assert process.poll() is None, f"it did not start:\n{log.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
