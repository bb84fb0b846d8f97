"""Each part's log file. The part writes it, and the supervisor limits its size.

What must hold:
A part never waits until the supervisor reads its output, so each part writes to a file and not to a pipe.
No log grows forever. The files are opened for appending, so that one can be emptied while its part writes to it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO

LARGEST_BYTES = 10 * 1024 * 1024


def open_log(file: Path) -> IO[bytes]:
    """Open a log for a process to write to."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb")


def bound(file: Path, largest_bytes: int = LARGEST_BYTES) -> None:
    """Move the content of a log that has grown too large to `<name>.1`, replacing what was there."""
    try:
        if file.stat().st_size <= largest_bytes:
            return
    except FileNotFoundError:
        return
    shutil.copyfile(file, file.with_name(file.name + ".1"))
    os.truncate(file, 0)


def tail(file: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - 8192))
            return "\n".join(log.read().decode(errors="replace").strip().splitlines()[-lines:])
    except FileNotFoundError:
        return ""
