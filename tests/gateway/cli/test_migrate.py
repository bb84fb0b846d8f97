"""`treasurer migrate`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode
from gateway.stack.ports import free_port

Treasurer = Callable[..., Result]


def test_a_new_database_is_brought_up_to_date(
    treasurer: Treasurer, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREASURER_DATABASE_URL", empty_database_url)
    for _ in range(2):
        made = treasurer("migrate")
        assert (made.exit_code, made.stdout) == (ExitCode.OK, "The database is up to date.\n")
    assert json.loads(treasurer("agent", "list", "--json").stdout) == []


def test_a_database_that_is_away_is_said_in_one_sentence(treasurer: Treasurer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREASURER_DATABASE_URL", f"postgresql://a:secret@127.0.0.1:{free_port()}/b")
    made = treasurer("migrate")
    assert (made.exit_code, made.stdout) == (ExitCode.FAILED, "")
    assert made.stderr.startswith("error: The database cannot be migrated: ")
    assert "secret" not in made.stderr
    assert "Traceback" not in made.stderr
