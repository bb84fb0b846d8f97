"""Budgets: create, change, top up, archive. (`budget_states.py` shows them.)

What must hold:
  The first window of a budget counts earlier calls of its period exactly once, or not at all. If it counts them, it is
      opened while nothing is admitted or settled.
  A limit is stored once, in the budget's row, where admission reads it. So a change costs the same however many windows
      are open.
  After a change no call is admitted by the old limit: the change's commit waits for admissions that are running
      (treasury/sql/migrations/0005_limits_that_hold.sql).
  Lowering a limit does not change what is already posted and held, even if that is more than the new limit. Invariant
      I1 is about later admissions; the audit reads the earlier limit from the log of changes.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal, Self

import asyncpg
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema, model_validator

from llm_service.administration.budget_states import BudgetState, TopUp, no_budget, state_of
from llm_service.administration.inputs import (
    Amount,
    BudgetName,
    DimensionValue,
    Duration,
    Input,
    ModelPattern,
    Moment,
    Share,
    Target,
    TimeZone,
    is_budget_name,
    parse_share,
)
from llm_service.administration.transaction import change, insert, scope_id, searchable
from llm_service.errors import InvalidRequest, TookTooLong
from llm_service.money import MAX_NANO, format_dollars
from llm_service.treasury.pacing import parse_pace
from llm_service.treasury.queries import load_query
from llm_service.types import Scope

if TYPE_CHECKING:
    from asyncpg import Record


def _pace(value: str) -> str:
    return str(parse_pace(value))


_OPEN_COUNTED = load_query("administration/open_counted_windows")
#: The lock that each admission shares (treasury/sql/functions).
_ADMISSIONS = 7811895328343531809
_COUNT_S = 5

Pace = Annotated[str, AfterValidator(_pace), WithJsonSchema({"type": "string", "examples": ["linear+10%"]})]
PaceOrNone = Annotated[str, AfterValidator(lambda value: value if value == "none" else _pace(value))]
ShareOrNone = Annotated[
    int | Literal["none"],
    BeforeValidator(lambda value: value if value == "none" else parse_share(value)),
    WithJsonSchema({"type": "string", "examples": ["20%", "none"]}),
]
Period = Literal["minute", "hour", "day", "week", "month", "total", "run"]


class Terms(Input):
    """The terms of a budget: how much, for which period, and for which calls. `window="run"` means a total for each
    run.

    `most_per_call` is the share of the remaining money that one call may hold.
    """

    limit: Amount
    window: Period = "total"
    time_zone: TimeZone = "UTC"
    per: Literal["run", "user", "session", "tag"] | None = None
    per_value: DimensionValue | None = None
    model: ModelPattern | None = None
    pace: Pace | None = None
    most_per_call: Share | None = None
    name: BudgetName | None = None

    @model_validator(mode="after")
    def _split(self) -> Self:
        if self.pace is not None and self.kind == "total":
            raise ValueError("a pace needs a window that ends: minute, hour, day, week or month")
        if self.window == "run" and self.per not in (None, "run"):
            raise ValueError("window 'run' is a budget for each run; leave per out, or choose another window")
        if self.per_value is not None and self.dimension is None:
            raise ValueError("per_value needs per: run, user, session or tag")
        return self

    @property
    def dimension(self) -> str | None:
        """The property of a call that splits or narrows the budget."""
        return "run" if self.window == "run" else self.per

    @property
    def kind(self) -> str:
        """The window's kind as it is stored."""
        return "total" if self.window == "run" else self.window

    def default_name(self, scope: Scope, subject: str) -> str:
        """Such as "agent news: day" or "team research: month for each user, gpt-*"."""
        text = f"{scope} {subject}: {self.kind}"
        if self.dimension is not None:
            text += f" for {self.dimension} {self.per_value}" if self.per_value else f" for each {self.dimension}"
        return f"{text}, {self.model}" if self.model else text


class NewBudget(Target, Terms):
    """A budget on one organisation, team, agent or key.

    `count_from="window"`: its first window starts at what was spent in its period so far; `"now"`: it starts at zero.
    """

    count_from: Literal["now", "window"] = "now"


