"""`treasurer demo` when it must not start. tests/integration/test_demo.py runs the whole demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gateway.cli.common import ExitCode

ROOT = Path(__file__).parent.parent.parent.parent


def test_it_starts_nothing_where_it_could_spend_real_money(tmp_path: Path) -> None:
    environ = os.environ | {"OPENAI_API_KEY": "sk-of-an-operator", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "gateway.cli", "demo"]
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == ExitCode.FAILED, ended.stderr
    assert "unset the providers' keys" in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr
    assert "sk-of-an-operator" not in ended.stdout + ended.stderr
    assert "ready" not in ended.stdout
    assert list(tmp_path.glob("treasurer-demo-*")) == []
