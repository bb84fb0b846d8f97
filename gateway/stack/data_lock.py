"""Only one supervisor for a data folder, and a clean start after a supervisor that was killed.

What must hold:
The kernel's lock decides, so that a file which a dead process left behind locks nobody out.
Processes that a dead supervisor left running, because its watchdog was killed with it, are stopped before anything starts.
A process counts as left behind only if its id and its start time are the recorded ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from gateway.stack.state import StackState
from gateway.stack.watchdog import stop_groups


class AlreadyRunning(Exception):
    """Another supervisor has the data folder. `pid` is its process."""

    def __init__(self, data_dir: Path, pid: int) -> None:
        self.pid = pid
        state = StackState.read(data_dir)
        where = f" at {state.gateway_url}" if state is not None else ", still starting"
        super().__init__(
            f"Treasurer is already running on {data_dir} (process {pid}{where}). "
            f"Stop it with `kill {pid}`, or give another folder with TREASURER_DATA_DIR."
        )


class DataFolderUnusable(Exception):
    """The data folder cannot be made, or not written to. The message says which folder, and why."""


class DataLock:
    """A data folder that is locked for this supervisor. Records each process that the supervisor starts, for the next one."""

    def __init__(self, children: Path) -> None:
        self._children = children

    def record(self, pid: int, stop_signal: int) -> None:
        """Record a process group that was started. `pid` is its leader."""
        with contextlib.suppress(psutil.NoSuchProcess):
            line = f"{pid} {psutil.Process(pid).create_time()} {stop_signal}\n"
            with self._children.open("a", encoding="utf-8") as out:
                out.write(line)


@contextmanager
def data_lock(data_dir: Path) -> Iterator[DataLock]:
    """Lock the data folder until the end of the block.

    Raises:
        AlreadyRunning: another supervisor holds it.
        DataFolderUnusable: it cannot be made or written to.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataFolderUnusable(
            f"The data folder {data_dir} cannot be used: {error.strerror}. "
            "Give another one with --data-dir or TREASURER_DATA_DIR."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunning(data_dir, _number(os.pread(handle, 32, 0))) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        StackState.remove(data_dir)
        children = data_dir / "children"
        stop_groups(_left_behind(children))
        children.unlink(missing_ok=True)
        try:
            yield DataLock(children)
        finally:
            StackState.remove(data_dir)
            children.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _number(text: bytes) -> int:
    return int(text) if text.strip().isdigit() else 0


def _left_behind(children: Path) -> dict[int, int]:
    groups: dict[int, int] = {}
    if not children.exists():
        return groups
    for line in children.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, psutil.NoSuchProcess):
            pid, started, stop_signal = line.split()
            if abs(psutil.Process(int(pid)).create_time() - float(started)) < 1:
                groups[int(pid)] = signal.Signals(int(stop_signal))
    return groups