class ChangeBudget(Input):
    """New terms, in force at once, in the middle of a window. "none" removes the pace, or the share for one call."""

    limit: Amount | None = None
    pace: PaceOrNone | None = None
    most_per_call: ShareOrNone | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.limit is None and self.pace is None and self.most_per_call is None:
            raise ValueError("give at least one of limit, pace and most_per_call")
        return self


class NewTopUp(Input):
    """More money for a time: from `starts` (default: now) until `ends`, or for as long as `lasts`; without both, forever."""

    amount: Amount
    starts: Moment | None = None
    ends: Moment | None = None
    lasts: Duration | None = None

    @model_validator(mode="after")
    def _period(self) -> Self:
        if self.ends is not None and self.lasts is not None:
            raise ValueError("give ends or lasts, not both")
        if self.lasts == timedelta(0) or (self.starts and self.ends and self.ends <= self.starts):
            raise ValueError("a top-up ends after it starts")
        return self


class CreatedBudget(BudgetState):
    """A new budget. `counts_from`: its first window counts spending from this time; None: from the window's start."""

    counts_from: datetime | None


async def create_budget(pool: asyncpg.Pool, new: NewBudget) -> CreatedBudget:
    """Create a budget. It applies to every call from now on; with `count_from="window"`, also to calls in flight.

    Raises:
        NotFound: its organisation, team, agent or key does not exist. Conflict: the name is taken.
        InvalidRequest: Postgres does not know the time zone. TookTooLong: what was spent could not be counted in time.
    """
    target = new.target()
    assert target is not None
    async with change(pool) as connection:
        owner = await scope_id(connection, *target)
        state = await add_budget(connection, new, *target, owner)
        if new.count_from == "window":
            await _count_from_window(connection, state.id, new.model)
            state = await state_of(connection, state.id)
        counts_from = state.starts_at if new.count_from == "window" else state.created_at
        fields = {name: getattr(state, name) for name in BudgetState.model_fields}
        return CreatedBudget.model_validate({**fields, "counts_from": counts_from})


async def _count_from_window(connection: asyncpg.Connection, budget_id: int, pattern: str | None) -> None:
    """Open a new budget's windows at what was spent in their period so far.

    Until the change is committed, nothing else is admitted or settled. So each call of the period either has ended, and
    is counted, or is held, and counts in the window when it ends.

    Raises:
        TookTooLong: counting took longer than admissions may be kept waiting.
    """
    try:
        # Counting reads much of the ledger. The settings of other changes suit only statements that read few rows.
        await connection.execute(
            f"SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on; SET LOCAL statement_timeout = '{_COUNT_S}s';"
            f"SELECT pg_advisory_xact_lock({_ADMISSIONS}); LOCK TABLE holds IN SHARE ROW EXCLUSIVE MODE"
        )
        models = None
        if pattern is not None:
            named = await connection.fetch("SELECT DISTINCT model FROM ledger UNION SELECT DISTINCT model FROM holds")
            models = [row["model"] for row in named if fnmatchcase(row["model"], pattern)]
        await connection.execute(_OPEN_COUNTED, budget_id, models)
        await connection.execute("SET LOCAL statement_timeout TO DEFAULT")
    except asyncpg.QueryCanceledError:
        raise TookTooLong(
            f"What was spent in this window could not be counted within {_COUNT_S} s, for which other calls wait. Nothing was "
            "changed. Try again, or create the budget without count_from.",
            param="count_from",
        ) from None


