"""`treasurer approvals` on a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from typer.testing import Result

from agents.approvals.deciding import digest_of_call
from agents.approvals.record import NewApproval, Why
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import NewRun, Run, WaitFor, Waits
from gateway.cli.common import ExitCode
from llm_service.errors import Conflict, InvalidRequest, NotFound

Treasurer = Callable[..., Result]

ARGUMENTS = {"name": "old\x1b[31m"}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": False}


@pytest.fixture
def ask(database_url: str) -> Callable[..., tuple[Run, UUID]]:
    """A run that asks a person."""

    def ask(agent: str = "news", **changes: Any) -> tuple[Run, UUID]:
        async def run() -> tuple[Run, UUID]:
            async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
                store = PostgresRuns(pool)
                added = await store.add(NewRun(uuid4(), agent, 1, 1, {}, {}, "1"))
                (claimed,) = await store.claim(uuid4(), 1, (agent,), run_id=added.id)
                digest = digest_of_call("delete", ARGUMENTS)
                asks = NewApproval(uuid4(), 2, "delete", Why.BEFORE, ARGUMENTS, digest, SCHEMA, ("ops",))
                return await store.leave(claimed.claim, Waits(WaitFor.APPROVAL, asks=asks)), asks.id

        return asyncio.run(run())

    return ask


def test_a_person_looks_and_approves_with_other_arguments(
    administer: Treasurer, ask: Callable[..., tuple[Run, UUID]]
) -> None:
    run, approval = ask()
    ask("other")
    [listed] = json.loads(administer("approvals", "list", "--agent", "news", "--json").stdout)
    assert (listed["id"], listed["run"], listed["arguments"]) == (str(approval), str(run.id), ARGUMENTS)
    assert str(approval) in administer("approvals", "list", "--run", str(run.id)).stdout
    page = administer("approvals", "show", str(approval)).stdout
    for line in (
        f"Approval {approval} (number 1) is pending.",
        "  tool        delete (it was not called yet)",
        '  arguments   {"name": "old\\u001b[31m"}',
        f"  digest      {listed['digest']}",
        "  approvers   ops",
    ):
        assert line in page
    done = administer(
        "approvals", "approve", str(approval), "--digest", listed["digest"], "--arguments", '{"name": "older"}'
    )
    assert (done.exit_code, done.stdout) == (ExitCode.OK, f"Approval {approval} is approved. Run {run.id} goes on.\n")
    [shown] = json.loads(administer("approvals", "show", str(approval), "--json").stdout)
    assert (shown["state"], shown["changed_arguments"]) == ("approved", {"name": "older"})
    assert shown["decided_by"].startswith("cli ")
    assert administer("approvals", "list", "--agent", "news").stdout == "There are no approvals that are pending.\n"
    again = administer("approvals", "refuse", str(approval), "--reason", "no", "--digest", listed["digest"])
    assert isinstance(again.exception, Conflict)


def test_what_nobody_has_seen_is_not_decided(administer: Treasurer, ask: Callable[..., tuple[Run, UUID]]) -> None:
    _, approval = ask()
    asked = administer("approvals", "refuse", str(approval), "--reason", "in use")  # nobody is there to confirm it
    assert asked.exit_code == ExitCode.FAILED
    assert "Refuse this?" in asked.stdout
    assert "tool        delete" in asked.stdout
    [shown] = json.loads(administer("approvals", "show", str(approval), "--json").stdout)
    assert shown["state"] == "pending"
    other = administer("approvals", "approve", str(approval), "--digest", "0" * 64)
    assert isinstance(other.exception, Conflict)
    refused = administer(
        "approvals", "refuse", str(approval), "--reason", "in use", "--digest", shown["digest"], "--json"
    )
    [shown] = json.loads(refused.stdout)
    assert (shown["state"], shown["reason"]) == ("refused", "in use")
    assert "  reason      in use" in administer("approvals", "show", str(approval)).stdout


@pytest.mark.parametrize(
    "command",
    [
        ("approve", "7"),
        ("show", "x"),
        ("list", "--run", "7"),
        ("list", "--state", "gone"),
        ("approve", str(uuid4()), "--digest", "7"),
        ("approve", str(uuid4()), "--arguments", "[1]"),
        ("approve", str(uuid4()), "--arguments", "{"),
        ("refuse", str(uuid4())),
        ("refuse", str(uuid4()), "--digest", "0" * 64, "--reason", "a\x1b"),
    ],
)
def test_a_mistake_is_found_before_the_database_is_asked(treasurer: Treasurer, command: tuple[str, ...]) -> None:
    assert treasurer("approvals", *command).exit_code == ExitCode.USAGE


def test_wrong_arguments_and_unknown_approvals_are_refused_by_name(
    administer: Treasurer, ask: Callable[..., tuple[Run, UUID]]
) -> None:
    _, approval = ask()
    digest = digest_of_call("delete", ARGUMENTS).hex()
    wrong = administer("approvals", "approve", str(approval), "--digest", digest, "--arguments", '{"name": 7}')
    assert isinstance(wrong.exception, InvalidRequest)
    assert isinstance(administer("approvals", "show", str(uuid4())).exception, NotFound)
