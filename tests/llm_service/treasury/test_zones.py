"""Times in a form for people."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llm_service.treasury.zones import in_zone, told

NOON = datetime(2026, 7, 1, 12, 0, 0, 999, UTC)


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("UTC", "2026-07-01 12:00:00 UTC"),
        ("Europe/Berlin", "2026-07-01 14:00:00+02:00 (Europe/Berlin)"),
        ("Asia/Kolkata", "2026-07-01 17:30:00+05:30 (Asia/Kolkata)"),
        ("America/New_York", "2026-07-01 08:00:00-04:00 (America/New_York)"),
        ("Not/AZone", "2026-07-01 12:00:00 UTC"),
        ("/etc/passwd", "2026-07-01 12:00:00 UTC"),
    ],
)
def test_a_moment_has_its_offset(zone: str, text: str) -> None:
    assert told(NOON, zone) == text
    assert in_zone(NOON, zone) == NOON
