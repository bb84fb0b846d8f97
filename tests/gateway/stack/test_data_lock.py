"""One supervisor for one data folder, and what a dead one left is cleared away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from gateway.stack.data_lock import AlreadyRunning, data_lock
from gateway.stack.state import StackState


def state(data_dir: Path, pid: int, started: float) -> StackState:
    return StackState(
        pid=pid,
        pid_started=started,
        started_at=datetime.now(UTC),
        data_dir=data_dir,
        database_url="postgresql://u:p@127.0.0.1:1/d",
        redis_url="redis://127.0.0.1:1/0",
        proxy_url="http://127.0.0.1:1",
        provider_url=None,
        gateway_url="http://127.0.0.1:4100",
        gateway_urls=[],
        grant_secret_file=data_dir / "g",
        proxy_master_key_file=data_dir / "m",
        admin_key_file=data_dir / "a",
        real=[],
        simulated=[],
        pids={},
    )


def own_state(data_dir: Path) -> StackState:
    return state(data_dir, os.getpid(), psutil.Process().create_time())


def test_a_second_claim_says_who_runs_and_where(tmp_path: Path) -> None:
    with data_lock(tmp_path):
        with pytest.raises(AlreadyRunning, match=rf"process {os.getpid()}, still starting"), data_lock(tmp_path):
            pass
        own_state(tmp_path).write()
        with (
            pytest.raises(AlreadyRunning, match=r"at http://127\.0\.0\.1:4100.*kill \d+") as caught,
            data_lock(tmp_path),
        ):
            pass
        assert caught.value.pid == os.getpid()
    with data_lock(tmp_path):
        assert StackState.read(tmp_path) is None


def test_a_stale_lock_file_and_state_lock_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("99999999\n")
    state(tmp_path, 99999999, 1.0).write()
    with data_lock(tmp_path):
        assert not (tmp_path / "stack.json").exists()


def test_a_recycled_process_id_is_not_the_supervisor(tmp_path: Path) -> None:
    state(tmp_path, os.getpid(), psutil.Process().create_time() - 100).write()
    assert StackState.read(tmp_path) is None
    own_state(tmp_path).write()
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
        reaper = time.monotonic()
        with data_lock(tmp_path) as ours:
            assert left.wait(1) in {-signal.SIGTERM, -signal.SIGKILL}
            assert other.poll() is None, "its id was recorded, but at another start: it is not ours"
            ours.record(os.getpid(), 15)
            assert str(os.getpid()) in (tmp_path / "children").read_text()
        assert time.monotonic() - reaper < 15
        other.kill()
