"""`treasurer`: the command line. Composes the parts, and renders every expected error in one place.

What must hold: an expected failure is one plain message on stderr and an exit code that means
something (`ExitCode`), never a traceback.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import typer

from gateway.cli.common import ExitCode, NotRunning, fail
from gateway.settings import SettingsError
from llm_service.errors import TreasurerError
from llm_service.money import MoneyError

#: Each is a module of this package with `register(app)`; the order is the order in the help.
_PARTS = ("stack", "demo", "admin", "run", "reports")


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="treasurer",
        help="The LLM gateway that cannot overspend.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for part in _PARTS:
        if find_spec(f"{__name__}.{part}") is not None:
            import_module(f"{__name__}.{part}").register(app)
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
