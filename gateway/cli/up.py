"""`treasurer up`: everything that Treasurer is made of, on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from gateway.cli.common import ExitCode, fail, run_async

if TYPE_CHECKING:
    from gateway.settings import Settings


def up(
    port: Annotated[int | None, typer.Option(help="the gateway's port; 0: any free one")] = None,
    host: Annotated[str | None, typer.Option(help="the address that the gateway listens on")] = None,
    gateways: Annotated[int | None, typer.Option(help="gateway processes")] = None,
    workers: Annotated[int | None, typer.Option(help="processes that do runs of agents; 0: none")] = None,
    proxy_workers: Annotated[int | None, typer.Option(help="LiteLLM Proxy workers")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="where the data is kept")] = None,
) -> None:
    """Start everything, show how it is, and stop it all at Ctrl-C."""
    from gateway.settings import load_settings

    settings = load_settings(
        port=port, host=host, gateways=gateways, workers=workers, proxy_workers=proxy_workers, data_dir=data_dir
    )
    run_async(_up(settings))


async def _up(settings: Settings) -> None:
    from gateway.stack.board import Board
    from gateway.stack.data_lock import AlreadyRunning, DataFolderUnusable
    from gateway.stack.litellm import ConfigError
    from gateway.stack.part import PartFailed
    from gateway.stack.plan import Plan, PlanError
    from gateway.stack.postgres import PostgresError
    from gateway.stack.supervisor import running_stack

    console = Console()
    fresh: list[Plan] = []

    def planned(plan: Plan) -> None:
        board.plan(plan)
        fresh.append(plan)

    board = Board(console)
    asked_to_stop = _stop_on_signals()
    try:
        with board:
            async with running_stack(settings, board.progress, planned) as state:
                board.ready(state)
                if fresh[0].admin_key_is_new:
                    console.print(_admin_key(state.admin_key, state.admin_key_file))
                try:
                    # The signal cancels this task. A library may have swallowed the cancellation during the start, so
                    # check the event too.
                    await asked_to_stop.wait()
                    raise asyncio.CancelledError
                finally:
                    board.stopping()
    except asyncio.CancelledError:
        if not asked_to_stop.is_set():
            raise
        console.print("Treasurer has stopped.")
    except AlreadyRunning as error:
        fail(str(error), ExitCode.ALREADY_RUNNING)
    except (ConfigError, DataFolderUnusable, PartFailed, PlanError, PostgresError) as error:
        fail(str(error), ExitCode.FAILED)


def _stop_on_signals() -> asyncio.Event:
    """Cancel the current task at the first signal; at the second, leave at once and let the watchdog finish."""
    task = asyncio.current_task()
    assert task is not None
    asked = asyncio.Event()

    def stop() -> None:
        if asked.is_set():
            os._exit(130)
        asked.set()
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return asked


def _admin_key(key: str, file: Path) -> Panel:
    text = Text.assemble(
        ("Administrator's key, shown this once: ", "bold"),
        (key, "bold green"),
        f"\nIt is kept in {file}, which only you may read.",
    )
    return Panel(text, border_style="green")
