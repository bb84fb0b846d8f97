"""`treasurer simulate`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode

Treasurer = Callable[..., Result]


def test_a_period_in_which_nothing_was_spent(administer: Treasurer) -> None:
    administer("agent", "create", "news", "--budget", "5")
    made = administer("simulate", "--limit", "agent news: total=1", "--since", "7d")
    assert made.exit_code == ExitCode.OK, made.output
    assert made.stdout.startswith("In the last 7d: 0 calls for $0.00.\n")
    assert "Assumed: " in made.stdout
    [figures] = json.loads(administer("simulate", "--limit", "agent news: total=1", "--json").stdout)
    assert (figures["calls"], figures["saved_nano"], figures["refused_by_budget"]) == (0, 0, {})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--limit, --pace or --downgrade"),
        (("--limit", "5"), "NAME=VALUE"),
        (("--limit", "b=much"), "much"),
        (("--pace", "b=fast"), "linear+10%"),
        (("--downgrade", "a=b@0"), "MODEL=CHEAPER@PERCENT"),
        (("--limit", "b=1", "--since", "yesterday"), "--since"),
    ],
)
def test_a_mistake_is_named(treasurer: Treasurer, arguments: tuple[str, ...], named: str) -> None:
    wrong = treasurer("simulate", *arguments)
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert named in wrong.stderr
