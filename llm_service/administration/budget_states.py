"""How budgets stand: their windows, what is posted, held and left in them, and their top-ups.

What must hold: nothing is changed here. Sums over very many windows are left out, so that a list takes no longer
because one budget has a window for each of a million users.
"""

from __future__ import annotations

from datetime import datetime

import asyncpg
from pydantic import field_validator

from llm_service.administration.budget_queries import LIVE_WINDOWS, ONE_BY_ID, ONE_BY_NAME, ONE_SUBJECT, PAGE
from llm_service.administration.inputs import View
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import read, searchable
from llm_service.errors import NotFound
from llm_service.money import format_percent
from llm_service.treasury.pacing import read_pace


class TopUp(View):
    """A top-up; `ends_at` None: it never ends."""

    id: int
    amount_nano: int
    starts_at: datetime
    ends_at: datetime | None


class Window(View):
    """A window that is not over. `subject` is the run, user, session or tag that it is for, if the budget is split."""

    subject: str
    starts_at: datetime | None
    resets_at: datetime | None
    posted_nano: int
    pending_nano: int
    left_nano: int


class BudgetState(View):
    """A budget and its current windows. `posted` and `pending` are sums over them; `left` is the smallest amount that
    one of them has left.

    `more_windows`: there are more live windows than `windows` (a budget for each of very many users). Then the sums and
    `left` are not computed; a report by the same property shows what was spent.
    """

    id: int
    name: str
    scope: str
    subject: str
    window: str
    time_zone: str
    per: str | None
    per_value: str | None
    model: str | None
    limit_nano: int
    top_up_nano: int
    posted_nano: int | None
    pending_nano: int | None
    left_nano: int | None
    windows: int
    more_windows: bool = False
    starts_at: datetime | None
    resets_at: datetime | None
    created_at: datetime
    pace: str | None = None
    #: The part of the limit and its top-ups that calls may have used by now, according to the pace.
    paced_nano: int | None = None
    #: The share of the remaining money that one call may hold.
    most_per_call: str | None = None

    @field_validator("most_per_call", mode="before")
    @classmethod
    def _in_percent(cls, value: object) -> object:
        return format_percent(value) if isinstance(value, int) else value

    @field_validator("pace", mode="before")
    @classmethod
    def _as_written(cls, value: object) -> object:
        return str(read_pace(value)) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType]  # integers, by the table


class BudgetDetail(BudgetState):
    """A budget with the hundred live windows that have the least left, and the top-ups that are not over.

    If it has more than ten thousand live windows, the hundred are chosen from ten thousand of them.
    """

    live_windows: list[Window]
    top_ups: list[TopUp]


async def list_budgets(
    pool: asyncpg.Pool,
    *,
    scope: str | None = None,
    subject: str | None = None,
    limit: int = DEFAULT,
    after: str | None = None,
) -> Page[BudgetState]:
    """Budgets with their current windows, in the order of names: at most `limit`, after the name `after`.

    With `scope`, those of one kind; with `subject` too, those of one owner ("agent", "news"; "key", "news/default").
    """
    rows = await read(
        pool,
        PAGE,
        scope,
        None if subject is None else searchable(subject),
        None if after is None else searchable(after),
        to_fetch(limit),
    )
    return page_of(rows, limit, BudgetState.of)


async def show_budget(pool: asyncpg.Pool, name: str, *, subject: str | None = None) -> BudgetDetail:
    """One budget, its live windows (or only that of one run, user, session or tag: `subject`) and its top-ups.

    Raises:
        NotFound: there is no budget of this name.
    """
    rows = await read(pool, ONE_BY_NAME, searchable(name))
    if not rows:
        raise no_budget(name)
    budget = rows[0]
    most_nano = budget["limit_nano"] + budget["top_up_nano"]
    if subject is None:
        windows = await read(pool, LIVE_WINDOWS, budget["id"], most_nano)
    else:
        windows = await read(pool, ONE_SUBJECT, budget["id"], most_nano, searchable(subject))
    top_ups = await read(
        pool,
        """SELECT id, amount_nano, starts_at, CASE WHEN isfinite(ends_at) THEN ends_at END AS ends_at
           FROM top_ups WHERE budget_id = $1 AND ends_at > now() ORDER BY starts_at, id LIMIT 1000""",
        budget["id"],
    )
    return BudgetDetail.of(
        budget, live_windows=[Window.of(row) for row in windows], top_ups=[TopUp.of(row) for row in top_ups]
    )


async def state_of(connection: asyncpg.Connection, budget_id: int) -> BudgetState:
    """How a budget stands, as a part of the change that is under way."""
    row = await connection.fetchrow(ONE_BY_ID, budget_id)
    return BudgetState.of(row)


def no_budget(name: str) -> NotFound:
    """The error for a name that no budget has."""
    return NotFound(f"There is no budget {name[:200]!r}. See which there are: treasurer budget list.", param="name")
