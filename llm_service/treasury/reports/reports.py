"""Who spent what: the ledger and the refusals, summed by any properties of a call.

What must hold:
  Sums agree with the ledger to the nano-dollar, corrections included.
  The total is computed by a separate statement, over the same calls in the same snapshot, and not from the rows.
  Text that a person typed reaches Postgres only as a parameter. The properties are a closed set, each with a fragment
  of SQL.
  No call is left out: calls without a property have a separate row.

A correction (`adjusted`) counts in the period of the call that it corrects; its tokens and cost are differences.

The SQL is composed here, and not in a file of `sql/`, because a request chooses the columns, joins, filters and order:
with thirteen properties, up to four at a time, there would be too many statements to write down.
"""
# ruff: noqa: S608 - the statements below are made of constants of this module; values are parameters

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import asyncpg

from llm_service.errors import InvalidRequest, TookTooLong
from llm_service.money import format_dollars
from llm_service.postgres import snapshot
from llm_service.treasury.reports.query import NONE, TIMES, Order, Property, ReportQuery

_TIMEOUT_S = 60
_NAMES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Figures:
    """The sums of a row, in nano-dollars, tokens and milliseconds.

    An *attempt* is one request for money; a *call* has one for each model of its chain that was tried.
    `errors` counts attempts that ended in an error; a caller that left is not an error. `estimated_nano` is the part of the
    cost that no report of a provider shows: estimates, and holds that were posted in whole. Latencies are those of
    attempts; None: no attempt had one.
    """

    cost_nano: int = 0
    calls: int = 0
    attempts: int = 0
    errors: int = 0
    refusals: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_nano: int = 0
    latency_avg_ms: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One combination of the query's properties, in the order of `group_by`. None: calls without the property."""

    group: tuple[str | None, ...]
    figures: Figures


@dataclass(frozen=True, slots=True)
class CostReport:
    """A finished report. `left_out` is the number of rows beyond the limit; `notes` are sentences for the reader."""

    query: ReportQuery
    rows: tuple[ReportRow, ...]
    total: Figures
    left_out: int
    notes: tuple[str, ...]


async def cost_report(pool: asyncpg.Pool, query: ReportQuery) -> CostReport:
    """Make the report that `query` asks for, from one snapshot of the treasury.

    Raises:
        InvalidRequest: the query filters by a name that does not exist. TookTooLong: the report took too long.
        TooManyReports, TreasuryUnavailable: as `snapshot` does.
    """
    try:
        async with snapshot(pool, timeout_s=_TIMEOUT_S) as read:
            ids = {prop: await _ids(read, prop, names) for prop, names in query.filters if prop in _NAMED}
            rows_sql = _Statement(query, ids)
            rows = await read.fetch(rows_sql.rows(), *rows_sql.arguments)
            total_sql = _Statement(query, ids)
            (total,) = await read.fetch(total_sql.total(), *total_sql.arguments)
    except TookTooLong as error:
        raise TookTooLong(
            f"The report took longer than {_TIMEOUT_S} s. Narrow it: a shorter time (from, to) or a filter.",
            param="from",
        ) from error
    except asyncpg.InvalidParameterValueError as error:  # Python's and PostgreSQL's time zone data differ
        raise InvalidRequest(
            f"PostgreSQL does not know the time zone {query.time_zone!r}.", param="time_zone"
        ) from error
    left_out = _integer(rows[0], "rows_all") - len(rows) if rows else 0
    figures = _figures(total)
    return CostReport(
        query=query,
        rows=tuple(ReportRow(_labels(query, row), _figures(row)) for row in rows),
        total=figures,
        left_out=left_out,
        notes=_notes(query, rows, figures, left_out),
    )


# ------------------------------------------------------------------ SQL


@dataclass(frozen=True, slots=True)
class _Source:
    """SQL for a property, over `ledger l` and over `refusals r`. For an id, also the table and the name to show."""

    ledger: str
    refusals: str
    table: str | None = None
    label: str = ""


# The entry of an expired attempt may lack the provider, but a later correction has it.
_PROVIDER = """coalesce(l.provider, (SELECT a.provider FROM ledger a
    WHERE a.call_id = l.call_id AND a.attempt = l.attempt AND a.state = 'adjusted' ORDER BY a.correction DESC LIMIT 1))"""

