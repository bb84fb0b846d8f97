"""The input of administrators: one set of strict models, shared by the REST API and the command line.

What must hold:
  Bad input is refused here, before Postgres is asked, with a message that says what was expected.
  An unknown field is an error, and is never ignored.
  Money is parsed once, to nano-dollars.

What only Postgres knows (whether an agent exists, whether a name is taken) is checked where it is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from llm_service.errors import InvalidRequest
from llm_service.money import format_decimal, parse_dollars
from llm_service.types import Scope

if TYPE_CHECKING:
    from asyncpg import Record

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._ -]{0,62}[A-Za-z0-9._-])?")
_BUDGET_NAME = re.compile(r"[A-Za-z0-9](?:[\x20-\x7e]{0,198}[\x21-\x7e])?")
_PATTERN = re.compile(r"[A-Za-z0-9*?\[\]!._:/@+-]{1,128}")
_DURATION = re.compile(r"([0-9]{1,9})\s*([smhdw])")
_SHARE = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,2})?)\s?%")
_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=3660)
#: The largest id that Postgres' bigint can hold: a larger one names nothing.
MAX_ID = 2**63 - 1


def _name(value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise ValueError(
            "a name is 1 to 64 letters, digits, '.', '_', '-' or spaces, and starts with a letter or digit"
        )
    return value


def is_budget_name(value: str) -> bool:
    """Whether this can be a budget's name: printable ASCII without space at its ends, because headers carry it."""
    return _BUDGET_NAME.fullmatch(value) is not None


def _budget_name(value: str) -> str:
    if not is_budget_name(value):
        raise ValueError("a budget's name is 1 to 200 printable ASCII characters and starts with a letter or digit")
    return value


def _pattern(value: str) -> str:
    if _PATTERN.fullmatch(value) is None:
        raise ValueError("a model pattern is 1 to 128 characters such as gpt-4o or claude-*, without spaces")
    return value


def _value(value: str) -> str:
    if not 1 <= len(value) <= 256 or not value.isprintable():
        raise ValueError("a value is 1 to 256 printable characters")
    return value


def _note(value: str) -> str:
    if not 1 <= len(value) <= 1000 or not value.isprintable() or value.isspace():
        raise ValueError("a note is 1 to 1000 printable characters: why this is right, or what is done about it")
    return value


