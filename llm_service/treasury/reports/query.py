"""The query of a report, parsed from text. Pure: no I/O, and the current time is an argument.

What must hold:
  Properties and orders are closed sets. Anything else is an `InvalidRequest` that names the parameter and what is allowed.
  The web API and the command line parse with the same code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from llm_service.errors import InvalidRequest

#: The name for calls without a property, in filters and in output for people.
NONE = "(none)"
MAX_PROPERTIES = 4
MAX_ROWS = 100_000
_DEFAULT_ROWS = 1_000
_MAX_VALUE_BYTES = 1_000
_MAX_VALUES = 100


class Property(StrEnum):
    """A property of a call by which a report can sum. A report can also be filtered by any of these, except the times."""

    ORGANISATION = "organisation"
    TEAM = "team"
    AGENT = "agent"
    KEY = "key"
    MODEL = "model"
    PROVIDER = "provider"
    RUN = "run"
    USER = "user"
    SESSION = "session"
    TAG = "tag"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


TIMES = frozenset({Property.HOUR, Property.DAY, Property.MONTH})
FILTERS = tuple(prop for prop in Property if prop not in TIMES)


class Order(StrEnum):
    """What rows are sorted by: figures in falling order, `group` in rising order."""

    COST = "cost"
    CALLS = "calls"
    TOKENS = "tokens"
    REFUSALS = "refusals"
    ERRORS = "errors"
    LATENCY = "latency"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class ReportQuery:
    """The properties by which to sum, and the calls to include: those that started in [start, end).

    A filter names a property and the values that are included; None includes calls without the property.
    Without an `order`, rows are sorted by time if they are grouped by one, and then by cost, the highest first.
    """

    group_by: tuple[Property, ...] = (Property.AGENT,)
    start: datetime | None = None
    end: datetime | None = None
    time_zone: str = "UTC"
    filters: tuple[tuple[Property, tuple[str | None, ...]], ...] = ()
    order: Order | None = None
    limit: int = _DEFAULT_ROWS

    def period(self) -> str:
        """The time covered, for people: "from 2026-11-01T00:00+01:00 until now"."""
        if self.start is None and self.end is None:
            return "so far"
        zone = ZoneInfo(self.time_zone)
        start = "the beginning" if self.start is None else self.start.astimezone(zone).isoformat(timespec="minutes")
        end = "now" if self.end is None else self.end.astimezone(zone).isoformat(timespec="minutes")
        return f"from {start} until {end}"


PARAMETERS = ("group_by", "from", "to", "time_zone", *FILTERS, "order", "limit")


def parse_query(parameters: Mapping[str, Sequence[str]], *, now: datetime) -> ReportQuery:
    """Read a query from parameters as they were typed. "7d" is counted back from `now`, which has an offset.

    Raises:
        InvalidRequest: names the parameter, what was given and what is allowed.
    """
    for name in parameters:
        if name not in PARAMETERS:
            raise InvalidRequest(f"Unknown parameter {name!r}. Allowed: {', '.join(PARAMETERS)}.", param=name)
    time_zone = _time_zone(_one(parameters, "time_zone") or "UTC")
    zone = ZoneInfo(time_zone)
    start = _moment("from", _one(parameters, "from"), zone, now)
    end = _moment("to", _one(parameters, "to"), zone, now)
    if start is not None and end is not None and start >= end:
        raise InvalidRequest(
            f"The report would end ({end.isoformat()}) before it begins ({start.isoformat()}): "
            "from must be before to, and to itself is not included.",
            param="to",
        )
    order = _one(parameters, "order")
    return ReportQuery(
        group_by=_group_by(parameters.get("group_by", ())),
        start=start,
        end=end,
        time_zone=time_zone,
        filters=tuple((prop, _values(prop, parameters[prop])) for prop in FILTERS if parameters.get(prop)),
        order=None if order is None else Order(_choice("order", order, [item.value for item in Order])),
        limit=_limit(_one(parameters, "limit")),
    )


def _one(parameters: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = parameters.get(name, ())
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given {len(values)} times; give it once.", param=name)
    return values[0].strip() if values else None


def _choice(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise InvalidRequest(f"{name}: {value!r} is not one of: {', '.join(allowed)}.", param=name)
    return value


def _group_by(values: Sequence[str]) -> tuple[Property, ...]:
    names = [name.strip() for value in values for name in value.split(",")]
    if not names:
        return (Property.AGENT,)
    allowed = [prop.value for prop in Property]
    chosen = tuple(Property(_choice("group_by", name, allowed)) for name in names)
    if len(set(chosen)) != len(chosen):
        raise InvalidRequest(f"group_by names a property twice: {', '.join(names)}.", param="group_by")
    if len(chosen) > MAX_PROPERTIES:
        raise InvalidRequest(
            f"group_by names {len(chosen)} properties; at most {MAX_PROPERTIES} of: {', '.join(allowed)}.",
            param="group_by",
        )
    return chosen


def _values(name: str, values: Sequence[str]) -> tuple[str | None, ...]:
    if len(values) > _MAX_VALUES:
        raise InvalidRequest(f"{name} is given {len(values)} times; at most {_MAX_VALUES}.", param=name)
    for value in values:
        if not _storable(value):
            raise InvalidRequest(
                f"{name}: expected 1 to {_MAX_VALUE_BYTES} bytes of UTF-8 text, or {NONE!r} for calls without one.",
                param=name,
            )
    return tuple(None if value == NONE else value for value in values)


def _storable(value: str) -> bool:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:  # a lone surrogate: Python decodes broken UTF-8 to these
        return False
    return 0 < size <= _MAX_VALUE_BYTES and "\0" not in value


def _limit(value: str | None) -> int:
    if value is None:
        return _DEFAULT_ROWS
    if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= MAX_ROWS:
        raise InvalidRequest(f"limit: {value!r} is not a whole number from 1 to {MAX_ROWS}.", param="limit")
    return int(value)


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _time_zone(value: str) -> str:
    if value not in _time_zones():
        raise InvalidRequest(
            f"time_zone: {value!r} is not a time zone's name; write it like Europe/Paris, America/New_York or UTC.",
            param="time_zone",
        )
    return value


_AGO = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")


def _moment(name: str, value: str | None, zone: ZoneInfo, now: datetime) -> datetime | None:
    """A time as people write it; without an offset it is in the report's time zone."""
    if value is None:
        return None
    try:
        if value == "now":
            return now
        if value in ("today", "yesterday"):
            day = now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
            return (day - timedelta(days=value == "yesterday")).replace(tzinfo=zone)
        if ago := _AGO.fullmatch(value):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(f"{value}-01" if _MONTH.fullmatch(value) else value)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
        moment.astimezone(UTC).astimezone(zone)  # raises if the result is outside of the years 1 to 9999
    except (ValueError, OverflowError) as error:
        hint = " In a URL, write + as %2B." if re.search(r":[0-9]{2} [0-9]{2}:?[0-9]{2}$", value) else ""
        raise InvalidRequest(
            f"{name}: {value!r} is not a time. Write a month (2026-11), a date (2026-11-30), a time "
            f"(2026-11-30T14:00, with +01:00 or in the report's time zone), how long ago (90m, 24h, 7d, 4w), "
            f"today, yesterday or now.{hint}",
            param=name,
        ) from error
    return moment
