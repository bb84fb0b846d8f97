"""`treasurer conversations` on a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from typer.testing import Result

from agents.conversations.record import ConversationFilter, HistoryLimits
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import Ended, NewRun, State
from gateway.cli.common import ExitCode
from llm_service.errors import NotFound

Treasurer = Callable[..., Result]


@pytest.fixture
def said(database_url: str) -> UUID:
    """A conversation in which a user has said something that would colour a terminal."""

    async def run() -> UUID:
        async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
            store = PostgresRuns(pool)
            fields: dict[str, Any] = {"session": "s", "conversation_s": 3600, "on_behalf_of": "ann"}
            added = await store.add(NewRun(uuid4(), "news", 1, 1, {}, {}, "1", **fields))
            (claimed,) = await store.claim(uuid4(), 1, ("news",), run_id=added.id)
            turn = [json.dumps({"parts": [{"part_kind": "user-prompt", "content": "red \x1b[31m"}]})]
            await store.begin_turn(claimed.claim, turn, HistoryLimits(9, 9999))
            await store.leave(claimed.claim, Ended(State.SUCCEEDED))
            (conversation,) = await store.conversations.page(ConversationFilter())
            return conversation.id

    return asyncio.run(run())


def test_a_conversation_is_listed_shown_and_deleted(administer: Treasurer, said: UUID) -> None:
    [listed] = json.loads(administer("conversations", "list", "--user", "ann", "--json").stdout)
    assert (listed["id"], listed["session"], listed["turns"]) == (str(said), "s", 1)
    assert "There are no conversations." in administer("conversations", "list", "--session", "t").stdout
    page = administer("conversations", "show", str(said)).stdout
    assert "session s of agent news of user ann, 1 turns" in page
    assert "\x1b" not in page
    assert "user: red" in page
    [shown] = json.loads(administer("conversations", "show", str(said), "--json").stdout)
    assert shown["messages"][0]["parts"][0]["role"] == "user"
    assert "is deleted" in administer("conversations", "delete", str(said), "--yes").stdout
    missing = administer("conversations", "show", str(said))
    assert isinstance(missing.exception, NotFound)


def test_what_is_not_an_id_is_refused(administer: Treasurer) -> None:
    for command in ("show", "delete"):
        assert administer("conversations", command, "seven").exit_code == ExitCode.USAGE


def test_on_session_is_checked_before_anything_is_asked(administer: Treasurer) -> None:
    wrong = administer("runs", "start", "digest", "--session", "s", "--on-session", "rollback")
    assert wrong.exit_code == ExitCode.USAGE