_SOURCES: dict[Property, _Source] = {
    Property.ORGANISATION: _Source("l.organisation_id", "r.organisation_id", "organisations", "{n}.name"),
    Property.TEAM: _Source("l.team_id", "r.team_id", "teams", "{n}.name"),
    Property.AGENT: _Source("l.agent_id", "r.agent_id", "agents", "{n}.name"),
    # After a rotation two keys have the same name; the hint distinguishes them.
    Property.KEY: _Source("l.key_id", "r.key_id", "api_keys", "{n}.name || ' (' || {n}.hint || '…)'"),
    Property.MODEL: _Source("l.model", "r.model"),
    Property.PROVIDER: _Source(_PROVIDER, "NULL::text"),
    Property.RUN: _Source("l.run_id", "r.run_id"),
    Property.USER: _Source("l.user_id", "r.user_id"),
    Property.SESSION: _Source("l.session_id", "r.session_id"),
    Property.TAG: _Source("tag.value", "tag.value"),
    Property.HOUR: _Source("date_trunc('hour', l.started_at, {zone})", "date_trunc('hour', r.at, {zone})"),
    Property.DAY: _Source("date_trunc('day', l.started_at, {zone})", "date_trunc('day', r.at, {zone})"),
    Property.MONTH: _Source("date_trunc('month', l.started_at, {zone})", "date_trunc('month', r.at, {zone})"),
}
_NAMED = {prop: source for prop, source in _SOURCES.items() if source.table is not None}

# If a call names a tag twice, it counts once.
_EACH_TAG = """
    LEFT JOIN LATERAL (SELECT DISTINCT t AS value FROM unnest({row}.tags) AS t) AS tag ON true"""

# Whether the cost of an entry is only an estimate or its hold, and no later correction has a better source.
_IS_ESTIMATE = "({row}.cost_source IN ('estimate', 'hold') OR {row}.usage_source IN ('estimated', 'hold'))"
_ESTIMATED = f"""CASE WHEN {_IS_ESTIMATE.format(row="l")} AND NOT EXISTS (
            SELECT FROM ledger a WHERE a.call_id = l.call_id AND a.attempt = l.attempt AND a.state = 'adjusted'
            AND {_IS_ESTIMATE.format(row="a")} IS NOT TRUE) THEN l.cost_nano ELSE 0 END"""

_LEDGER_FIGURES = f"""l.call_id, l.cost_nano, CASE WHEN l.state <> 'adjusted' THEN 1 ELSE 0 END AS attempts,
        CASE WHEN l.state <> 'adjusted' AND (l.error_code IS NOT NULL OR l.status >= 400)
              AND l.error_code IS DISTINCT FROM 'client_left' THEN 1 ELSE 0 END AS errors,
        0::bigint AS refusals, l.input_tokens, l.cached_tokens, l.cache_write_tokens, l.output_tokens,
        l.reasoning_tokens, {_ESTIMATED} AS estimated_nano, CASE WHEN l.state <> 'adjusted' THEN l.latency_ms END AS latency_ms"""
_REFUSAL_FIGURES = "NULL::uuid, 0, 0, 0, r.count, 0, 0, 0, 0, 0, 0, NULL::integer"

_SUMS = ",\n        ".join(
    f"coalesce(sum({name}), 0) AS {name}"
    for name in (
        *("cost_nano", "attempts", "errors", "refusals", "input_tokens", "cached_tokens"),
        *("cache_write_tokens", "output_tokens", "reasoning_tokens", "estimated_nano"),
    )
)
_FIGURES = f"""count(DISTINCT call_id) AS calls,
        {_SUMS},
        avg(latency_ms)::float8 AS latency_avg_ms,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_ms) AS latency_p50_ms,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) AS latency_p95_ms"""

_ORDER: dict[Order, str] = {
    Order.COST: "g.cost_nano DESC",
    Order.CALLS: "g.calls DESC",
    Order.TOKENS: "g.input_tokens + g.output_tokens DESC",
    Order.REFUSALS: "g.refusals DESC",
    Order.ERRORS: "g.errors DESC",
    Order.LATENCY: "g.latency_p95_ms DESC NULLS LAST",
}


