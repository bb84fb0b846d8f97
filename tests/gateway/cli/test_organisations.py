"""`treasurer organisation`."""

from __future__ import annotations

import json
from collections.abc import Callable

from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import Conflict

Treasurer = Callable[..., Result]


def test_create_and_list(administer: Treasurer) -> None:
    made = administer("organisation", "create", "acme")
    assert (made.exit_code, made.stdout) == (ExitCode.OK, "Organisation acme created.\n")
    shown = administer("organisation", "list")
    assert [line.split()[1] for line in shown.stdout.splitlines() if line.lstrip()[:1].isdigit()] == ["acme", "default"]
    [first, _] = json.loads(administer("organisation", "list", "--json").stdout)
    assert (first["name"], first["paused_at"]) == ("acme", None)


def test_a_name_that_is_taken_is_a_conflict(administer: Treasurer) -> None:
    assert json.loads(administer("organisation", "create", "acme", "--json").stdout)[0]["name"] == "acme"
    again = administer("organisation", "create", "acme")
    assert isinstance(again.exception, Conflict)
    assert again.stdout == ""
