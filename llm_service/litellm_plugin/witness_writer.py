"""Writes witnesses, the proxy's own records of each attempt at a deployment, to Postgres.

What must hold:
  A witness that was passed to `add` reaches the table exactly once, whatever happens to Postgres in between. Each has a
  unique id, so that a witness which is sent twice counts once.
  `add` neither waits nor fails.
  A batch that Postgres does not accept goes to disk at once (the *spool*), as JSON lines. Any worker replays it when
  Postgres is available again.
  A witness stays only in memory for one flush at most.

`treasury/batch.py` and `used_grants.SharedUses` also write in groups. This writer is separate because nobody waits for
its result: a batch that Postgres does not accept is kept, not refused. Its spool is not that of settlements
(`treasury/spool.py`) either: a settlement is in a journal before Postgres is asked, and belongs to one living process;
a witness is on disk only if Postgres did not accept it, in complete files that belong to no process.

Runs inside LiteLLM Proxy: standard library, asyncpg and `witness.py` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from llm_service.witness import INSERT, Witness

_log = logging.getLogger("treasurer.witnesses")


class WitnessWriter:
    """Carries witnesses to Postgres in batches, over one connection, from one background task.

    Args:
        database_url: the database with the table `witnesses`; with None, all witnesses stay in the spool.
        spool: a folder, shared by the workers, for witnesses that Postgres did not accept.
        flush_s: how long a witness waits, at most, for others that are written together with it.
        batch: the most witnesses in one statement.
    """

    def __init__(self, database_url: str | None, spool: Path, *, flush_s: float = 0.2, batch: int = 200) -> None:
        self._database_url: str | None = database_url
        self._spool: Path = spool
        self._flush_s: float = flush_s
        self._batch: int = batch
        self._most_waiting: int = 50 * batch
        self._waiting: list[str] = []
        self._arrived: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: asyncpg.Connection | None = None
        self._connect_at: float = 0.0
        self._pause_s: float = 0.0
        self._stopped: bool = False

    def start(self) -> None:
        """Start the background task in the running loop, if it is not running yet."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="treasurer-witnesses")

    def add(self, witness: Witness) -> None:
        """Accept a witness, without waiting. If too many are in memory, they go to the spool."""
        self._waiting.append(witness.line())
        if self._stopped or len(self._waiting) >= self._most_waiting:
            self._to_spool(self._take(len(self._waiting)))
            return
        self._arrived.set()
        self.start()

    async def close(self) -> None:
        """Write the waiting witnesses, to Postgres within two seconds or else to the spool, and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._stopped = True
        self._to_spool(self._take(len(self._waiting)))  # needed if the task was cancelled before it ran

    async def _run(self) -> None:
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), timeout=5)
                if self._arrived.is_set():
                    # While Postgres is away, a longer wait makes fewer and larger files.
                    await asyncio.sleep(self._flush_s if self._pause_s == 0 else max(1.0, self._flush_s))
                self._arrived.clear()
                await self._deliver()
        finally:  # the worker is shutting down: later witnesses go to the spool
            self._stopped = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._deliver(), timeout=2)
            self._to_spool(self._take(len(self._waiting)))
            if self._connection is not None:
                self._connection.terminate()

    async def _deliver(self) -> None:
        connection = await self._connected()
        while self._waiting:
            lines = self._take(self._batch)
            if connection is None or not await self._write(connection, lines):
                connection = None
                self._to_spool(lines)
        if connection is not None:
            await self._replay(connection)

    async def _connected(self) -> asyncpg.Connection | None:
        """The connection; None while Postgres is away. Each new attempt to connect waits longer, up to five seconds."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        if self._database_url is None or time.monotonic() < self._connect_at:
            return None
        try:
            self._connection = await asyncpg.connect(self._database_url, timeout=2, command_timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._note_away(error)
            return None
        if self._pause_s > 0:
            _log.warning("Postgres is available again: replaying the witnesses in %s", self._spool)
        self._pause_s = 0.0
        return self._connection

    def _note_away(self, error: Exception) -> None:
        if self._pause_s == 0:
            _log.warning("Postgres is away (%s): witnesses go to %s", type(error).__name__, self._spool)
        self._pause_s = min(5.0, max(0.2, self._pause_s * 2))
        self._connect_at = time.monotonic() + self._pause_s

    async def _write(self, connection: asyncpg.Connection, lines: Sequence[str]) -> bool:
        """Whether Postgres has these lines now. Lines that it will never accept are set aside, and count as written."""
        try:
            await connection.execute(INSERT, f"[{','.join(lines)}]")
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            if len(lines) == 1:
                self._set_aside(lines[0], error)
                return True
            results = [await self._write(connection, [line]) for line in lines]
            return all(results)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            connection.terminate()
            self._note_away(error)
            return False
        except asyncio.CancelledError:
            self._waiting[:0] = lines
            raise
        return True

    async def _replay(self, connection: asyncpg.Connection) -> None:
        for file in sorted(self._spool.glob("*.jsonl")) if self._spool.is_dir() else ():
            try:
                lines = file.read_text("utf-8").splitlines()
            except FileNotFoundError:  # another worker has replayed the file
                continue
            except (OSError, UnicodeDecodeError) as error:
                # One bad file must not stop the replay of the others and the writing of later witnesses.
                _log.error("%s cannot be replayed (%s) and is set aside", file, type(error).__name__)
                with contextlib.suppress(OSError):
                    file.rename(file.with_suffix(".unreadable"))
                continue
            for start in range(0, len(lines), self._batch):
                if not await self._write(connection, lines[start : start + self._batch]):
                    return
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _take(self, most: int) -> list[str]:
        taken, self._waiting = self._waiting[:most], self._waiting[most:]
        return taken

    def _to_spool(self, lines: Sequence[str]) -> None:
        """Keep lines on disk. A file gets its name only when it is complete, so that no worker replays a part of it."""
        if not lines:
            return
        name = f"{time.time_ns()}-{os.getpid()}"
        try:
            self._spool.mkdir(parents=True, exist_ok=True)
            part = self._spool / f"{name}.part"
            part.write_text("".join(f"{line}\n" for line in lines), "utf-8")
            part.rename(self._spool / f"{name}.jsonl")
        except OSError as error:
            _log.error("%d witnesses are lost: %s cannot be written (%s)", len(lines), self._spool, error.strerror)

    def _set_aside(self, line: str, error: Exception) -> None:
        _log.error("Postgres refuses a witness (%s): kept in %s", type(error).__name__, self._spool / "refused.lines")
        with contextlib.suppress(OSError), (self._spool / "refused.lines").open("a", encoding="utf-8") as file:
            _ = file.write(f"{line}\n")
