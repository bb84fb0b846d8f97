"""Warnings about another machine's clock: none while it agrees with ours, otherwise by how much it is wrong."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from gateway.routes.health import clock_warnings
from llm_service.upstream.clocks import ahead_by, difference, disagrees

NOW = 1_800_000_000.25


@pytest.mark.parametrize("ahead_s", [-86_400, -3600, -6, 0, 4, 6, 3600])
def test_a_date_is_read_to_the_second(ahead_s: int) -> None:
    seen = ahead_by(formatdate(NOW + ahead_s, usegmt=True), NOW)
    assert seen is not None
    assert abs(seen - ahead_s) <= 0.5
    assert disagrees(seen) is (abs(ahead_s) > 5)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_what_is_no_date_says_nothing(date: str | None) -> None:
    assert ahead_by(date, NOW) is None
    assert not disagrees(None)


def test_a_difference_says_which_clock_is_ahead() -> None:
    assert difference(3600.4) == "3,600 s ahead of this gateway's"
    assert difference(-61) == "61 s behind this gateway's"


@pytest.mark.parametrize(
    ("proxy_s", "database_s", "said"),
    [
        (None, None, []),
        (0.7, -0.3, []),
        (3600, 0, ["LiteLLM Proxy's clock is 3,600 s ahead of this gateway's: it refuses every call."]),
        (-6, 0, ["LiteLLM Proxy's clock is 6 s behind this gateway's: it refuses every call."]),
        (25, 0, ["LiteLLM Proxy's clock is 25 s ahead of this gateway's: it refuses calls that wait in it for over 40 s."]),
        (None, -7200, ["The database's clock is 7,200 s behind this gateway's. By that clock the windows"]),
        (3600, 3600, ["LiteLLM Proxy's clock is 3,600 s ahead", "The database's clock is 3,600 s ahead"]),
    ],
)  # fmt: skip
def test_readiness_names_each_clock_that_is_wrong(
    proxy_s: float | None, database_s: float | None, said: list[str]
) -> None:
    found = clock_warnings(proxy_s, database_s)
    assert len(found) == len(said)
    assert all(text.startswith(begin) for text, begin in zip(found, said, strict=True))
