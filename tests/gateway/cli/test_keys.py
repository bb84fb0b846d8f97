"""`treasurer key`: a secret is printed once."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import NotFound

Treasurer = Callable[..., Result]


@pytest.fixture
def agent(administer: Treasurer) -> Treasurer:
    """A database in which there is an agent."""
    administer("agent", "create", "news")
    return administer


def test_a_secret_is_printed_when_it_is_made_and_never_again(agent: Treasurer) -> None:
    made = agent("key", "create", "news", "--model", "gpt-*")
    secret = next(line.strip() for line in made.stdout.splitlines() if line.strip().startswith("sk-tr-"))
    assert "Key 1 (news/default). Its secret is shown now and not again:" in made.stdout
    listed = agent("key", "list")
    assert "news/default" in listed.stdout
    assert secret not in listed.output
    [row] = json.loads(agent("key", "list", "--json").stdout)
    assert "secret" not in row
    assert row["models"] == ["gpt-*"]


@pytest.mark.parametrize(
    ("overlap", "printed"),
    [
        ((), "The old secret works for another 24h."),
        (("--overlap", "1h"), "The old secret works for another 1h."),
        (("--overlap", "0"), "The old secret has ended."),
    ],
)
def test_a_new_secret_says_what_becomes_of_the_old(agent: Treasurer, overlap: tuple[str, ...], printed: str) -> None:
    agent("key", "create", "news")
    assert agent("key", "rotate", "news/default", *overlap).stdout.splitlines()[-1] == printed


def test_a_key_is_revoked(agent: Treasurer) -> None:
    agent("key", "create", "news")
    gone = agent("key", "revoke", "news/default")
    assert gone.exit_code == ExitCode.OK
    assert gone.stdout.startswith("Key 1 (news/default, sk-tr-")
    assert gone.stdout.endswith("…) is revoked.\n")
    assert json.loads(agent("key", "list", "--json").stdout)[0]["state"] == "revoked"


def test_mistakes(agent: Treasurer) -> None:
    assert isinstance(agent("key", "revoke", "nobody/none").exception, NotFound)
    wrong = agent("key", "create", "news", "--expires", "soon")
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert "expires" in wrong.stderr
