"""The whole `treasurer demo`, as the README's first command runs it on a machine with one processor.

With two, LiteLLM Proxy would have two workers, and would be imported three times. (tests/chaos has two workers.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(300)
def test_the_demo_finds_that_everything_agrees(memory_dir: Path) -> None:
    folder = memory_dir / "demo"
    folder.mkdir(mode=0o755)
    environ = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_API_BASE"))}
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "demo"],
        cwd=ROOT,
        env=environ | {"TMPDIR": str(folder), "TREASURER_PROXY_WORKERS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert "Everything agrees." in ended.stdout
    assert list(folder.iterdir()) == [], "the demo leaves nothing behind"
