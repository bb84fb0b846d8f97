"""`treasurer limit`."""

from __future__ import annotations

import json
from collections.abc import Callable

from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import NotFound

Treasurer = Callable[..., Result]


def test_a_limit_is_set_replaced_and_removed(administer: Treasurer) -> None:
    administer("agent", "create", "news")
    assert "news" in administer("limit", "set", "--agent", "news", "--rpm", "60").stdout
    administer("limit", "set", "--agent", "news", "--rpm", "30", "--concurrent", "2")
    [row] = json.loads(administer("limit", "list", "--json").stdout)
    assert (row["requests_per_minute"], row["concurrent"]) == (30, 2)
    gone = administer("limit", "remove", str(row["id"]))
    assert gone.stdout == f"Limit {row['id']} (agent news) is removed.\n"
    assert administer("limit", "list").stdout == "There are no rate limits.\n"


def test_mistakes(administer: Treasurer) -> None:
    assert isinstance(administer("limit", "remove", "99").exception, NotFound)
    wrong = administer("limit", "set", "--model", "m", "--rpm", "0")
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert "requests_per_minute" in wrong.stderr
