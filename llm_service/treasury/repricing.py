"""Decides for `treasurer reprice` how much an attempt should have cost at a later rate card. Pure.

What must hold:
  I4  The right cost is the usage in the ledger, with its corrections, priced by the model's present rate card.
  Only usage that the provider reported is priced again. Estimates and holds stay as they are, because no price makes
      them exact. A cost that the provider itself reported stays as well, because that is the provider's bill.
  A corrected attempt is right, so a second correction changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson

from llm_service.pricing.belief import same
from llm_service.pricing.models import Model
from llm_service.types import CostSource, Usage, UsageSource
from llm_service.usage import COLUMNS, read_columns

_REPORTED = (UsageSource.PROVIDER, UsageSource.WITNESS)


class Kept(StrEnum):
    """Why an attempt stays as it is."""

    RIGHT = "they cost the same at the present price"
    FREE = "nothing was bought"
    NAMED = "the provider itself named the cost"
    ESTIMATED = "the usage was estimated"
    HELD = "the whole hold was posted, because nobody knows the usage"
    SEVERAL = "several answers were served on one hold"
    CHANGED = "they changed while this ran; run it again"


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """An attempt in the ledger, including its corrections. `served` is when it began and ended.

    `upstream_nano` is LiteLLM's figure, if there is one. `answers` is the number of whole answers in the proxy's
    witnesses.
    """

    call_id: UUID
    attempt: int
    agent: str
    corrections: int
    posted_nano: int
    held_nano: int
    usage: Usage
    usage_source: str
    cost_source: str
    deployment: str | None
    service_tier: str | None
    served: tuple[datetime, datetime]
    upstream_nano: int | None
    answers: int
    window_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Correction:
    """The cost of an attempt at the present price. If the same cost was posted, the operator confirms a disputed price."""

    attempt: EndedAttempt
    right_nano: int

    @property
    def difference_nano(self) -> int:
        """The amount to add to the posted cost."""
        return self.right_nano - self.attempt.posted_nano

    @property
    def overshoot_nano(self) -> int:
        """How far the right cost is above the hold."""
        return max(0, self.right_nano - self.attempt.held_nano)


def correct(attempt: EndedAttempt, model: Model) -> Correction | Kept:
    """The correction to write for an attempt, or the reason why none is needed."""
    if attempt.posted_nano == 0 and attempt.usage == Usage():
        return Kept.FREE
    if attempt.cost_source == CostSource.PROVIDER:
        return Kept.NAMED
    if attempt.cost_source == CostSource.HOLD or attempt.usage_source in (UsageSource.HOLD, UsageSource.NONE):
        return Kept.HELD
    if attempt.cost_source == CostSource.ESTIMATE or attempt.usage_source not in _REPORTED:
        return Kept.ESTIMATED
    if attempt.usage_source == UsageSource.WITNESS and attempt.answers > 1:
        return Kept.SEVERAL  # the ledger has the sum of several answers, which were priced one by one
    right_nano = model.cost(attempt.deployment, attempt.usage, attempt.service_tier, attempt.served)
    if right_nano == attempt.posted_nano and not _disputed(attempt):
        return Kept.RIGHT
    return Correction(attempt, right_nano)


def _disputed(attempt: EndedAttempt) -> bool:
    """Whether the audit reports that two price lists differ about this attempt (`prices_agree`)."""
    if attempt.posted_nano == 0:
        return False
    if attempt.cost_source == CostSource.RATES:
        return attempt.upstream_nano is not None and not same(attempt.posted_nano, attempt.upstream_nano)
    return attempt.cost_source == CostSource.UPSTREAM


def read_attempt(rows: Sequence[Mapping[str, Any]]) -> EndedAttempt:
    """Read an attempt from its rows in the ledger: the row of its end, then its corrections in order."""
    end, latest = rows[0], rows[-1]
    posted_nano = sum(row["cost_nano"] for row in rows)
    return EndedAttempt(
        call_id=end["call_id"],
        attempt=end["attempt"],
        agent=end["agent"] or f"agent {end['agent_id']}",
        corrections=len(rows) - 1,
        posted_nano=posted_nano,
        held_nano=end["held_nano"],
        usage=_usage(rows),
        usage_source=latest["usage_source"],
        # Rows from before this column existed have our own price as their cost.
        cost_source=_last(rows, "cost_source") or CostSource.RATES,
        deployment=_last(rows, "deployment"),
        service_tier=_last(rows, "service_tier"),
        served=(end["started_at"], end["ended_at"]),
        upstream_nano=_upstream_nano(rows, posted_nano),
        answers=end["answers"],
        window_ids=tuple(window for window in end["window_ids"] if window is not None),
    )


def _usage(rows: Sequence[Mapping[str, Any]]) -> Usage:
    """The usage of an attempt. A correction has differences of numbers, but new values of texts."""
    parts = [read_columns({name: row[name] for name in COLUMNS}, orjson.loads(row["more_usage"])) for row in rows]
    found: dict[str, Any] = {}
    for name in Usage.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], str):
            found[name] = next((value for value in reversed(values) if value), "")
        else:
            found[name] = sum(values)
    return Usage(**found)


def _upstream_nano(rows: Sequence[Mapping[str, Any]], posted_nano: int) -> int | None:
    """LiteLLM's figure: the one in the witness, unless the answer had another one than was posted."""
    named = [row["proxy_cost_nano"] for row in rows if row["proxy_cost_nano"] is not None]
    answered: int | None = sum(named) if named else None
    if answered is not None and answered != posted_nano:
        return answered
    witnessed: int | None = rows[0]["witness_nano"]
    return answered if witnessed is None else witnessed


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    return next((row[name] for row in reversed(rows) if row[name] is not None), None)
