"""`treasurer agent`."""

from __future__ import annotations

import json
from collections.abc import Callable

from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import NotFound

Treasurer = Callable[..., Result]


def test_an_agent_is_made_with_its_first_budget(administer: Treasurer) -> None:
    made = administer("agent", "create", "news", "--budget", "5", "--window", "day")
    assert made.exit_code == ExitCode.OK
    first, budget, following = made.stdout.splitlines()
    assert first == "Agent news created in team default."
    assert budget.startswith("Budget 'agent news: day': $5.00 a day; $5.00 left until ")
    assert following == "Next, its key: treasurer key create 'news'"


def test_without_a_budget_the_output_says_how_to_create_one(administer: Treasurer) -> None:
    made = administer("agent", "create", "news")
    assert "treasurer budget create --agent 'news' --limit 5 --window day" in made.stdout


def test_what_calls_get_is_changed(administer: Treasurer) -> None:
    administer("agent", "create", "news")
    changed = administer("agent", "set", "news", "--default-max-tokens", "128", "--expiry-policy", "void", "--json")
    [row] = json.loads(changed.stdout)
    assert (row["default_max_tokens"], row["expiry_policy"]) == (128, "void")
    [listed] = json.loads(administer("agent", "list", "--team", "default", "--json").stdout)
    assert listed["default_max_tokens"] == 128


def test_mistakes(administer: Treasurer) -> None:
    assert isinstance(administer("agent", "set", "nobody", "--floor-tokens", "5").exception, NotFound)
    wrong = administer("agent", "create", "news", "--expiry-policy", "keep")
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert "expiry_policy" in wrong.stderr
