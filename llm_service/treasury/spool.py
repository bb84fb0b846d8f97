"""The spool: settlements that Postgres could not take yet, on disk, so that a crash meanwhile loses none.

What must hold (I2): a settlement that was given to `add` is on disk before it returns, and stays until Postgres has
it. After a crash any process that uses the folder takes the dead one's file over, once at a time; settling twice
does no harm, because a settlement is idempotent by its attempt. A file's owner lives as long as it holds the lock
of that file: the system lets go of it with the process, however that ends.

One journal for each process: JSON lines, appended; a line that a crash has torn is the last, and is left out (its
call is then settled by the proxy's witness). Fields of a newer version are ignored, missing ones are at their default.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import orjson

from llm_service.types import LedgerState, Settlement, Usage, UsageSource

log = logging.getLogger(__name__)


class SettlementSpool:
    """A folder of journals, of which one is this process's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._file: BinaryIO | None = None
        self._lines: list[bytes] = []
        self._written = 0

    def __len__(self) -> int:
        """Settlements in this process's journal."""
        return self._written

    def add(self, settlements: Sequence[Settlement]) -> bool:
        """Keep settlements on disk, and those that an earlier `add` could not.

        False: it does not take them (said in the log, once); they are in memory only, until a later `add` can.
        """
        waited = self._written < len(self._lines)
        self._lines += [orjson.dumps(settlement) + b"\n" for settlement in settlements]
        if not self._lines:
            return True
        try:
            self._write(self._journal())
        except OSError as error:
            if not waited or settlements:
                log.error(
                    "%d settlements are not on disk: %s cannot be written (%s)",
                    len(self._lines) - self._written, self._folder, error,
                )  # fmt: skip
            return False
        return True

    def clear(self) -> None:
        """Postgres has everything that this process had to settle."""
        self._lines, self._written = [], 0
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.close()

    def _journal(self) -> BinaryIO:
        """This process's journal, locked and in its place: begun anew where it was taken away.

        A hand may have cleared the folder; a neighbour may have taken a journal that was not locked yet for a dead
        process's.
        """
        for _ in range(3):
            if self._file is None:
                self._written = 0
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                # Unbuffered: what was written has reached the file, nothing waits in between.
                self._file = open(os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "ab", buffering=0)  # noqa: SIM115, PTH123  # it stays open
                fcntl.flock(self._file, fcntl.LOCK_EX)
            if os.fstat(self._file.fileno()).st_nlink:
                return self._file
            self.close()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _write(self, file: BinaryIO) -> None:
        lines = self._lines[self._written :]
        if not lines:
            return
        content = memoryview(b"".join(lines))
        length = os.fstat(file.fileno()).st_size
        try:
            while content:  # a disk that fills up takes a part, and fails at the next
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(length)  # or the next line would begin in the middle of a torn one
            raise
        self._written += len(lines)

    def close(self) -> None:
        """Let go of the journal: what is in it is anybody's."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def orphan(self, path: Path) -> Iterator[list[Settlement] | None]:
        """What a dead process has left in a journal; None: its owner lives, or another process has taken it."""
        try:
            file = path.open("rb")
        except OSError:
            yield None
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield None
                return
            # Whoever had it before may have deleted it between our opening and our lock.
            yield read_lines(file.read()) if path.exists() else None

    def orphans(self) -> list[Path]:
        """The journals of others, oldest first. Most belong to living processes."""
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.glob("*.jsonl") if path != self._path)


def read_lines(content: bytes) -> list[Settlement]:
    """The settlements of a journal. What is no settlement is left out, and said in the log, once."""
    found: list[Settlement] = []
    wrong: list[str] = []
    for line in content.splitlines():
        try:
            found.append(_read(orjson.loads(line)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # of what was read, not of reading
            wrong.append(type(error).__name__)
    if wrong:
        log.warning(
            "%d lines of the spool are no settlements (%s): their calls are left to the sweeper", len(wrong), wrong[0]
        )
    return found


def _read(fields: dict[str, Any]) -> Settlement:
    known = {name: fields[name] for name in Settlement.__dataclass_fields__ if name in fields}
    usage: dict[str, int] = known.get("usage") or {}
    known["usage"] = Usage(**{name: usage[name] for name in Usage.__dataclass_fields__ if name in usage})
    known["call_id"] = UUID(known["call_id"])
    known["state"] = LedgerState(known["state"])
    known["usage_source"] = UsageSource(known.get("usage_source", UsageSource.NONE))
    return Settlement(**known)
