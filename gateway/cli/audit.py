"""`treasurer audit`: whether the books are right."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from gateway.cli.common import ExitCode, run_async
from gateway.cli.database import open_pool
from gateway.cli.reports import printable

if TYPE_CHECKING:
    from llm_service.treasury.audit.audit import AuditReport

#: How long a sweep may take to settle a hold, in seconds.
_SWEEP_TAKES_S = 5.0


def audit_command(
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    sweep_grace_s: Annotated[
        float | None,
        typer.Option(
            "--sweep-grace",
            metavar="SECONDS",
            help="How long an expired hold may wait for the sweeper without being reported.",
        ),
    ] = None,
) -> None:
    """Recompute the books and name each difference. Exit code 4 when there is one."""
    from gateway.settings import load_settings

    grace_s = load_settings().sweep_interval_s + _SWEEP_TAKES_S if sweep_grace_s is None else sweep_grace_s
    made = run_async(_audit(grace_s))
    if json:
        print(json_.dumps({**asdict(made), "at": made.at.isoformat()}, indent=2, ensure_ascii=False))
    else:
        print_audit(made, Console())
    if not made.ok:
        raise typer.Exit(ExitCode.AUDIT_DIFFERENCE)


async def _audit(grace_s: float) -> AuditReport:
    from llm_service.treasury.audit.audit import audit

    with Console(stderr=True).status("Recomputing the books …"):
        async with open_pool() as pool:
            return await audit(pool, sweep_grace_s=grace_s)


def print_audit(made: AuditReport, console: Console) -> None:
    """Print a line for each check, its differences under it, and the verdict."""
    wide = max(len(check.name) for check in made.checks)
    for check in made.checks:
        mark = Text("✓", style="green") if check.ok else Text("✗", style="bold red")
        counts = f"{check.examined:,} examined" + ("" if check.ok else f", {check.found:,} different")
        line = Text.assemble(
            mark, f" {check.invariant:<3}  {check.name:<{wide}}  ", (counts, "dim" if check.ok else "red")
        )
        console.print(line, soft_wrap=True)
        if not check.ok:
            console.print(Text(f"      must hold: {check.holds}"), soft_wrap=True)
        for difference in check.differences:
            console.print(Text(f"      {printable(difference)}", style="red"), soft_wrap=True)
        if check.found > len(check.differences):
            console.print(Text(f"      … and {check.found - len(check.differences):,} more", style="red"))
        if check.note is not None:
            console.print(Text(f"      note: {check.note}", style="yellow"), soft_wrap=True)
    wrong = [check.name for check in made.checks if not check.ok]
    if wrong:
        verdict = Text(f"The books are wrong: {', '.join(wrong)}.", style="bold red")
    else:
        verdict = Text(f"The books are right, as of {made.at:%Y-%m-%d %H:%M:%S} UTC.", style="bold green")
    console.print(verdict, soft_wrap=True)
