"""LiteLLM with our plugin sends a request to a provider once (I1), and knows whether a failure may have been billed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.servers  # starts LiteLLM in its own environment

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-proxy" / "bin" / "python"
CHECKS = Path(__file__).with_name("no_retries_checks.py")


@pytest.fixture(scope="module")
def failures() -> dict[str, dict[str, list[int | bool | None]]]:
    """What no_retries_checks.py has found, with and without LiteLLM's fast handler."""
    if not PYTHON.exists():
        pytest.skip("LiteLLM Proxy's environment is not set up: make setup")
    run = subprocess.run(
        [str(PYTHON), str(CHECKS)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("fast_handler", ["true", "false"])
def test_i1_a_request_is_sent_once_however_it_fails(
    failures: dict[str, dict[str, list[int | bool | None]]], fast_handler: str
) -> None:
    found = failures[fast_handler]
    assert len(found) == 6 * 4 + 2
    for failure, (requests, free) in found.items():
        reached = not failure.startswith("is away")
        refused = failure.startswith(("refuses", "is away"))
        assert (failure, requests, free) == (failure, 1 if reached else 0, refused)
