"""A process that crashes leaves no copy of its memory."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ALLOW = "import os, resource as r; m = r.getrlimit(r.RLIMIT_CORE)[1]; r.setrlimit(r.RLIMIT_CORE, (m, m)); "
FORBID = "from llm_service import core_dumps; core_dumps.forbid(); core_dumps.forbid(); "
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; os.abort()']); "


def left(folder: Path, program: str) -> list[str]:
    """The files that a crash leaves where it happens."""
    folder.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", program + "os.abort()"],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert run.returncode == -signal.SIGABRT, run.stderr.decode()
    return [file.name for file in folder.iterdir()]


def test_neither_a_process_nor_its_children_leave_a_dump(tmp_path: Path) -> None:
    assert left(tmp_path / "forbidden", ALLOW + FORBID + CHILD) == []
    if not left(tmp_path / "allowed", ALLOW):
        pytest.skip("this machine leaves no dumps beside a process that crashed, so there is nothing to compare with")


def test_it_is_for_good_and_holds_for_programs_that_take_dumps() -> None:
    """At a limit of 0 Linux still pipes a dump to `core_pattern`'s program; at 1 it does not."""
    program = ALLOW + FORBID + "print(*r.getrlimit(r.RLIMIT_CORE))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert run.stdout.split() == ([str(most)] * 2 if most == 0 else ["1", "1"])
