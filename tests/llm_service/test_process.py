"""A process that crashes leaves no copy of its memory, and Python collects garbage only where that cannot crash a
process."""

from __future__ import annotations

import gc
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_service import process

ROOT = Path(__file__).parent.parent.parent
ALLOW = "import os, resource as r; m = r.getrlimit(r.RLIMIT_CORE)[1]; r.setrlimit(r.RLIMIT_CORE, (m, m)); "
FORBID = "from llm_service import process; process.forbid_core_dumps(); process.forbid_core_dumps(); "
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; os.abort()']); "


def left(folder: Path, program: str) -> list[str]:
    """The files that a crash leaves in its working folder."""
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
    """With a limit of 0, Linux still pipes a dump to the program in `core_pattern`; with a limit of 1, it does not."""
    program = ALLOW + FORBID + "print(*r.getrlimit(r.RLIMIT_CORE))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert run.stdout.split() == ([str(most)] * 2 if most == 0 else ["1", "1"])


GARBAGE = """
import asyncio, gc, sys
from llm_service import process

places = set()

def note(phase, _):
    if phase == "start":
        places.add(sys._getframe(1).f_code.co_name)

def leave_cycles():
    for _ in range(10_000):
        cycle = []
        cycle.append(cycle)

async def main():
    gc.callbacks.append(note)
    if {guarded}:
        process.collect_between_callbacks()
    for _ in range(3):
        leave_cycles()
        await asyncio.sleep(2 * process._COLLECT_EVERY_S)
    gc.callbacks.clear()
    print(*places)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python itself collects at safe moments")
@pytest.mark.parametrize(("guarded", "where"), [(True, {"_collect_if_due"}), (False, {"leave_cycles"})])
def test_garbage_is_collected_between_callbacks_and_nowhere_else(guarded: bool, where: set[str]) -> None:
    """A collection in the middle of `ContextVar.set` can crash Python; see `llm_service.process`."""
    program = GARBAGE.format(guarded=guarded)
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == where


def test_without_a_loop_the_collector_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError):
        process.collect_between_callbacks()
    assert gc.isenabled()
