"""Simulates another policy on a period of the ledger: its refusals, its downgrades, and the money saved.

The replay is pure. It takes posted calls, in the order in which they began, and a policy; it returns sums. It makes
these assumptions, which the result states:
- A call would have had the same tokens.
- A call's cost is spent when the call begins. Holds are not replayed, so simultaneous calls are taken one after
  another.
- A call that was refused in the period stays refused.
- The policy changes when the period begins. Earlier spending of a window stays.
- Top-ups are also added to the new limit.

What must hold:
  A replay of the policy that was in force refuses nothing, and its cost is that of the ledger.
  A lower limit never leads to a higher cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import orjson

from llm_service.errors import InvalidRequest, NotFound
from llm_service.postgres import snapshot
from llm_service.treasury.pacing import Curve
from llm_service.treasury.queries import load_query
from llm_service.types import Usage, WindowKind
from llm_service.usage import read_columns

#: (model, usage) → nano-dollars; None: the catalogue has no such model.
PriceOf = Callable[[str, Usage], int | None]


@dataclass(frozen=True, slots=True)
class PastWindow:
    """A window in which a call was counted. `before_nano` was spent in it before the period began.

    `top_ups` are amounts, each with the start and the end of its time.
    """

    id: int
    budget: str
    limit_nano: int
    starts_at: datetime
    ends_at: datetime
    before_nano: int = 0
    top_ups: tuple[tuple[int, datetime, datetime], ...] = ()

    def limit(self, at: datetime, policy: Policy) -> int:
        """The total that may be spent in the window, with the top-ups in force at that time."""
        topped_up = sum(amount for amount, since, until in self.top_ups if since <= at < until)
        return policy.limits.get(self.budget, self.limit_nano) + topped_up

    def left(self, at: datetime, policy: Policy, spent: Mapping[int, int]) -> int | None:
        """The amount that the window has left for a call. None: the policy does not change the window's budget."""
        curve = policy.paces.get(self.budget)
        if curve is None and self.budget not in policy.limits:
            return None
        most = self.limit(at, policy)
        if curve is not None:
            most = curve.allowed(most, self.starts_at, self.ends_at, at)
        return most - self.before_nano - spent.get(self.id, 0)


@dataclass(frozen=True, slots=True)
class PastCall:
    """One attempt that was posted."""

    started_at: datetime
    agent: str
    model: str
    requested_model: str
    cost_nano: int
    usage: Usage
    windows: tuple[PastWindow, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """The changes to simulate: limits (nano-dollars) and curves by budget; `downgrades`: model → (cheaper model,
    share).

    The share is in basis points of the limit of each budget that applies to the call.
    """

    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    paces: Mapping[str, Curve] = field(default_factory=dict[str, Curve])
    downgrades: Mapping[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])


@dataclass(slots=True)
class Replayed:
    """The sums of a replay, in nano-dollars. `by_budget` is the number of refusals by each budget."""

    calls: int = 0
    spent_nano: int = 0
    would_spend_nano: int = 0
    refused: int = 0
    refused_nano: int = 0
    downgraded: int = 0
    downgraded_saved_nano: int = 0
    by_budget: dict[str, int] = field(default_factory=dict[str, int])
    by_agent: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def saved_nano(self) -> int:
        """The amount that would not have been spent."""
        return self.spent_nano - self.would_spend_nano


def replay(calls: Sequence[PastCall], policy: Policy, price: PriceOf) -> Replayed:
    """Replay the calls under another policy, in the order in which they began. Pure."""
    result = Replayed()
    spent: dict[int, int] = defaultdict(int)
    for call in sorted(calls, key=lambda call: call.started_at):
        result.calls += 1
        result.spent_nano += call.cost_nano
        cost_nano = call.cost_nano
        cheaper = _downgrade(call, policy, spent, price)
        if cheaper is not None and cheaper < cost_nano:
            cost_nano = cheaper
        left = ((window, window.left(call.started_at, policy, spent)) for window in call.windows)
        refusing = next((window for window, nano in left if nano is not None and nano < cost_nano), None)
        if refusing is not None:
            result.refused += 1
            result.refused_nano += call.cost_nano
            result.by_budget[refusing.budget] = result.by_budget.get(refusing.budget, 0) + 1
            result.by_agent[call.agent] = result.by_agent.get(call.agent, 0) + 1
            continue
        if cost_nano < call.cost_nano:
            result.downgraded += 1
            result.downgraded_saved_nano += call.cost_nano - cost_nano
        result.would_spend_nano += cost_nano
        for window in call.windows:
            spent[window.id] += cost_nano
    return result