def parse_amount_or_zero(value: object) -> int:
    """Read an amount of dollars, in nano-dollars. Raises ValueError: it is anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('an amount is dollars, as text or number: "0.05" or 12.5')
    if len(str(value)) > 40:
        raise ValueError("an amount has at most 40 characters")
    return parse_dollars(value)


def parse_amount(value: object) -> int:
    """Read an amount of dollars that is more than zero, in nano-dollars. Raises ValueError: it is anything else."""
    nano = parse_amount_or_zero(value)
    if nano == 0:
        raise ValueError("an amount is more than zero (to stop an agent, pause it)")
    return nano


def parse_share(value: object) -> int:
    """Read a share such as `20%` or `12.5%`, in basis points. It must be more than 0 % and less than 100 %.

    Raises:
        ValueError: it is anything else.
    """
    match = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    share = 0 if match is None else int(Decimal(match[1]) * 100)
    if not 0 < share < 10_000:
        raise ValueError("a share is more than 0% and less than 100%, with at most two decimals: 20% or 12.5%")
    return share


def _zone(value: str) -> str:
    try:
        if not 1 <= len(value) <= 64:
            raise ValueError
        ZoneInfo(value)
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{value[:64]!r} is not a time zone; use an IANA name such as UTC or Europe/Berlin") from None
    return value


def parse_duration(value: object) -> timedelta:
    """Read `30s`, `15m`, `24h`, `30d`, `2w` or `0`. At most ten years.

    Raises:
        ValueError: it is anything else.
    """
    if isinstance(value, timedelta):
        return value
    if value == "0":
        return timedelta(0)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a duration is a number and a unit: 30s, 15m, 24h, 30d or 2w")
    if int(match[1]) > _LONGEST / timedelta(**{_UNIT[match[2]]: 1}):
        raise ValueError("a duration is at most ten years")
    return timedelta(**{_UNIT[match[2]]: int(match[1])})


def parse_moment(value: object) -> datetime:
    """Read an ISO 8601 time with its offset: `2027-01-31T18:00:00Z`.

    Raises:
        ValueError: it is not a time, has no offset, or is before 2000 or after 2200.
    """
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise ValueError("expected a time such as 2027-01-31T18:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset from UTC: 2027-01-31T18:00:00Z or …+01:00")
    if not 2000 <= moment.year <= 2200:
        raise ValueError("a time is between the years 2000 and 2200")
    return moment


def _when(value: object) -> datetime | timedelta:
    return _moment_or_duration(value, "a duration from now")


def parse_past(value: object) -> datetime | timedelta:
    """Read a time, or how long ago it is.

    Raises:
        ValueError: it is neither.
    """
    return _moment_or_duration(value, "how long ago")


def _moment_or_duration(value: object, duration: str) -> datetime | timedelta:
    if isinstance(value, datetime | timedelta):
        return value
    if isinstance(value, str) and _DURATION.fullmatch(value.strip()):
        return parse_duration(value)
    try:
        return parse_moment(value)
    except ValueError as error:
        raise ValueError(f"{error}; or {duration}, such as 30d") from None


def _key_reference(value: object) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str):
        agent, slash, name = text.partition("/")
        if slash and _NAME.fullmatch(agent) and _NAME.fullmatch(name):
            return text
        if not slash and re.fullmatch(r"[0-9]{1,19}", text) and int(text) <= MAX_ID:
            return text
    raise ValueError("a key is named by its id, or as agent/name (treasurer key list shows both)")


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]
BudgetName = Annotated[
    str, AfterValidator(_budget_name), WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9][ -~]{0,198}$"})
]
ModelPattern = Annotated[
    str, AfterValidator(_pattern), WithJsonSchema({"type": "string", "pattern": f"^{_PATTERN.pattern}$"})
]
DimensionValue = Annotated[str, AfterValidator(_value)]
TimeZone = Annotated[str, AfterValidator(_zone)]
KeyReference = Annotated[str, BeforeValidator(_key_reference), WithJsonSchema({"type": "string"})]
#: Given in dollars, kept in nano-dollars; more than zero.
Amount = Annotated[
    int, BeforeValidator(parse_amount), WithJsonSchema({"type": ["string", "number"], "examples": ["0.05"]})
]
#: Given in dollars, kept in nano-dollars; may be zero.
AmountOrZero = Annotated[
    int, BeforeValidator(parse_amount_or_zero), WithJsonSchema({"type": ["string", "number"], "examples": ["0.05"]})
]
Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), WithJsonSchema({"type": "string", "examples": ["24h"]})
]
Moment = Annotated[datetime, BeforeValidator(parse_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
#: A share. It is given in percent, and kept in basis points.
Share = Annotated[int, BeforeValidator(parse_share), WithJsonSchema({"type": "string", "examples": ["20%"]})]
#: A time; or a duration that begins now, by Postgres' clock.
When = Annotated[
    datetime | timedelta,
    BeforeValidator(_when),
    WithJsonSchema({"type": "string", "examples": ["30d", "2027-01-31T18:00:00Z"]}),
]
#: A time; or how long ago that is, by Postgres' clock.
Past = Annotated[
    datetime | timedelta,
    BeforeValidator(parse_past),
    WithJsonSchema({"type": "string", "examples": ["30d", "2026-11-01T00:00:00Z"]}),
]
#: Why an operator does something, for the readers of the log of changes.
Note = Annotated[str, AfterValidator(_note)]


class Input(BaseModel):
    """A request: strict types, no unknown fields, and errors that do not repeat what was given."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class Target(Input):
    """The owner of a budget or limit: exactly one of the four fields. A limit may have no owner."""

    organisation: Name | None = None
    team: Name | None = None
    agent: Name | None = None
    key: KeyReference | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = sum(value is not None for value in (self.organisation, self.team, self.agent, self.key))
        if named > 1 or (named == 0 and not self._may_be_general()):
            raise ValueError("name exactly one of organisation, team, agent and key")
        return self

    def _may_be_general(self) -> bool:
        return False

    def target(self) -> tuple[Scope, str] | None:
        """The scope and the name that was given."""
        for scope in (Scope.ORGANISATION, Scope.TEAM, Scope.AGENT, Scope.KEY):
            name = getattr(self, scope.value)
            if name is not None:
                return scope, name
        return None


def _describe_dollars(schema: dict[str, Any]) -> None:
    fields = schema["properties"]
    for name in [name for name in fields if name.endswith("_nano")]:
        dollars = name.removesuffix("_nano")
        fields[dollars] = {"type": ["string", "null"], "title": dollars.title(), "description": "Dollars."}


class View(BaseModel):
    """The base of all answers. Each amount `x_nano` is also given in dollars as `x`, a decimal number in a text."""

    model_config = ConfigDict(frozen=True, json_schema_extra=_describe_dollars)

    @classmethod
    def of(cls, row: Record | None, **more: object) -> Self:
        """The view of a row; `more` are the fields that the row does not have."""
        assert row is not None
        return cls.model_validate({**row, **more})

    @model_serializer(mode="wrap")
    def _with_dollars(self, handler: SerializerFunctionWrapHandler):  # a return type would replace the schema's fields
        shown: dict[str, Any] = {}
        for name, value in handler(self).items():
            if name.endswith("_nano"):
                shown[name.removesuffix("_nano")] = None if value is None else format_decimal(value)
            shown[name] = value
        return shown


_Model = TypeVar("_Model", bound=Input)


def read_input(model: type[_Model], fields: Mapping[str, object]) -> _Model:
    """Check input from the command line. Fields that are None were not given.

    Raises:
        InvalidRequest: the message names the field and what was expected.
    """
    try:
        return model.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise bad_input(error.errors(include_url=False, include_context=False)) from None


def bad_input(problems: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """Pydantic's list of problems as one readable error; `param` names the first field."""
    lines: list[str] = []
    for problem in problems[:5]:
        place = _place(problem)
        message = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such field"
        lines.append(f"{place}: {message}" if place else message)
    if len(problems) > 5:
        lines.append(f"and {len(problems) - 5} more")
    return InvalidRequest("; ".join(lines), param=_place(problems[0]) or None)


def _place(problem: Mapping[str, Any]) -> str:
    parts = [str(part) for part in problem["loc"] if part not in ("body", "path", "query")]
    return ".".join(parts)[:200] if problem["type"] != "json_invalid" else ""
