"""The store of runs in Postgres passes the tests for every store, and its queries use their indexes."""

from __future__ import annotations

import asyncpg
import pytest

from agents.runs.in_postgres import PostgresRuns
from tests.agents.conversations.contract import ConversationContract, SessionContract
from tests.agents.runs.contract import PassTime, StoreContract


@pytest.fixture
def store(pool: asyncpg.Pool) -> PostgresRuns:
    return PostgresRuns(pool)


@pytest.fixture
def pass_time(pool: asyncpg.Pool) -> PassTime:
    """Moves the times in the tables back, because Postgres' clock cannot be set."""

    async def forward(seconds: float) -> None:
        await pool.execute(
            "UPDATE work.runs SET lease_until = lease_until - $1 * interval '1 s', wake_at = wake_at - $1 * interval '1 s', "
            "deadline_at = deadline_at - $1 * interval '1 s', forget_at = forget_at - $1 * interval '1 s', "
            "queued_at = queued_at - $1 * interval '1 s'",
            seconds,
        )
        await pool.execute("UPDATE work.conversations SET forget_at = forget_at - $1 * interval '1 s'", seconds)
        await pool.execute("UPDATE work.approvals SET expires_at = expires_at - $1 * interval '1 s'", seconds)

    return forward


class TestInPostgres(StoreContract, ConversationContract, SessionContract):
    """The test cases are inherited."""
