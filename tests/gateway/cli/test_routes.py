"""`treasurer route`."""

from __future__ import annotations

import json
from collections.abc import Callable

from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import NotFound

Treasurer = Callable[..., Result]


def test_a_route_is_set_listed_and_removed(administer: Treasurer) -> None:
    made = administer(
        "route", "set", "--organisation", "default", "--model", "gpt-4o", "--fallback", "claude-haiku-4-5:error,timeout", "--fallback", "ollama:7b",
        "--retries", "1", "--max-cost", "0.5", "--downgrade", "gpt-4o-mini", "--downgrade-at", "90", "--queue", "3",
        "--first-token", "5", "--on-leave", "finish", "--bills-errors", "--json",
    )  # fmt: skip
    assert made.exit_code == ExitCode.OK, made.output
    [row] = json.loads(made.stdout)
    policy = row["policy"]
    assert policy["fallbacks"] == [
        {"model": "claude-haiku-4-5", "on": ["error", "timeout"]},
        {"model": "ollama:7b"},
    ]
    assert policy["downgrade"]["at_share"] == 9_000
    assert policy["timeouts"] == {"first_token_s": 5.0}
    line = administer("route", "list").stdout
    for part in (
        "1 more at the same model",
        "then claude-haiku-4-5 after error, timeout",
        "gpt-4o-mini from 90 % of a budget",
        "at most $0.50 a call",
    ):
        assert part in line
    gone = administer("route", "remove", str(row["id"]))
    assert gone.stdout.endswith("gpt-4o) is removed.\n")
    assert administer("route", "list").stdout.startswith("There are no routes")


def test_mistakes(administer: Treasurer) -> None:
    assert isinstance(administer("route", "remove", "99").exception, NotFound)
    wrong = administer("route", "set", "--team", "default", "--model", "m", "--max-attempts", "0")
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert "max_attempts" in wrong.stderr
