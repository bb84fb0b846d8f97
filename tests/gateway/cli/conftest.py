"""Command lines that run in this process: in an empty folder, or on the test's own database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import build

Treasurer = Callable[..., Result]


@pytest.fixture
def treasurer(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Treasurer:
    """Runs a command line in an empty folder, where no stack runs."""
    monkeypatch.chdir(str(tmp_path))
    for name in ("TREASURER_DATABASE_URL", "TREASURER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(build(), list(arguments))

    return run


@pytest.fixture
def administer(treasurer: Treasurer, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Treasurer:
    """Runs a command line on a fresh database."""
    monkeypatch.setenv("TREASURER_DATABASE_URL", database_url)
    return treasurer