def _downgrade(call: PastCall, policy: Policy, spent: Mapping[int, int], price: PriceOf) -> int | None:
    """The call's cost at the cheaper model, if a budget's share for its own model was used up; otherwise None."""
    named = policy.downgrades.get(call.requested_model)
    if named is None or call.model != call.requested_model:
        return None
    cheaper, share = named
    for window in call.windows:
        limit_nano = window.limit(call.started_at, policy)
        if window.before_nano + spent.get(window.id, 0) + call.cost_nano > limit_nano * share // 10_000:
            return price(cheaper, call.usage)
    return None


_CALLS = load_query("reports/posted_calls")
_WINDOWS = load_query("reports/windows_of_calls")
_TOP_UPS = load_query("reports/top_ups_of_budgets")
_KNOWN = "SELECT name, window_kind FROM budgets WHERE name = ANY ($1::text[])"
#: The most calls that are read at once.
MOST_CALLS = 1_000_000
_TIMEOUT_S = 120


async def read_calls(
    pool: asyncpg.Pool, since: datetime, until: datetime, *, limited: Iterable[str] = (), paced: Iterable[str] = ()
) -> list[PastCall]:
    """The posted calls of a period that ends now, with their windows. Budgets that are `limited` or `paced` must exist.

    Raises:
        NotFound: a budget does not exist. InvalidRequest: there are too many calls, or a budget to be paced has windows
        without an end.
        TookTooLong, TreasuryUnavailable: as `snapshot` does.
    """
    async with snapshot(pool, timeout_s=_TIMEOUT_S, reading="simulation") as read:
        known = await read.fetch(_KNOWN, list({*limited, *paced}))
        rows = await read.fetch(_CALLS, since, until, MOST_CALLS + 1)
        ids = {number for row in rows for number in row["window_ids"]}
        found = await read.fetch(_WINDOWS, list(ids))
        top_ups = await read.fetch(_TOP_UPS, [row["budget_id"] for row in found])
    kinds: dict[str, str] = {row["name"]: row["window_kind"] for row in known}
    for name in (*limited, *paced):
        if name not in kinds:
            raise NotFound(f"There is no budget {name!r}. See which there are: treasurer budget list.", param="budget")
    for name in paced:
        if kinds[name] == WindowKind.TOTAL:
            raise InvalidRequest(f"The window of {name!r} has no end, so that it cannot be paced.", param="pace")
    if len(rows) > MOST_CALLS:
        raise InvalidRequest(f"The period has more than {MOST_CALLS:,} calls: choose a shorter one.", param="since")
    windows = _windows(rows, found, top_ups)
    return [
        PastCall(
            row["started_at"],
            row["agent"],
            row["model"],
            row["requested_model"],
            row["cost_nano"],
            read_columns(dict(row), orjson.loads(row["more_usage"])),
            tuple(windows[number] for number in row["window_ids"] if number in windows),
        )
        for row in rows
    ]


def _windows(
    calls: Sequence[asyncpg.Record], found: Sequence[asyncpg.Record], top_ups: Sequence[asyncpg.Record]
) -> dict[int, PastWindow]:
    within: dict[int, int] = defaultdict(int)
    for call in calls:
        for number in call["window_ids"]:
            within[number] += call["cost_nano"]
    added: dict[int, list[tuple[int, datetime, datetime]]] = defaultdict(list)
    for row in top_ups:
        added[row["budget_id"]].append((row["amount_nano"], row["starts_at"], row["ends_at"]))
    return {
        row["id"]: PastWindow(
            row["id"],
            row["budget"],
            row["limit_nano"],
            row["starts_at"],
            row["ends_at"],
            row["posted_nano"] - within[row["id"]],
            tuple(added[row["budget_id"]]),
        )
        for row in found
    }
