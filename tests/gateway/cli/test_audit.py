"""`treasurer audit`."""

from __future__ import annotations

import json
from collections.abc import Callable

import asyncpg
import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.administration import budgets, organisations

Treasurer = Callable[..., Result]


def test_books_that_are_right(administer: Treasurer) -> None:
    made = administer("audit")
    assert made.exit_code == ExitCode.OK
    assert "The books are right, as of " in made.stdout
    assert "✗" not in made.stdout


@pytest.fixture
async def wrong_books(pool: asyncpg.Pool, administer: Treasurer) -> None:
    """A window that counts money as posted for which the ledger has no row."""
    await organisations.create_agent(pool, organisations.NewAgent.model_validate({"name": "news"}))
    budget = await budgets.create_budget(pool, budgets.NewBudget.model_validate({"agent": "news", "limit": "5"}))
    assert budget.left_nano == 5 * 10**9
    await pool.execute(
        """INSERT INTO windows (budget_id, starts_at, ends_at, limit_nano, posted_nano)
           SELECT id, '-infinity', 'infinity', limit_nano, 1 FROM budgets"""
    )


@pytest.mark.usefixtures("wrong_books")
def test_a_difference_is_named_and_the_exit_code_says_so(administer: Treasurer) -> None:
    made = administer("audit")
    assert made.exit_code == ExitCode.AUDIT_DIFFERENCE
    assert "The books are wrong: " in made.stdout
    found = json.loads(administer("audit", "--json").stdout)
    assert any(check["found"] for check in found["checks"])
