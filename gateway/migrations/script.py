"""Runs a whole SQL file inside the transaction of a migration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, text

if TYPE_CHECKING:
    import asyncpg


def run_script(connection: Connection, sql: str) -> None:
    """Run any number of statements, PL/pgSQL bodies included.

    SQLAlchemy would prepare the script, and Postgres can prepare only a single statement. asyncpg's own `execute`
    sends a script unprepared. `SELECT 1` makes SQLAlchemy open its transaction first.
    """
    connection.execute(text("SELECT 1"))
    adapted = cast("Any", connection.connection.dbapi_connection)

    async def run(driver: asyncpg.Connection) -> None:
        await driver.execute(sql)

    adapted.run_async(run)
