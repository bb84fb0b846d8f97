"""What all commands share: exit codes, and output for people and for programs.

What must hold: nothing here imports a library that `treasurer --help` does not need.
"""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup, TyperOption

T = TypeVar("T")

#: A width that no table reaches.
_UNBOUNDED = 100_000


class ExitCode(IntEnum):
    """The meanings of a command's exit status."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    AUDIT_DIFFERENCE = 4
    ALREADY_RUNNING = 5


class Group(TyperGroup):
    """A group of commands that is parsed without pydantic, which Typer uses to convert values.

    The options of a group are flags (`--help`). Typer gives a flag that was not typed the value None, and imports pydantic
    to convert it. The value False means the same and needs no conversion.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """The options of the group."""
        parameters = super().get_params(ctx)
        for each in parameters:
            if isinstance(each, TyperOption) and each.is_flag and each.default is None:
                each.default = False
        return parameters


def command_group(help: str) -> typer.Typer:
    """A group of commands, such as `treasurer budget`."""
    return typer.Typer(cls=Group, no_args_is_help=True, help=help)


def fail(message: str, code: int = ExitCode.FAILED) -> NoReturn:
    """Print an error to stderr and exit with `code`."""
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(int(code))


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    import asyncio  # imported here, because `treasurer --help` does not need it

    return asyncio.run(coroutine)


def emit(
    rows: Sequence[Mapping[str, Any]],
    *,
    json: bool = False,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    title: str | None = None,
    empty: str = "Nothing to show.",
) -> None:
    """Print rows: a table for people, or JSON for programs.

    `columns` chooses and orders the table's columns (`{"key": "Heading"}` or just keys). JSON holds
    every key. Numbers are aligned to the right.
    """
    if json:
        print(json_.dumps([dict(row) for row in rows], default=_plain, indent=2, ensure_ascii=False))
        return
    console = Console(soft_wrap=not sys.stdout.isatty())
    if not rows:
        console.print(Text(empty, style="dim"))
        return
    headings = headings_of(rows, columns)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key, heading in headings.items():
        numeric = all(_is_number(row.get(key)) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(format_cell(row.get(key))) for key in headings))
    if not sys.stdout.isatty():  # a file or a pipe has no width, so no row may be cut
        unbounded = console.options.update(max_width=_UNBOUNDED)
        console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)


def headings_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    if isinstance(columns, Mapping):
        return dict(columns)
    keys = columns if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    return {key: key.replace("_", " ") for key in keys}


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return value.lstrip("$-").replace(",", "").replace(".", "", 1).isdigit()
    return value is None or (isinstance(value, int | float | Decimal) and not isinstance(value, bool))


def format_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S%z")
    if isinstance(value, list | tuple):
        return ", ".join(map(format_cell, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return str(value)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal | UUID | Path | StrEnum):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
