"""Witnesses. A witness is the record of one attempt at a deployment. LiteLLM Proxy writes it, and the service reads it.

What must hold:
  Each column is named once (I2): the lines, the statement that writes them and the code that reads rows are derived
  from one list.
  A line that an older version left on a disk can be read: a column that was added later has a value for such lines.
  A line has only values that Postgres accepts: no NUL and no half a character in a text, no number that is too large
  for its column.
  A line that is sent twice counts once, because each line has an id.

Standard library and orjson only, because both processes load this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, cast
from uuid import UUID, uuid4

import orjson

from llm_service.types import Usage
from llm_service.usage import COLUMNS as USAGE_COLUMNS
from llm_service.usage import more_usage, read_columns

Outcome = Literal["success", "failure", "cancelled"]


@dataclass(frozen=True, slots=True)
class Witness:
    """The outcome of one attempt at one deployment.

    `cost_nano` is the cost by LiteLLM's prices, or None if LiteLLM has no price. `named_cost_nano` is the cost that the
    provider itself reports, or None if it reports none.

    A success has the usage that the provider reported. A failure or a cancellation in mid-stream has an estimate of
    what had been served by then. `counted`: the usage is LiteLLM's own count, and not the provider's report. `unread`:
    the provider sent more than was read, or nobody knows whether it did. Then the count is not an upper bound.
    """

    call_id: UUID
    attempt: int
    outcome: Outcome
    model: str
    ended_at: datetime
    started_at: datetime | None = None
    provider: str | None = None
    deployment: str | None = None
    cost_nano: int | None = None
    usage: Usage = field(default_factory=Usage)
    service_tier: str | None = None
    counted: bool = False
    unread: bool = False
    status: int | None = None
    error: str | None = None
    named_cost_nano: int | None = None
    id: UUID = field(default_factory=uuid4)

    @property
    def exact(self) -> bool:
        """Whether the usage is the provider's report of a whole answer."""
        return self.outcome == "success" and not self.counted

    def line(self) -> str:
        """The witness as one line of JSON, for `INSERT` and for the spool."""
        row = {column.name: _postgres_value(self, column.name) for column in _COLUMNS}
        return orjson.dumps(row).decode()


class _Column(NamedTuple):
    name: str
    type: str
    #: The SQL value for a line that was written before the column existed. None: all lines have this column.
    if_missing: str | None = None


_COLUMNS = (
    _Column("id", "uuid"),
    _Column("call_id", "uuid"),
    _Column("attempt", "smallint"),
    _Column("outcome", "text"),
    _Column("model", "text"),
    _Column("provider", "text"),
    _Column("deployment", "text"),
    _Column("cost_nano", "bigint"),
    _Column("input_tokens", "integer"),
    _Column("cached_tokens", "integer"),
    _Column("cache_write_tokens", "integer"),
    _Column("cache_write_1h_tokens", "integer", "0"),
    _Column("output_tokens", "integer"),
    _Column("reasoning_tokens", "integer"),
    _Column("more_usage", "jsonb", "'{}'"),
    _Column("named_cost_nano", "bigint"),
    _Column("service_tier", "text"),
    _Column("counted", "boolean", "outcome <> 'success'"),
    _Column("unread", "boolean", "false"),
    _Column("status", "smallint"),
    _Column("error", "text"),
    _Column("started_at", "timestamptz"),
    _Column("ended_at", "timestamptz"),
)
_USAGE = frozenset((*USAGE_COLUMNS, "more_usage"))
_INT32_MAX = 2**31 - 1

#: The columns of the table to SELECT for `read_witness`.
COLUMNS = ", ".join(column.name for column in _COLUMNS)
_VALUES = ", ".join(
    column.name if column.if_missing is None else f"coalesce({column.name}, {column.if_missing})" for column in _COLUMNS
)
_TYPES = ", ".join(f"{column.name} {column.type}" for column in _COLUMNS)
#: The statement that writes a JSON array of lines.
INSERT = f"""
INSERT INTO witnesses ({COLUMNS})
SELECT {_VALUES} FROM jsonb_to_recordset($1::jsonb) AS line ({_TYPES})
ON CONFLICT (id) DO NOTHING
"""  # noqa: S608  # of the constants above


def read_witness(row: Mapping[str, Any]) -> Witness:
    """Read a row of the table from JSON, where identifiers and times are text."""
    fields = {column.name: row[column.name] for column in _COLUMNS if column.name not in _USAGE}
    for name in ("id", "call_id"):
        fields[name] = UUID(fields[name])
    for name in ("started_at", "ended_at"):
        fields[name] = None if fields[name] is None else datetime.fromisoformat(fields[name])
    return Witness(usage=read_columns(row, row["more_usage"]), **fields)


def _postgres_value(witness: Witness, name: str) -> object:
    if name == "more_usage":
        return more_usage(witness.usage)
    if name in _USAGE:
        return min(cast("int", getattr(witness.usage, name)), _INT32_MAX)
    value: object = getattr(witness, name)
    if isinstance(value, str):  # half a character, which JSON can hold but UTF-8 cannot, becomes "?"
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    return value
