"""`treasurer acknowledge`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode

Treasurer = Callable[..., Result]


def test_an_acknowledgement_is_made_replaced_and_logged(administer: Treasurer) -> None:
    made = administer("acknowledge", "gpt-4o", "--note", "LiteLLM's list is old")
    assert made.exit_code == ExitCode.OK
    assert made.stdout.startswith("The audit leaves out differences in the price of gpt-4o that were settled until 20")
    again = administer("acknowledge", "gpt-4o", "--note", "until March", "--until", "2027-03-01T00:00:00Z", "--json")
    [row] = json.loads(again.stdout)
    assert (row["model"], row["note"], row["covers_until"]) == ("gpt-4o", "until March", "2027-03-01T00:00:00+00:00")
    assert row["acknowledged_by"].startswith("cli ")
    changes = json.loads(administer("changes", "--kind", "price_acknowledgements", "--json").stdout)
    assert [change["action"] for change in changes] == ["changed", "created"]
    assert changes[0]["before"]["note"] == "LiteLLM's list is old"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gpt",), "--note"),
        (("gpt", "--note", " "), "note: a note is"),
        (("gpt", "--note", "x", "--until", "soon"), "until: "),
        (("", "--note", "x"), "model: "),
    ],
)
def test_mistakes(administer: Treasurer, arguments: tuple[str, ...], says: str) -> None:
    wrong = administer("acknowledge", *arguments)
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert says in wrong.stderr
