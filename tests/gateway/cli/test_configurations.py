"""`treasurer agent configure|show|versions|use`: how a version is printed, and what is read from options."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import Result

from agents.configuration.inputs import NewVersion, changed, default_terms
from agents.configuration.terms import AgentConfiguration
from agents.registry import find_agent
from gateway.cli.common import ExitCode
from gateway.cli.configurations import describe

Treasurer = Callable[..., Result]


def described(version: int = 0, **given: Any) -> dict[str, str]:
    """The lines of a version by their names; the first line is under ""."""
    digest = find_agent("digest")
    terms = changed(default_terms(digest), NewVersion.model_validate(given), digest)
    made = (datetime(2026, 11, 28, 9, 30, tzinfo=UTC), "cli ann") if version else (None, "")
    first, description, *lines = describe(AgentConfiguration("digest", version, terms, *made))
    assert description == terms.description
    return {"": first} | {line[:18].strip(): line[18:].strip() for line in lines}


def test_the_defaults_of_an_agent() -> None:
    lines = described()
    assert lines[""] == "Agent digest, version 0, the defaults of its code."
    assert (lines["tools"], lines["approvers"], lines["kept"]) == ("all of its logic's", "any administrator", "nothing")
    assert lines["request"] == "$1.00 a run, $0.00 held at its start"
    assert lines["schedule"] == "$1.00 a run, $1.00 held at its start"
    assert "prompt" not in lines


@pytest.mark.parametrize(
    ("given", "shown"), [("90s", "90s"), ("120s", "2m"), ("120m", "2h"), ("24h", "1d"), ("2w", "14d")]
)
def test_periods_are_shown_in_their_largest_whole_unit(given: str, shown: str) -> None:
    assert described(time_limit=given)["time limit"] == shown


def test_what_was_made_by_whom() -> None:
    lines = described(3, tools=[], prompt="production", concurrency=2)
    assert lines[""] == "Agent digest, version 3, made 2026-11-28 09:30:00 UTC by cli ann."
    assert (lines["tools"], lines["prompt"], lines["concurrency"]) == ("none", "production", "2 at once")


def test_what_is_printed_for_programs_is_what_the_admin_api_answers(administer: Treasurer) -> None:
    assert administer("key", "create", "--admin", "--name", "ops").exit_code == ExitCode.OK
    made = administer("agent", "configure", "digest", "--trigger", "chat:0.10,0", "--approver", "ops", "--json")
    assert made.exit_code == ExitCode.OK, made.stderr
    [row] = json.loads(made.stdout)
    assert row["triggers"] == {
        "chat": {"budget": "0.100000000", "budget_nano": 100_000_000, "reserve": "0.000000000", "reserve_nano": 0}
    }
    assert (row["agent"], row["version"], row["approvers"]) == ("digest", 1, ["ops"])
    assert json.loads(administer("agent", "show", "digest", "--json").stdout) == [row]
