"""One supervisor for one data folder, which first stops what a dead supervisor left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gateway.stack.data_lock import AlreadyRunning, data_lock
from gateway.stack.state import StackState

StateOf = Callable[..., StackState]


def test_a_second_claim_says_who_runs_and_where(tmp_path: Path, state_of: StateOf) -> None:
    with data_lock(tmp_path):
        with pytest.raises(AlreadyRunning, match=rf"process {os.getpid()}, still starting"), data_lock(tmp_path):
            pass
        state_of().write()
        with (
            pytest.raises(AlreadyRunning, match=r"at http://127\.0\.0\.1:4100.*kill \d+") as caught,
            data_lock(tmp_path),
        ):
            pass
        assert caught.value.pid == os.getpid()
    with data_lock(tmp_path):
        assert StackState.read(tmp_path) is None


def test_a_stale_lock_file_and_state_lock_nobody_out(tmp_path: Path, state_of: StateOf) -> None:
    (tmp_path / "lock").write_text("99999999\n")
    state_of(pid=99999999, pid_started=1.0).write()
    with data_lock(tmp_path):
        assert not (tmp_path / "stack.json").exists()


def test_a_recycled_process_id_is_not_the_supervisor(tmp_path: Path, state_of: StateOf) -> None:
    state_of(pid_started=psutil.Process().create_time() - 100).write()
    assert StackState.read(tmp_path) is None
    state_of().write()
    assert StackState.read(tmp_path) is not None


def test_a_broken_state_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    assert StackState.read(tmp_path) is None
    assert StackState.read(tmp_path / "missing") is None


def test_what_a_dead_supervisor_left_running_is_stopped(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep, start_new_session=True) as left, subprocess.Popen(sleep) as other:
        started = psutil.Process(left.pid).create_time()
        lines = [f"{left.pid} {started} 15", f"{other.pid} {started - 500} 15", "torn line", "99999999 1.0 15"]
        (tmp_path / "children").write_text("\n".join(lines))
        reaper = threading.Thread(target=left.wait)  # an ended process counts as running until its parent waits for it
        reaper.start()
        with data_lock(tmp_path) as ours:
            reaper.join()
            assert left.returncode == -signal.SIGTERM
            assert other.poll() is None, "its id was recorded, but at another start: it is not ours"
            ours.record(os.getpid(), 15)
            assert str(os.getpid()) in (tmp_path / "children").read_text()
        other.kill()
