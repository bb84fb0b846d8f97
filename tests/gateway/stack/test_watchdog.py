"""The watchdog: how it reads its list of process groups, and that no group survives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from gateway.stack import watchdog

#: A program that ignores SIGTERM, as its child does, so that only SIGKILL ends them.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(os.getpid(), child, flush=True)
time.sleep(60)
"""


def test_a_group_that_was_taken_back_is_left_alone() -> None:
    lines = ["+ 10 15\n", "+ 11 2\n", "- 10\n", "- 99\n", "+ 12"]
    assert watchdog.groups_left(lines) == {11: 2}


def test_the_end_of_its_input_ends_a_stubborn_group_and_its_grandchildren(tmp_path: Path) -> None:
    script = tmp_path / "watchdog.py"
    script.write_text(Path(watchdog.__file__).read_text().replace("GRACE_S = 5.0", "GRACE_S = 0.3"))
    with (
        subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True) as stubborn,
        subprocess.Popen([sys.executable, "-I", "-S", str(script)], stdin=subprocess.PIPE) as dog,
    ):
        assert stubborn.stdout is not None
        assert dog.stdin is not None
        parent, child = map(int, stubborn.stdout.readline().split())
        dog.stdin.write(f"+ {parent} {signal.SIGTERM.value}\n".encode())
        dog.stdin.close()
        assert dog.wait(10) == 0
        assert stubborn.wait(10) == -signal.SIGKILL
        _assert_gone(child)


def test_signals_meant_for_the_supervisor_do_not_end_it() -> None:
    command = [sys.executable, "-I", "-S", watchdog.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as dog:
        deadline = time.monotonic() + 10
        while signal.SIGTERM not in _ignored(dog.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(dog.pid, number)
        time.sleep(0.1)
        assert dog.poll() is None


def _ignored(pid: int) -> set[int]:
    """The signals that a process ignores. Without /proc they are unknown, so wait instead."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        time.sleep(1)
        return {signal.SIGTERM}
    mask = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    return {number for number in range(1, 32) if mask >> (number - 1) & 1}


def _assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")
