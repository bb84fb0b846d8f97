"""`treasurer`: the command line. Composes the parts, and renders every expected error in one place.

What must hold: an expected failure is one plain message on stderr and an exit code that means
something (`ExitCode`), never a traceback.
"""

from __future__ import annotations

import sys

import typer

from gateway.cli.common import ExitCode, fail
from gateway.settings import SettingsError
from gateway.stack.state import NotRunning
from llm_service.errors import TreasurerError
from llm_service.money import MoneyError


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="treasurer",
        help="The LLM gateway that cannot overspend.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    # Here, not above: `gateway.cli.common` is also the gateway's, which needs none of the commands.
    from gateway.cli import changes, demo, organisations, reports, run, simulate, stack

    for part in (stack, demo, organisations, run, reports, changes, simulate):  # the order in the help
        part.register(app)
    return app


def main() -> None:
    """Run the command line and exit with an `ExitCode`."""
    try:
        build()()
    except NotRunning as error:
        fail(str(error), ExitCode.NOT_RUNNING)
    except TreasurerError as error:
        fail(error.message, ExitCode.FAILED)
    except (SettingsError, MoneyError) as error:
        fail(str(error), ExitCode.USAGE)
    except BrokenPipeError:  # `treasurer report | head`
        sys.stderr.close()
        sys.exit(ExitCode.FAILED)