class _Statement:
    """One statement with its arguments. Each value is given to `_argument`, and its `$n` is put into the statement."""

    def __init__(self, query: ReportQuery, ids: dict[Property, list[int]]) -> None:
        self.arguments: list[object] = []
        self._query = query
        self._ids = ids

    def total(self) -> str:
        return f"SELECT {_FIGURES}\nFROM ({self._facts(())}\n) AS facts"

    def rows(self) -> str:
        group_by = self._query.group_by
        grouped = ", ".join(f"by_{prop}" for prop in group_by)  # "user" alone is a keyword
        labels: list[str] = []
        joins: list[str] = []
        for prop in group_by:
            source = _SOURCES[prop]
            label = f"g.by_{prop}"
            if source.table is not None:
                name = f"{prop}_name"
                label = f"coalesce({source.label.format(n=name)}, '{prop} ' || {label})"
                joins.append(f"LEFT JOIN {source.table} AS {name} ON {name}.id = g.by_{prop}")
            labels.append(f"{label} AS label_{prop}")
        places = [str(place) for place in range(1, len(group_by) + 1)]
        if self._query.order is Order.GROUP:
            order = places
        elif self._query.order is not None:
            order = [_ORDER[self._query.order], *places]
        else:  # by time first, then by cost
            order = [f"g.by_{prop}" for prop in group_by if prop in TIMES] + [_ORDER[Order.COST], *places]
        return f"""SELECT {", ".join(labels)}, g.*, count(*) OVER () AS rows_all,
       sum(g.cost_nano) OVER () AS cost_all, sum(g.calls) OVER () AS calls_all,
       sum(g.refusals) OVER () AS refusals_all
FROM (
    SELECT {grouped},
        {_FIGURES}
    FROM ({self._facts(group_by)}
    ) AS facts
    GROUP BY {grouped}
) AS g
{chr(10).join(joins)}
ORDER BY {", ".join(order)}
LIMIT {self._argument(self._query.limit, "bigint")}"""

    def _facts(self, group_by: tuple[Property, ...]) -> str:
        """One row for each ledger entry and each count of refusals, with the properties to group by."""

        zone = self._argument(self._query.time_zone, "text") if TIMES & set(group_by) else ""

        def columns(texts: list[str]) -> str:
            named = [f"{text.format(zone=zone)} AS by_{prop}" for text, prop in zip(texts, group_by, strict=True)]
            return "".join(f"{text},\n        " for text in named)

        each_tag = _EACH_TAG if Property.TAG in group_by else ""
        return f"""
    SELECT {columns([_SOURCES[prop].ledger for prop in group_by])}{_LEDGER_FIGURES}
    FROM ledger l{each_tag.format(row="l")}
    WHERE {self._where("l", "l.started_at")}
    UNION ALL
    SELECT {columns([_SOURCES[prop].refusals for prop in group_by])}{_REFUSAL_FIGURES}
    FROM refusals r{each_tag.format(row="r")}
    WHERE {self._where("r", "r.at")}"""

    def _where(self, row: str, at: str) -> str:
        query = self._query
        conditions: list[str] = []
        if query.start is not None:
            conditions.append(f"{at} >= {self._argument(query.start, 'timestamptz')}")
        if query.end is not None:
            conditions.append(f"{at} < {self._argument(query.end, 'timestamptz')}")
        for prop, values in query.filters:
            conditions.append(self._filter(row, prop, values))
        return " AND ".join(conditions) or "true"

    def _filter(self, row: str, prop: Property, values: tuple[str | None, ...]) -> str:
        named = [value for value in values if value is not None]
        if prop is Property.TAG:
            return _any_of(
                f"{row}.tags && {self._argument(named, 'text[]')}" if named else None,
                f"{row}.tags = '{{}}'" if None in values else None,
            )
        column = _SOURCES[prop].ledger if row == "l" else _SOURCES[prop].refusals
        wanted = self._argument(self._ids[prop], "bigint[]") if prop in _NAMED else self._argument(named, "text[]")
        return _any_of(f"{column} = ANY ({wanted})", f"{column} IS NULL" if None in values else None)

    def _argument(self, value: object, kind: str) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}::{kind}"


def _any_of(*conditions: str | None) -> str:
    return "(" + " OR ".join(condition for condition in conditions if condition is not None) + ")"


