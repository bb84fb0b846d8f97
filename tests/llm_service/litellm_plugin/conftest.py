"""The results of the checks that run inside LiteLLM's own environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-proxy" / "bin" / "python"


@pytest.fixture(scope="session")
def inside_litellm() -> dict[str, dict[str, str | None]]:
    """By file and check: None, or the failure. All checks run once, in one process, because LiteLLM takes long to
    load."""
    if not PYTHON.exists():
        pytest.skip("LiteLLM Proxy's environment is not set up: make setup")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name("run_checks.py"))],
        env={**environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, dict[str, str | None]] = json.loads(run.stdout.splitlines()[-1])
    return found
