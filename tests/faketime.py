"""Clocks that tests move: libfaketime (package `libfaketime`), preloaded into a child process.

What must hold: every process that was started with a clock sees the same time, whenever it was started, and sees each
move of the clock at once. So a clock is a file with an offset, which is replaced as a whole and read again whenever a
process asks for the time. (An absolute time would start anew in each process.) Only the wall clock moves. The monotonic
clock, which measures durations and timeouts, stays right.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/usr/lib/aarch64-linux-gnu/faketime",
    "/usr/lib/faketime",
    "/usr/lib64/faketime",
    "/usr/local/lib/faketime",
    "/opt/homebrew/lib/faketime",
)
MISSING = "libfaketime is not installed here (apt-get install libfaketime)"


def find_library(*, threads: bool = False) -> Path | None:
    """The path of libfaketime, or of its variant for programs with threads. None if it is not installed."""
    name = "libfaketimeMT.so.1" if threads else "libfaketime.so.1"
    found = (Path(folder) / name for folder in _FOLDERS)
    return next((path for path in found if path.exists()), None)


needs_faketime = pytest.mark.skipif(find_library() is None or find_library(threads=True) is None, reason=MISSING)


def remove_leftovers() -> None:
    """Delete the shared memory that libfaketime leaves behind when a process under it is killed."""
    for path in Path("/dev/shm").glob("*faketime_s*_*"):
        pid = path.name.rpartition("_")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError):  # the file belongs to another account
                path.unlink()


@dataclass(frozen=True)
class MovableClock:
    """The wall clock of the processes that are started with `environ`. It is right until it is moved."""

    file: Path

    def __post_init__(self) -> None:
        self.move(timedelta(0))

    def environ(self, *, threads: bool = False) -> dict[str, str]:
        """The variables that a child process needs. Its account must be able to read the clock's file.

        Raises:
            FileNotFoundError: libfaketime is not installed.
        """
        library = find_library(threads=threads)
        if library is None:
            raise FileNotFoundError(MISSING)
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def move(self, offset: timedelta) -> None:
        """Show the real time plus this offset. With a negative offset, the clock is behind."""
        fresh = self.file.with_name(f"{self.file.name}.new")
        fresh.write_text(f"{offset.total_seconds():+.6f}\n")
        fresh.chmod(0o644)
        fresh.replace(self.file)

    def move_to(self, moment: datetime) -> None:
        """Show this moment now, and let the clock run on from there."""
        self.move(moment - datetime.now(UTC))
