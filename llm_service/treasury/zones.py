"""Times in a time zone, as text for people: always with the offset, so that nobody takes one zone for another. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo


def in_zone(moment: datetime, zone: str) -> datetime:
    """The same time in a zone; in UTC if this machine does not know the zone, even if Postgres does."""
    return moment.astimezone(_zone(zone))


def told(moment: datetime, zone: str) -> str:
    """The text, such as `2026-11-29 00:00:00+01:00 (Europe/Berlin)`, or for UTC `2026-11-29 00:00:00 UTC`."""
    there = in_zone(moment, zone)
    if there.tzinfo is UTC:
        return f"{there:%Y-%m-%d %H:%M:%S} UTC"
    return f"{there.replace(microsecond=0).isoformat(sep=' ')} ({zone})"


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return UTC
