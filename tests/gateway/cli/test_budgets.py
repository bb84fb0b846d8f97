"""`treasurer budget`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import Conflict, NotFound

Treasurer = Callable[..., Result]


NAME = "agent news: day"


@pytest.fixture
def budget(administer: Treasurer) -> Treasurer:
    """A database in which an agent has a budget."""
    administer("agent", "create", "news")
    made = administer("budget", "create", "--agent", "news", "--limit", "5", "--window", "day")
    assert made.stdout.startswith(f"Budget {NAME!r}: $5.00 a day; $5.00 left until ")
    return administer


def test_a_budget_is_listed_and_shown(budget: Treasurer) -> None:
    [row] = json.loads(budget("budget", "list", "--agent", "news", "--json").stdout)
    assert (row["name"], row["limit_nano"], row["left_nano"]) == (NAME, 5 * 10**9, 5 * 10**9)
    assert NAME in budget("budget", "list").stdout
    shown = budget("budget", "show", NAME).stdout
    assert "Nothing was spent in this window yet." in shown


def test_a_budget_is_changed_topped_up_and_archived(budget: Treasurer) -> None:
    assert "$7.25 a day" in budget("budget", "set", NAME, "--limit", "7.25").stdout
    added = budget("budget", "top-up", NAME, "--amount", "2", "--for", "3h").stdout
    assert added.startswith(f"Budget {NAME!r} has $2.00 more, from ")
    assert "$9.25 left" in budget("budget", "show", NAME).stdout
    assert budget("budget", "archive", NAME).stdout == f"Budget {NAME!r} is archived: it governs no further call.\n"
    assert "There are no budgets." in budget("budget", "list").stdout
    assert isinstance(budget("budget", "show", NAME).exception, NotFound)


def test_a_budget_says_what_share_of_what_is_left_one_call_may_hold(budget: Treasurer) -> None:
    assert "for one call" not in budget("budget", "list").stdout
    shared = budget("budget", "set", NAME, "--most-per-call", "20%").stdout
    assert shared.startswith(f"Budget {NAME!r}: $5.00 a day, at most 20% of what is left for one call; $5.00 left")
    assert "for one call" in (listed := budget("budget", "list").stdout)
    assert "20%" in listed
    assert "at most 20% of what is left for one call" in budget("budget", "show", NAME).stdout
    [row] = json.loads(budget("budget", "set", NAME, "--limit", "6", "--json").stdout)
    assert (row["most_per_call"], row["limit_nano"]) == ("20%", 6 * 10**9)
    assert "most_per_call: none → 2000" in budget("changes", "--kind", "budgets").stdout
    assert "at most" not in budget("budget", "set", NAME, "--most-per-call", "none").stdout
    made = budget("budget", "create", "--agent", "news", "--limit", "9", "--most-per-call", "12.5%", "--name", "wide")
    assert "at most 12.5% of what is left for one call" in made.stdout
    wrong = budget("budget", "set", NAME, "--most-per-call", "100%")
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert "more than 0% and less than 100%" in wrong.stderr


def test_a_list_that_goes_on_says_how_to_see_the_rest(budget: Treasurer) -> None:
    budget("budget", "create", "--agent", "news", "--limit", "1")
    first = budget("budget", "list", "--limit", "1")
    assert f"Add --after '{NAME}'" in first.stderr
    assert NAME not in budget("budget", "list", "--after", NAME).stdout


def test_mistakes(budget: Treasurer) -> None:
    twice = budget("budget", "create", "--agent", "news", "--limit", "5", "--window", "day")
    assert isinstance(twice.exception, Conflict)
    wrong = budget("budget", "set", NAME, "--limit", "much")
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert "limit" in wrong.stderr
