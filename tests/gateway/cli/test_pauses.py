"""`treasurer pause` and `treasurer resume`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import NotFound

Treasurer = Callable[..., Result]


@pytest.mark.parametrize(("kind", "name"), [("agent", "news"), ("team", "default"), ("organisation", "default")])
def test_a_pause_and_its_end(administer: Treasurer, kind: str, name: str) -> None:
    administer("agent", "create", "news")
    paused = administer("pause", kind, name)
    assert paused.exit_code == ExitCode.OK
    assert paused.stdout.startswith(f"{kind.capitalize()} {name} is paused")
    [agent] = json.loads(administer("agent", "list", "--json").stdout)
    assert agent["paused_by"] == f"{kind} {name}"
    resumed = administer("resume", kind, name, "--json")
    assert json.loads(resumed.stdout) == [{"scope": kind, "name": name, "paused": False}]
    [agent] = json.loads(administer("agent", "list", "--json").stdout)
    assert agent["paused_by"] is None


def test_nobody_of_this_name(administer: Treasurer) -> None:
    assert isinstance(administer("pause", "agent", "nobody").exception, NotFound)