async def add_budget(
    connection: asyncpg.Connection, terms: Terms, scope: Scope, subject: str, owner: int
) -> BudgetState:
    """Create a budget as a part of another change. `owner` is the id of the organisation, team, agent or key."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_timezone_names WHERE name = $1)", terms.time_zone):
        raise InvalidRequest(f"Postgres does not know the time zone {terms.time_zone!r}.", param="time_zone")
    if scope is Scope.KEY:
        subject = await connection.fetchval(
            "SELECT a.name || '/' || k.name FROM api_keys k JOIN agents a ON a.id = k.agent_id WHERE k.id = $1", owner
        )
    name = terms.name or terms.default_name(scope, subject)
    if not is_budget_name(name):
        raise InvalidRequest(f"Give this budget a name; {name[:200]!r} cannot be one.", param="name")
    row = await insert(
        connection,
        f"a budget {name!r}",
        """INSERT INTO budgets
               (name, scope, scope_id, per, per_value, model_pattern, window_kind, time_zone, limit_nano, pace,
                most_per_call)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING id""",
        name,
        scope.value,
        owner,
        terms.dimension,
        terms.per_value,
        terms.model,
        terms.kind,
        terms.time_zone,
        terms.limit,
        parse_pace(terms.pace).flat() if terms.pace is not None else None,
        terms.most_per_call,
    )
    return await state_of(connection, row["id"])


async def change_budget(pool: asyncpg.Pool, name: str, new: ChangeBudget) -> BudgetState:
    """Change a budget's terms at once, in the middle of a window. Existing holds stay.

    Raises:
        NotFound: there is no budget of this name. InvalidRequest: a pace for a budget whose window never ends.
    """
    async with change(pool) as connection:
        budget = await _lock(connection, name)
        if new.pace not in (None, "none") and budget["window_kind"] == "total":
            raise InvalidRequest(f"Budget {name!r} has no end, so it has no pace.", param="pace")
        limit_nano: int = new.limit if new.limit is not None else budget["limit_nano"]
        pace: list[int] | None = budget["pace"]
        if new.pace is not None:
            pace = None if new.pace == "none" else parse_pace(new.pace).flat()
        most_per_call: int | None = budget["most_per_call"]
        if new.most_per_call is not None:
            most_per_call = None if new.most_per_call == "none" else new.most_per_call
        await connection.execute(
            "UPDATE budgets SET limit_nano = $2, pace = $3, most_per_call = $4 WHERE id = $1",
            budget["id"],
            limit_nano,
            pace,
            most_per_call,
        )
        return await state_of(connection, budget["id"])


async def top_up(pool: asyncpg.Pool, name: str, new: NewTopUp) -> TopUp:
    """Add money to a budget for a time.

    Raises:
        NotFound: the budget does not exist. InvalidRequest: the top-up is over before it starts, or the sum is too large.
    """
    async with change(pool) as connection:
        budget = await _lock(connection, name)
        try:
            row = await connection.fetchrow(
                """INSERT INTO top_ups (budget_id, amount_nano, starts_at, ends_at)
                   VALUES ($1, $2, coalesce($3, now()), coalesce($4, coalesce($3, now()) + $5::interval, 'infinity'))
                   RETURNING id, amount_nano, starts_at, CASE WHEN isfinite(ends_at) THEN ends_at END AS ends_at,
                             ends_at <= now() AS over""",
                budget["id"],
                new.amount,
                new.starts,
                new.ends,
                new.lasts,
            )
        except asyncpg.CheckViolationError:
            raise InvalidRequest("A top-up ends after it starts.", param="ends") from None
        assert row is not None
        if row["over"]:
            raise InvalidRequest("This top-up would be over already.", param="ends")
        total = await connection.fetchval(
            "SELECT sum(amount_nano) FROM top_ups WHERE budget_id = $1 AND ends_at > now()", budget["id"]
        )
        if total > MAX_NANO:
            raise InvalidRequest(
                f"The top-ups of budget {name!r} would sum up to more than {format_dollars(MAX_NANO)}.", param="amount"
            )
        return TopUp.of(row)


async def archive_budget(pool: asyncpg.Pool, name: str) -> BudgetState:
    """End a budget. It applies to no further call; its windows and ledger entries remain for reports.

    Raises:
        NotFound: there is no budget of this name.
    """
    async with change(pool) as connection:
        budget = await _lock(connection, name)
        state = await state_of(connection, budget["id"])
        await connection.execute("UPDATE budgets SET archived_at = now() WHERE id = $1", budget["id"])
        return state


async def _lock(connection: asyncpg.Connection, name: str) -> Record:
    row = await connection.fetchrow(
        "SELECT id, limit_nano, pace, most_per_call, window_kind FROM budgets WHERE name = $1 AND archived_at IS NULL FOR NO KEY UPDATE",
        searchable(name),
    )
    if row is None:
        raise no_budget(name)
    return row
