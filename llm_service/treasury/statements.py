"""The treasury's two statements: how a group of values becomes arrays, and how a row becomes a decision. Pure.

What must hold: the arrays of one statement are of one length, place by place about the same call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import orjson

from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.types import NO_CONTEXT, CallContext, Hold, HoldRequest, Principal, Settlement

# Arrays of numbers travel as text, which PostgreSQL reads faster than the driver encodes them.
ADMIT = (
    "SELECT * FROM treasury_admit_v3($1::text::uuid[],$2::text::smallint[],$3::text::integer[],$4::text::bigint[],"
    "$5::text::bigint[],$6::text::bigint[],$7::text::bigint[],$8::text::bigint[],$9::text[],$10::text[],"
    "$11::text::bigint[],$12::text::bigint[],$13::text::float8[],$14::text::integer[],$15::text::integer[],"
    "$16::text::bigint[],$17::text[],$18::text::integer[],$19::text[],$20::text::bigint[],$21::integer,$22::boolean)"
)
SETTLE = (
    "SELECT * FROM treasury_settle_v3($1::text::uuid[],$2::text::smallint[],$3::text::text[],$4::text::bigint[],"
    "$5::text::bigint[],$6::text::integer[],$7::text::integer[],$8::text::integer[],$9::text::integer[],"
    "$10::text::integer[],$11::text::text[],$12::text[],$13::text[],$14::text::smallint[],$15::text[],"
    "$16::text::integer[],$17::text::integer[],$18::text[],$19::text::integer[],$20::boolean)"
)


def _context_json(context: CallContext) -> str | None:
    if context is NO_CONTEXT:
        return None
    fields = {"run": context.run, "user": context.user, "session": context.session, "tags": context.tags or None}
    named = {name: value for name, value in fields.items() if value is not None}
    return orjson.dumps(named).decode() if named else None


def _numbers(values: Iterable[int | float | None]) -> str:
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def _told(text: str | None) -> str | None:
    """A provider's own word, as Postgres takes it: without NUL, and no longer than a word is."""
    return None if text is None else text.replace("\0", "")[:200]


def _uuids(values: Iterable[UUID]) -> str:
    return "{" + ",".join([f"{value.int:032x}" for value in values]) + "}"


def admission_arrays(group: Sequence[HoldRequest]) -> tuple[object, ...]:
    windows: dict[tuple[int, str], int] = {}
    principals: dict[int, tuple[int, Principal]] = {}
    which: list[int] = []
    first_line, line_window = [1], list[int]()
    for request in group:
        principal = request.principal
        which.append(principals.setdefault(id(principal), (len(principals) + 1, principal))[0])
        for line in request.lines:
            line_window.append(windows.setdefault(line, len(windows) + 1))
        first_line.append(len(line_window) + 1)
    who = [principal for _, principal in principals.values()]
    return (
        _uuids([r.call_id for r in group]),
        _numbers([r.attempt for r in group]),
        _numbers(which),
        _numbers([p.epoch for p in who]),
        _numbers([p.organisation_id for p in who]),
        _numbers([p.team_id for p in who]),
        _numbers([p.agent_id for p in who]),
        _numbers([p.key_id for p in who]),
        [r.model for r in group],
        [_context_json(r.context) for r in group],
        _numbers([r.amount_nano for r in group]),
        _numbers([r.floor_nano for r in group]),
        _numbers([r.lifetime_s for r in group]),
        _numbers(first_line),
        _numbers(line_window),
        _numbers([budget_id for budget_id, _ in windows]),
        [subject for _, subject in windows],
        _numbers([r.max_share for r in group]),
        [r.requested_model for r in group],
        _numbers([r.rate_card_id for r in group]),
    )


def settlement_arrays(group: Sequence[Settlement]) -> tuple[object, ...]:
    return (
        _uuids([s.call_id for s in group]),
        _numbers([s.attempt for s in group]),
        "{" + ",".join([s.state for s in group]) + "}",
        _numbers([s.cost_nano for s in group]),
        _numbers([s.proxy_cost_nano for s in group]),
        _numbers([s.usage.input_tokens for s in group]),
        _numbers([s.usage.cached_tokens for s in group]),
        _numbers([s.usage.cache_write_tokens for s in group]),
        _numbers([s.usage.output_tokens for s in group]),
        _numbers([s.usage.reasoning_tokens for s in group]),
        "{" + ",".join([s.usage_source for s in group]) + "}",
        [s.provider for s in group],
        [s.deployment for s in group],
        _numbers([s.status for s in group]),
        [_told(s.error_code) for s in group],
        _numbers([s.latency_ms for s in group]),
        _numbers([s.first_token_ms for s in group]),
        [_told(s.service_tier) for s in group],
        _numbers([s.usage.cache_write_1h_tokens for s in group]),
    )


def decision(request: HoldRequest, row: asyncpg.Record) -> Hold | Denial | Exception:
    verdict, granted, budget_id, subject, left, limit, posted, pending, resets_at, resumes_at = row
    if verdict == "admitted":
        return Hold(request.call_id, request.attempt, granted, budget_id, left)
    if verdict == "stale":
        return StaleEpoch()
    resets = resets_at if isinstance(resets_at, datetime) and resets_at.year < 9999 else None
    kind = DenialKind(verdict)
    return Denial(kind, budget_id, subject, limit or 0, posted or 0, pending or 0, resets, resumes_at)
