"""`treasurer`: the command line. Finds the command, and prints every expected error in one place.

What must hold:
An expected failure is one plain message on stderr and an exit code with a meaning (`ExitCode`), never a traceback.
A command's module is imported only when that command is typed, so that `treasurer --help` waits for no command's libraries.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command, get_group

from gateway.cli.common import ExitCode, Group, fail


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is: the module of `gateway.cli`, and in it the name of a function or of a group of commands. `help`
    is the first line of the command's help, which the list of all commands shows."""

    module: str
    attribute: str
    help: str

    def load(self, name: str) -> Any:
        """The command itself."""
        found = getattr(import_module(f"gateway.cli.{self.module}"), self.attribute)
        if isinstance(found, typer.Typer):
            command = get_group(found)
        else:
            app = typer.Typer(add_completion=False)
            app.command(name)(found)
            command = get_command(app)
        command.name = name
        return command


#: All commands, in the order of the help.
ENTRIES = {
    "up": Entry("up", "up", "Start everything, show how it is, and stop it all at Ctrl-C."),
    "migrate": Entry("migrate", "migrate", "Bring the database's schema up to date (`up` does it automatically)."),
    "demo": Entry("demo", "demo", "Show Treasurer at work: agents spend, one is refused, the report agrees with the provider's bill."),
    "pause": Entry("pauses", "pause", "Stop every new call of an agent, team or organisation."),
    "resume": Entry("pauses", "resume", "Undo a pause of an agent, team or organisation."),
    "report": Entry("reports", "report", "Cost, tokens, calls, errors, refusals and latency, by any properties of a call."),
    "models": Entry("models", "models", "The models with their prices, other charges and limits, and why a model is not served."),
    "audit": Entry("audit", "audit_command", "Recompute the books and name each difference. Exit code 4 when there is one."),
    "acknowledge": Entry("acknowledge", "acknowledge", "Acknowledge that Treasurer and LiteLLM price a model differently, so that the audit no longer reports it."),
    "reprice": Entry("reprice", "reprice", "Correct what calls of a model were charged, after its price was wrong. Without --apply, a dry run."),
    "invoice": Entry("invoices", "commands", "Invoices of providers: the audit compares them with the ledger."),
    "changes": Entry("changes", "changes", "The log of changes: who, what, before, after; the newest first."),
    "simulate": Entry("simulate", "simulate", "Replay a period of the ledger under another policy: what would have been refused, downgraded, saved."),
    "organisation": Entry("organisations", "commands", "Organisations: the widest scope."),
    "team": Entry("teams", "commands", "Teams of an organisation."),
    "agent": Entry("agents", "commands", "Agents: they spend."),
    "key": Entry("keys", "commands", "Keys: how an agent, or an administrator, is known."),
    "budget": Entry("budgets", "commands", "Budgets: how much may be spent in a window of time."),
    "limit": Entry("limits", "commands", "Rate limits: how fast."),
    "route": Entry("routes", "commands", "Routes: which models stand in for another, when, and how long to wait."),
    "breaker": Entry("breakers", "commands", "Circuit breakers of models, providers and the proxy."),
    "approvals": Entry("approvals", "commands", "Approvals: what runs ask people before they act."),
    "conversations": Entry("conversations", "commands", "Conversations: what was said in the sessions of agents."),
    "run": Entry("run", "commands", "Run an agent once."),
    "worker": Entry("worker", "worker", "Do runs of agents until Ctrl-C; then hand them over. Start as many as you like, on any machines."),
    "runs": Entry("runs", "commands", "Runs of agents: what they did, what it cost, and what becomes of them."),
}  # fmt: skip


class _Commands(Group):
    """Lists all commands by their entries alone, and loads the one that was typed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=entry.help) for name, entry in ENTRIES.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments begin with, and the rest of them."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if name is None or listed is None else ENTRIES[name].load(name), rest


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="treasurer",
        cls=_Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help="The LLM gateway that cannot overspend.")(lambda: None)
    return app


def main() -> None:
    """Run the command line and exit with an `ExitCode`."""
    try:
        build()()
    except BrokenPipeError:  # the reader of our output has closed it, as in `treasurer report | head`
        sys.stderr.close()
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        message, code = _expected(error)
        if message is None:
            raise
        fail(message, code)


def _expected(error: Exception) -> tuple[str | None, ExitCode]:
    """The message and the exit code of an expected error. The message is None if the error is a bug."""
    # Imported here, because they take time and a command without an error does not need them.
    from gateway.settings import SettingsError
    from gateway.stack.state import NotRunning
    from llm_service.errors import TreasurerError
    from llm_service.money import MoneyError

    match error:
        case NotRunning():
            return str(error), ExitCode.NOT_RUNNING
        case TreasurerError():
            return error.message, ExitCode.FAILED
        case SettingsError() | MoneyError():
            return str(error), ExitCode.USAGE
        case _:
            return None, ExitCode.FAILED
