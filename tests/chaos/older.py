"""How a gateway used Postgres before migration 0005: through version 2 of the functions for admission and
settlement."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import asyncpg

from llm_service.treasury import in_postgres as module
from llm_service.treasury.connection import Connection


def before(statement: str, fewer: int) -> str:
    """The old statement, which calls the second version of its function. That version takes fewer arguments.

    That version of admission returns no share for one call, so its column is added here.
    """
    head, *arguments = re.sub(r"_v\d\(", "_v2(", statement).split("$")
    older = "$".join([head, *arguments[:-fewer]]).rstrip(",") + ")"
    if "admit" in older:
        older = older.replace("SELECT *", "SELECT *, NULL::integer AS most_per_call")
    assert older.count("$") == statement.count("$") - fewer, older
    return older


def without(fewer: int, arrays: Callable[[Any], tuple[object, ...]]) -> Callable[[Any], tuple[object, ...]]:
    """The old arrays: holds had no rate card, no share of the budget and no run, and settlements had no usage other than
    tokens."""
    return lambda group: arrays(group)[:-fewer]


async def without_locks(
    connection: Connection, statement: str, arguments: tuple[object, ...], _skip_locked: bool
) -> list[asyncpg.Record]:
    """The old admission, which waited for locks and did not count new subjects."""
    return await connection.fetch(statement, *arguments[: statement.count("$")])


def speak_as_before() -> None:
    """From now on, every treasury of this process uses the old statements."""
    module.ADMIT, module.SETTLE = before(module.ADMIT, 7), before(module.SETTLE, 3)
    module.admission_arrays = without(5, module.admission_arrays)
    module.settlement_arrays = without(2, module.settlement_arrays)
    module.within_locks = without_locks
