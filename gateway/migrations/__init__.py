"""The database's schema, brought up to date by Alembic.

What must hold:
  Any number of processes may call `migrate` at once, and each revision runs exactly once. The whole upgrade is one
      transaction, which first takes an advisory lock. The other processes wait for the lock, and then find nothing to do.
  A revision that fails leaves nothing behind.
SQLAlchemy is used here and nowhere else, and only to give Alembic a connection.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from llm_service.postgres import ANY_POSTGRES_ERROR, PostgresTooOld, check_version

#: Names the lock among all advisory locks of the database ("Treasure" in ASCII).
ADVISORY_LOCK = 0x5472656173757265


class MigrationFailed(Exception):
    """The database is as it was before. The message is the reason, in PostgreSQL's words where it gave one."""


async def migrate(database_url: str, revision: str = "head") -> None:
    """Bring the database to `revision`; return at once when it is there already.

    `database_url` is what asyncpg reads (`postgresql://…`, with `sslmode` and the like).

    Raises:
        MigrationFailed: the database cannot be reached or used, or a revision failed; nothing was changed.
        PostgresTooOld: the server's version is not supported; nothing was changed.
    """

    async def connect() -> asyncpg.Connection:
        connection = await asyncpg.connect(database_url)
        try:
            await check_version(connection)
        except PostgresTooOld:
            connection.terminate()
            raise
        return connection

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            await connection.run_sync(_upgrade, revision)
    except (*ANY_POSTGRES_ERROR, SQLAlchemyError) as error:
        raise MigrationFailed(_reason(error)) from error
    finally:
        await engine.dispose()


def _reason(error: BaseException) -> str:
    """The driver's own message, without what SQLAlchemy adds (the statement, and a link for developers)."""
    while isinstance(error, SQLAlchemyError) and (cause := error.__cause__ or getattr(error, "orig", None)) is not None:
        error = cause
    cause = error.__cause__
    reason = cause if isinstance(cause, asyncpg.PostgresError) else error
    return str(reason) or "it did not answer in time"


def _upgrade(connection: Connection, revision: str) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    command.upgrade(config, revision)
