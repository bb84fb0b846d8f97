"""The command line as a whole: its list of commands, what a help imports, and how errors are printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway import cli
from gateway.cli import ENTRIES
from gateway.cli.common import ExitCode
from gateway.settings import SettingsError
from gateway.stack.state import NotRunning
from llm_service.errors import Conflict
from llm_service.money import MoneyError

SUBCOMMANDS = ("agent configure", "budget create", "key list", "route set", "limit set", "breaker open", "run digest")
#: Libraries that take long to import. None of them is needed for `--help`.
HEAVY = {
    "aiohttp", "alembic", "asyncpg", "fastapi", "openai", "opentelemetry", "orjson", "prometheus_client", "psutil",
    "pydantic", "pydantic_ai", "pydantic_settings", "redis", "sqlalchemy", "starlette", "uvicorn", "yaml", "yarl",
}  # fmt: skip


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[str, set[str]]]:
    """Each help text by the arguments before `--help`, with the modules that a process has loaded to print it.

    One process loads what all of them need, and a fork of it prints each help text.
    """
    program = """
import json, os, sys
from gateway.cli import build, main
def show(arguments):
    out, into = os.pipe()
    if not os.fork():
        os.dup2(into, 1)
        sys.argv = ["treasurer", *arguments.split(), "--help"]
        try:
            main()
        except SystemExit as end:
            print(json.dumps([end.code or 0, sorted(sys.modules)]), flush=True)
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as lines:
        return lines.read()
print(json.dumps({arguments: show(arguments) for arguments in json.loads(sys.argv[1])}))
"""
    wanted = json.dumps(["", *ENTRIES, *SUBCOMMANDS])
    shown = subprocess.run([sys.executable, "-c", program, wanted], check=True, capture_output=True, text=True)
    helps: dict[str, tuple[str, set[str]]] = {}
    for arguments, text in json.loads(shown.stdout).items():
        *page, end = text.strip().splitlines()
        code, modules = json.loads(end)
        assert code == ExitCode.OK, text
        helps[arguments] = "\n".join(page), {name.partition(".")[0] for name in modules}
    return helps


@pytest.mark.parametrize("arguments", ["", *ENTRIES, *SUBCOMMANDS])
def test_a_help_imports_nothing_heavy(helps: dict[str, tuple[str, set[str]]], arguments: str) -> None:
    page, modules = helps[arguments]
    assert f"Usage: treasurer {arguments}".strip() in page
    assert not HEAVY & modules


def test_the_help_lists_every_command(helps: dict[str, tuple[str, set[str]]]) -> None:
    lines = helps[""][0].splitlines()
    assert all(any(f" {name} " in line for line in lines) for name in ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_list_says_of_a_command_what_its_own_help_says(name: str) -> None:
    entry = ENTRIES[name]
    command = entry.load(name)
    assert command.name == name
    assert command.help.partition("\n\n")[0].replace("\n", " ").strip() == entry.help


def test_a_command_that_is_misspelt_is_refused_with_the_nearest(treasurer: Callable[..., Result]) -> None:
    result = treasurer("budgte", "list")
    assert result.exit_code == ExitCode.USAGE
    assert "budget" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotRunning("nothing runs"), ExitCode.NOT_RUNNING),
        (Conflict("it exists"), ExitCode.FAILED),
        (SettingsError("wrong"), ExitCode.USAGE),
        (MoneyError("not money"), ExitCode.USAGE),
    ],
)
def test_an_expected_error_is_one_message_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: ExitCode
) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(cli, "build", lambda: command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_bug_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "build", lambda: command)
    with pytest.raises(KeyError):
        cli.main()


@pytest.mark.parametrize(
    "arguments",
    [
        ("organisation", "list"), ("team", "list"), ("agent", "list"), ("key", "list"), ("budget", "list"),
        ("limit", "list"), ("route", "list"), ("breaker", "list"), ("models",), ("changes",), ("report",), ("audit",), ("migrate",),
        ("pause", "agent", "news"), ("agent", "show", "digest"), ("agent", "configure", "digest", "--priority", "1"),
    ],
)  # fmt: skip
def test_without_a_stack_a_command_says_how_to_start_one(
    treasurer: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    result = treasurer(*arguments)
    assert isinstance(result.exception, NotRunning)
    assert "treasurer up" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("organisation", "create", "/"), "name"),
        (("team", "create", "a\nb"), "name"),
        (("agent", "create", "news", "--window", "day"), "--budget"),
        (("agent", "set", "news", "--floor-tokens", "0"), "floor_tokens"),
        (("agent", "configure", "news", "--budget", "0"), "budget"),
        (("key", "create", "news", "--admin"), "admin"),
        (("budget", "create", "--limit", "much", "--agent", "news"), "limit"),
        (("budget", "list", "--agent", "a", "--team", "b"), "--agent"),
        (("budget", "top-up", "b", "--amount", "-1"), "amount"),
        (("limit", "set", "--agent", "news"), "requests_per_minute"),
        (("route", "set", "--model", "m", "--on-leave", "stay"), "on_leave"),
        (("pause", "key", "k"), "key"),
        (("resume", "key", "k"), "key"),
        (("changes", "--since", "yesterday"), "--since"),
        (("simulate",), "--limit"),
        (("simulate", "--downgrade", "a=b@200"), "MODEL=CHEAPER@PERCENT"),
        (("report", "--format", "xml"), "--format"),
        (("report", "--by", "weekday"), "weekday"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_a_database_is_needed(
    treasurer: Callable[..., Result], arguments: tuple[str, ...], named: str
) -> None:
    result = treasurer(*arguments)
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert named in result.stderr
