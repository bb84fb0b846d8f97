"""`treasurer changes`."""

from __future__ import annotations

import json
from collections.abc import Callable

from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.administration.change_log import KINDS
from llm_service.errors import InvalidRequest

Treasurer = Callable[..., Result]


def test_who_changed_what(administer: Treasurer) -> None:
    administer("agent", "create", "news", "--budget", "5")
    administer("budget", "set", "agent news: total", "--limit", "7")
    shown = administer("changes")
    newest = next(line for line in shown.stdout.splitlines() if "limit_nano" in line)
    assert "cli " in newest
    assert "limit_nano: 5000000000 → 7000000000" in newest
    rows = json.loads(administer("changes", "--kind", "agents", "--json").stdout)
    assert [(row["kind"], row["action"]) for row in rows] == [("agents", "created")]


def test_the_help_names_every_kind(treasurer: Treasurer) -> None:
    page = " ".join(treasurer("changes", "--help").stdout.replace("│", " ").split())
    assert f"One of {', '.join(KINDS)}." in page


def test_mistakes(administer: Treasurer) -> None:
    assert isinstance(administer("changes", "--kind", "people").exception, InvalidRequest)
    wrong = administer("changes", "--since", "yesterday")
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
