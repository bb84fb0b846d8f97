"""Python sends the arguments of the treasury's functions with the names, types and order that PostgreSQL reports."""

from __future__ import annotations

import asyncpg
import pytest

from llm_service.treasury.denial import DenialKind
from llm_service.treasury.statements import (
    ADMISSION,
    ADMISSION_OPTIONS,
    MOVES,
    MOVES_OPTIONS,
    SETTLEMENT,
    SETTLEMENT_OPTIONS,
    Parameter,
)

_SIGNATURE = """
SELECT a.name, format_type(a.type, NULL) AS type
FROM pg_proc, unnest(proargnames, coalesce(proallargtypes, proargtypes::oid[]), proargmodes) WITH ORDINALITY AS a (name, type, mode, n)
WHERE proname = $1 AND a.mode = 'i' ORDER BY a.n
"""


@pytest.mark.parametrize(
    ("function", "parameters", "options", "for_tests"),
    [
        ("treasury_admit_v5", ADMISSION, ADMISSION_OPTIONS, [("p_now", "timestamp with time zone")]),
        ("treasury_settle_v4", SETTLEMENT, SETTLEMENT_OPTIONS, []),
        ("treasury_move_envelopes_v1", MOVES, MOVES_OPTIONS, [("p_now", "timestamp with time zone")]),
    ],
)
async def test_the_parameters_are_those_of_the_function(
    pool: asyncpg.Pool,
    function: str,
    parameters: tuple[Parameter, ...],
    options: tuple[tuple[str, str], ...],
    for_tests: list[tuple[str, str]],
) -> None:
    signature = [tuple(row) for row in await pool.fetch(_SIGNATURE, function)]
    assert signature == [*((each.name, f"{each.element}[]") for each in parameters), *options, *for_tests]


async def test_the_verdicts_are_the_kinds_of_denial_by_a_window_and_two_more(pool: asyncpg.Pool) -> None:
    verdicts = await pool.fetchval("SELECT enum_range(NULL::treasury_verdict)::text[]")
    assert verdicts[0] == "admitted"
    assert verdicts[-1] == "stale"
    # Those of a run are decided before any window is looked at.
    of_runs = {DenialKind.RUN_BUSY, DenialKind.RUN_SPENT, DenialKind.ENVELOPE_CLOSED}
    assert set(verdicts[1:-1]) == set(DenialKind) - of_runs
