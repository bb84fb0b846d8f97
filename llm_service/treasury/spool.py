"""The spool: settlements that Postgres could not take yet are kept on disk, so that a crash in the meantime loses none.

What must hold (I2):
  A settlement that was given to `add` is on disk when `add` returns, and stays there until Postgres has it.
  After a crash another process that uses the folder, and only one, settles what the dead process left.
      Settling twice would do no harm, because a settlement of an attempt counts once.
  A process is alive as long as it holds the lock of its file. The system releases the lock when the process ends, however
      it ends.

Each process has one journal, to which it appends lines of JSON. Only the last line can be cut off by a crash. It is then
ignored, and its call is settled by the proxy's witness. Fields that a newer version added are ignored, and fields that an
older version did not write have their defaults.
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

from llm_service.types import CostSource, LedgerState, Settlement, Usage, UsageSource

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
        """The number of settlements in this process's journal."""
        return self._written

    def add(self, settlements: Sequence[Settlement]) -> bool:
        """Write settlements to disk, together with those that an earlier `add` could not write.

        False: the disk accepts no writes, which is logged once. The settlements are only in memory until a later `add`
        succeeds.
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
        """Empty the journal, because Postgres has all settlements of this process."""
        self._lines, self._written = [], 0
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.close()

    def _journal(self) -> BinaryIO:
        """This process's journal, open and locked. If the file was deleted, a new one is begun.

        A person may have emptied the folder. Or another process may have found the journal before it was locked, and
        deleted it because its owner seemed dead.
        """
        for _ in range(3):
            if self._file is None:
                self._written = 0
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                # Unbuffered, so that a write that has returned has reached the file.
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
            while content:  # a disk that is nearly full may write only a part; the next write then fails
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(length)  # otherwise the next line would be appended to half of this one
            raise
        self._written += len(lines)

    def close(self) -> None:
        """Release the journal. From now on any process may settle what is in it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def orphan(self, path: Path) -> Iterator[list[Settlement] | None]:
        """A dead process's settlements in a journal. None: its owner is alive, or another process is settling it."""
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
            # Another process may have settled and deleted it after it was opened here, and before it was locked here.
            yield read_lines(file.read()) if path.exists() else None

    def orphans(self) -> list[Path]:
        """The journals of other processes, oldest first. The owners of most are alive."""
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.glob("*.jsonl") if path != self._path)


def read_lines(content: bytes) -> list[Settlement]:
    """The settlements of a journal. Lines that are not settlements are left out, and logged together once."""
    found: list[Settlement] = []
    wrong: list[str] = []
    for line in content.splitlines():
        try:
            found.append(_read(orjson.loads(line)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # the line is wrong, not the file
            wrong.append(type(error).__name__)
    if wrong:
        log.warning(
            "%d lines of the spool are not settlements (%s): their calls are left to the sweeper", len(wrong), wrong[0]
        )
    return found


def _read(fields: dict[str, Any]) -> Settlement:
    known = {name: fields[name] for name in Settlement.__dataclass_fields__ if name in fields}
    usage: dict[str, Any] = known.get("usage") or {}
    known["usage"] = Usage(**{name: usage[name] for name in Usage.__dataclass_fields__ if name in usage})
    known["call_id"] = UUID(known["call_id"])
    known["state"] = LedgerState(known["state"])
    known["usage_source"] = UsageSource(known.get("usage_source", UsageSource.NONE))
    source: str | None = known.get("cost_source")
    known["cost_source"] = None if source is None else CostSource(source)
    return Settlement(**known)