async def _ids(read: asyncpg.Connection, prop: Property, values: tuple[str | None, ...]) -> list[int]:
    """The ids of names. Raises InvalidRequest for a name that does not exist, because it is most likely a typing error."""
    source = _NAMED[prop]
    label = source.label.format(n="n")
    names = [value for value in values if value is not None]
    rows = await read.fetch(
        f"SELECT n.id, n.name, {label} AS label FROM {source.table} n WHERE n.name = ANY ($1) OR {label} = ANY ($1)",
        names,
    )
    known = {row["name"] for row in rows} | {row["label"] for row in rows}
    for name in names:
        if name not in known:
            some = await read.fetch(f"SELECT DISTINCT name FROM {source.table} ORDER BY name LIMIT {_NAMES_SHOWN + 1}")
            allowed = ", ".join(str(row["name"]) for row in some[:_NAMES_SHOWN]) or "none yet"
            more = ", …" if len(some) > _NAMES_SHOWN else ""
            raise InvalidRequest(
                f"There is no {prop} named {name!r}. Known names: {allowed}{more} (and {NONE!r} for calls without one).",
                param=prop,
            )
    return [_integer(row, "id") for row in rows]


# ------------------------------------------------------------------ rows to values


def _integer(row: asyncpg.Record, name: str) -> int:
    value: int | Decimal = row[name]  # sums of bigint are numeric: they cannot overflow
    return int(value)


def _figures(row: asyncpg.Record) -> Figures:
    def number(name: str) -> int:
        return _integer(row, name)

    def latency(name: str) -> float | None:
        value: float | None = row[name]
        return value

    return Figures(
        cost_nano=number("cost_nano"),
        calls=number("calls"),
        attempts=number("attempts"),
        errors=number("errors"),
        refusals=number("refusals"),
        input_tokens=number("input_tokens"),
        cached_tokens=number("cached_tokens"),
        cache_write_tokens=number("cache_write_tokens"),
        output_tokens=number("output_tokens"),
        reasoning_tokens=number("reasoning_tokens"),
        estimated_nano=number("estimated_nano"),
        latency_avg_ms=latency("latency_avg_ms"),
        latency_p50_ms=latency("latency_p50_ms"),
        latency_p95_ms=latency("latency_p95_ms"),
    )


def _labels(query: ReportQuery, row: asyncpg.Record) -> tuple[str | None, ...]:
    zone = ZoneInfo(query.time_zone)
    return tuple(label(prop, row[f"label_{prop}"], zone) for prop in query.group_by)


def label(prop: Property, value: object, zone: ZoneInfo) -> str | None:
    """A property's value as text. An hour has its UTC offset, because it is repeated when clocks are set back."""
    if not isinstance(value, datetime):
        return None if value is None else str(value)
    local = value.astimezone(zone)
    if prop is Property.MONTH:
        return f"{local:%Y-%m}"
    return f"{local:%Y-%m-%d}" if prop is Property.DAY else local.isoformat(timespec="minutes")


def _notes(query: ReportQuery, rows: Sequence[asyncpg.Record], total: Figures, left_out: int) -> tuple[str, ...]:
    if not rows:
        return (f"No calls and no refusals {query.period()}" + (" match the filters." if query.filters else "."),)
    notes: list[str] = []
    cost, calls, refusals = (_integer(rows[0], name) for name in ("cost_all", "calls_all", "refusals_all"))
    if Property.TAG in query.group_by and (cost, calls, refusals) != (total.cost_nano, total.calls, total.refusals):
        notes.append(
            "A call with several tags counts in the row of each of them: the rows sum to "
            f"{format_dollars(cost)} and {calls} calls, the total is {format_dollars(total.cost_nano)} "
            f"and {total.calls} calls."
        )
    elif calls != total.calls:
        notes.append(
            "A call that was tried more than once counts in the row of each try: "
            f"the rows sum to {calls} calls, the total is {total.calls}. Costs sum exactly."
        )
    if left_out:
        rest = cost - sum(_integer(row, "cost_nano") for row in rows)
        notes.append(f"{left_out} more rows, {format_dollars(rest)} in all, did not fit into the limit.")
    return tuple(notes)
