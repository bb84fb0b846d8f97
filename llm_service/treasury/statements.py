"""The treasury's two statements: their arguments, made from a group of calls, and the reading of their rows. Pure.

What must hold:
  Each argument is listed once, in the order of the SQL function's parameters, with its name, its type and its getter
      (tests/integration/test_treasury_statements.py compares them with the functions in the database).
  All arrays over calls have the same length, and the n-th element of each is about the n-th call. The same holds for
      the arrays over principals, and for those over windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any

import asyncpg
import orjson

from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.types import NO_CONTEXT, CallContext, Hold, HoldRequest, Principal, Settlement
from llm_service.usage import more_usage

_NUMBERS = {"smallint", "integer", "bigint", "double precision"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """An array argument. `element` is the SQL type of its elements; `get` reads one from each member of `of`.

    `plain`: the elements are texts that need no quotes in an array's text form, such as the values of an enum.
    """

    name: str
    element: str
    get: Callable[[Any], Any]
    of: str = "calls"
    plain: bool = False

    @property
    def cast(self) -> str:
        """The argument's type. Numbers, ids and plain words are sent as text, which is faster than the driver's arrays."""
        return f"text::{self.element}[]" if self.element != "text" or self.plain else "text[]"

    def encode(self, members: Iterable[Any]) -> object:
        """The array, as the driver sends it for `cast`."""
        values = map(self.get, members)
        if self.element == "uuid":
            return "{" + ",".join([f"{value.int:032x}" for value in values]) + "}"
        if self.element in _NUMBERS:
            return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"
        if self.plain:
            return "{" + ",".join(["NULL" if value is None else value for value in values]) + "}"
        return list(values)


def _context_json(request: HoldRequest) -> str | None:
    context: CallContext = request.context
    if context is NO_CONTEXT:
        return None
    fields = {"run": context.run, "user": context.user, "session": context.session, "tags": context.tags or None}
    named = {name: value for name, value in fields.items() if value is not None}
    return orjson.dumps(named).decode() if named else None


def _itself(value: int) -> int:
    return value


def _bounded(name: str) -> Callable[[Settlement], str | None]:
    """A getter for a text from a provider: without NULs, which Postgres refuses, and at most 200 characters."""
    get = attrgetter(name)

    def bounded(settlement: Settlement) -> str | None:
        text: str | None = get(settlement)
        return None if text is None else text.replace("\0", "")[:200]

    return bounded


def _more_usage(settlement: Settlement) -> str | None:
    more = more_usage(settlement.usage)
    return orjson.dumps(more).decode() if more else None


ADMISSION = (
    Parameter("p_call_id", "uuid", attrgetter("call_id")),
    Parameter("p_attempt", "smallint", attrgetter("attempt")),
    Parameter("p_principal", "integer", _itself, "principal_of_call"),
    Parameter("p_epoch", "bigint", attrgetter("epoch"), "principals"),
    Parameter("p_organisation", "bigint", attrgetter("organisation_id"), "principals"),
    Parameter("p_team", "bigint", attrgetter("team_id"), "principals"),
    Parameter("p_agent", "bigint", attrgetter("agent_id"), "principals"),
    Parameter("p_key", "bigint", attrgetter("key_id"), "principals"),
    Parameter("p_model", "text", attrgetter("model")),
    Parameter("p_context", "text", _context_json),
    Parameter("p_amount", "bigint", attrgetter("amount_nano")),
    Parameter("p_floor", "bigint", attrgetter("floor_nano")),
    Parameter("p_lifetime_s", "double precision", attrgetter("lifetime_s")),
    Parameter("p_first_line", "integer", _itself, "first_line"),
    Parameter("p_line_window", "integer", _itself, "line_window"),
    Parameter("p_budget", "bigint", itemgetter(0), "windows"),
    Parameter("p_subject", "text", itemgetter(1), "windows"),
    Parameter("p_max_share", "integer", attrgetter("max_share")),
    Parameter("p_requested", "text", attrgetter("requested_model")),
    Parameter("p_rate_card", "bigint", attrgetter("rate_card_id")),
    Parameter("p_most_of_left", "integer", attrgetter("most_of_left")),
)
SETTLEMENT = (
    Parameter("p_call_id", "uuid", attrgetter("call_id")),
    Parameter("p_attempt", "smallint", attrgetter("attempt")),
    Parameter("p_state", "text", attrgetter("state"), plain=True),
    Parameter("p_cost", "bigint", attrgetter("cost_nano")),
    Parameter("p_proxy_cost", "bigint", attrgetter("proxy_cost_nano")),
    Parameter("p_input", "integer", attrgetter("usage.input_tokens")),
    Parameter("p_cached", "integer", attrgetter("usage.cached_tokens")),
    Parameter("p_cache_write", "integer", attrgetter("usage.cache_write_tokens")),
    Parameter("p_output", "integer", attrgetter("usage.output_tokens")),
    Parameter("p_reasoning", "integer", attrgetter("usage.reasoning_tokens")),
    Parameter("p_usage_source", "text", attrgetter("usage_source"), plain=True),
    Parameter("p_provider", "text", attrgetter("provider")),
    Parameter("p_deployment", "text", attrgetter("deployment")),
    Parameter("p_status", "smallint", attrgetter("status")),
    Parameter("p_error", "text", _bounded("error_code")),
    Parameter("p_latency_ms", "integer", attrgetter("latency_ms")),
    Parameter("p_first_token_ms", "integer", attrgetter("first_token_ms")),
    Parameter("p_tier", "text", _bounded("service_tier")),
    Parameter("p_cache_write_1h", "integer", attrgetter("usage.cache_write_1h_tokens")),
    Parameter("p_more_usage", "text", _more_usage),
    Parameter("p_cost_source", "text", attrgetter("cost_source"), plain=True),
)
#: The arguments after the arrays: (name, SQL type).
ADMISSION_OPTIONS = (("p_most_new", "integer"), ("p_skip_locked", "boolean"))
SETTLEMENT_OPTIONS = (("p_skip_locked", "boolean"),)


def _statement(function: str, parameters: Sequence[Parameter], options: Sequence[tuple[str, str]]) -> str:
    casts = [*(parameter.cast for parameter in parameters), *(sql_type for _, sql_type in options)]
    return f"SELECT * FROM {function}({','.join(f'${n}::{cast}' for n, cast in enumerate(casts, 1))})"  # noqa: S608 (all are constants of this module)


ADMIT = _statement("treasury_admit_v4", ADMISSION, ADMISSION_OPTIONS)
SETTLE = _statement("treasury_settle_v4", SETTLEMENT, SETTLEMENT_OPTIONS)


@dataclass(slots=True)
class _Admissions:
    """A group of calls, with each of their principals and windows listed once. Indexes count from 1, as in SQL."""

    calls: Sequence[HoldRequest]
    principals: list[Principal] = field(default_factory=list[Principal])
    principal_of_call: list[int] = field(default_factory=list[int])
    windows: dict[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int])
    first_line: list[int] = field(default_factory=lambda: [1])
    line_window: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        places: dict[int, int] = {}
        for request in self.calls:
            place = places.setdefault(id(request.principal), len(places) + 1)
            if place > len(self.principals):
                self.principals.append(request.principal)
            self.principal_of_call.append(place)
            for line in request.lines:
                self.line_window.append(self.windows.setdefault(line, len(self.windows) + 1))
            self.first_line.append(len(self.line_window) + 1)


def admission_arrays(group: Sequence[HoldRequest]) -> tuple[object, ...]:
    """The arrays of `ADMISSION`, for a group of calls."""
    admissions = _Admissions(group)
    return tuple([parameter.encode(getattr(admissions, parameter.of)) for parameter in ADMISSION])


def settlement_arrays(group: Sequence[Settlement]) -> tuple[object, ...]:
    """The arrays of `SETTLEMENT`, for a group of attempts."""
    return tuple([parameter.encode(group) for parameter in SETTLEMENT])


def decision(request: HoldRequest, row: asyncpg.Record) -> Hold | Denial | Exception:
    """The decision in a row of `ADMIT` about its request. An exception goes only to the caller of that request."""
    verdict, granted, budget_id, subject, left, limit, posted, pending, resets_at, resumes_at, most = row
    if verdict == "admitted":
        return Hold(request.call_id, request.attempt, granted, budget_id, left)
    if verdict == "stale":
        return StaleEpoch()
    resets = resets_at if isinstance(resets_at, datetime) and resets_at.year < 9999 else None
    kind = DenialKind(verdict)
    return Denial(kind, budget_id, subject, limit or 0, posted or 0, pending or 0, resets, resumes_at, most)
