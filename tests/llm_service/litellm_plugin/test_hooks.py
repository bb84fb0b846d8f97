"""The plugin inside LiteLLM's own environment: the checks of plugin_checks.py, run there once."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.servers  # starts LiteLLM in its own environment

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-proxy" / "bin" / "python"
CHECKS = Path(__file__).with_name("plugin_checks.py")
NAMES = re.findall(r"^async def (check_\w+)", CHECKS.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    if not PYTHON.exists():
        pytest.skip("LiteLLM Proxy's environment is not set up: make setup")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        [str(PYTHON), str(CHECKS)],
        env={**environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, str | None] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_inside_litellm(results: dict[str, str | None], name: str) -> None:
    assert results[name] is None, results[name]
