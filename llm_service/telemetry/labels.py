"""Bounds the values of labels: a metric has a series for each combination of them, which takes memory forever.

What must hold: whatever callers send, a label takes at most its limit of distinct values, and every
value can be encoded (a lone surrogate in one label would break every scrape from then on). Further
values are counted under `OTHER`, so that sums stay true.
"""

from __future__ import annotations

from collections.abc import Mapping

OTHER = "other"
UNKNOWN = "unknown"

#: How many distinct values each label has before further values become `OTHER`.
LIMITS: Mapping[str, int] = {
    "organisation": 50,
    "team": 200,
    "agent": 500,
    "model": 200,
    "provider": 50,
    "reason": 50,
    "code": 100,
    "status": 64,
    "part": 32,
}
_DEFAULT_LIMIT = 32
_MAX_LENGTH = 120


def clean(text: str, length: int = _MAX_LENGTH) -> str:
    """The text, cut to `length` characters. Characters that UTF-8 cannot encode are replaced."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class BoundedLabels:
    """Admits the first values of each label up to its limit; returns `OTHER` for later ones."""

    def __init__(self, limits: Mapping[str, int] = LIMITS) -> None:
        self._limits = limits
        self._seen: dict[str, set[str]] = {}

    def __call__(self, label: str, value: str | None) -> str:
        """The value to use for a label; `UNKNOWN` if there is none."""
        if not value:
            return UNKNOWN
        value = clean(value)
        seen = self._seen.setdefault(label, set())
        if value in seen:
            return value
        if len(seen) >= self._limits.get(label, _DEFAULT_LIMIT):
            return OTHER
        seen.add(value)
        return value
