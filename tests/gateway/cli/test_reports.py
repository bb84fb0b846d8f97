"""`treasurer report`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode
from gateway.cli.reports import printable

Treasurer = Callable[..., Result]


def test_a_report_of_nothing(administer: Treasurer) -> None:
    made = administer("report", "--by", "team,agent", "--from", "2026-11")
    assert made.exit_code == ExitCode.OK
    assert made.stdout != ""
    shown = json.loads(administer("report", "--by", "agent", "--json").stdout)
    assert shown["group_by"] == ["agent"]
    assert shown["total"]["cost_nano"] == 0
    rows = administer("report", "--format", "csv").stdout.splitlines()
    assert rows[0].startswith("agent,cost")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--format", "xml"), "--format: 'xml' is not one of: table, csv, json."),
        (("--limit", "0"), "limit"),
        (("--from", "soon"), "from"),
        (("--time-zone", "Mars/Olympus"), "time_zone"),
        (("--order", "luck"), "order"),
    ],
)
def test_a_mistake_is_named(treasurer: Treasurer, arguments: tuple[str, ...], named: str) -> None:
    wrong = treasurer("report", *arguments)
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert named in wrong.stderr


def test_a_name_cannot_control_a_terminal() -> None:
    assert printable("run\x1b[2J") == "run\\x1b[2J"
    assert printable("\u202e") == "\\u202e"
    assert printable("研究 é") == "研究 é"
