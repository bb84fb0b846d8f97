"""`treasurer reprice`: its refusals and its output. tests/integration tests its corrections."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode
from gateway.cli.reprice import print_result
from llm_service.administration.repricings import AgentCorrection, KeptAttempts, RepricingResult, WindowOver

Treasurer = Callable[..., Result]
NOON = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
FOUND = RepricingResult(
    id=None, applied=False, model="gpt-4o", since=None, until=NOON, attempts=3, confirmed=1, posted_nano=4_500_000_000,
    right_nano=6_000_000_000, difference_nano=1_500_000_000, attempts_above_hold=2, above_hold_nano=70,
    agents=[AgentCorrection(agent="news", attempts=3, posted_nano=4_500_000_000, right_nano=6_000_000_000, difference_nano=1_500_000_000)],
    kept=[KeptAttempts(why="the usage was estimated", attempts=5, posted_nano=250_000_000)],
    windows_over=[WindowOver(budget="b", subject="ann", starts="2026-11-30", over_nano=90)],
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gpt", "--apply"), "add a note"),
        (("gpt", "--note", " "), "note: a note is"),
        (("gpt", "--since", "soon"), "since: "),
        (("", "--until", "1d"), "model: "),
    ],
)
def test_mistakes(administer: Treasurer, arguments: tuple[str, ...], says: str) -> None:
    wrong = administer("reprice", *arguments)
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert says in wrong.stderr


def test_a_dry_run_says_what_would_change_and_what_would_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(FOUND)
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "gpt-4o, calls that began from the beginning until 2026-11-30 12:00:00 UTC",
        "news 3 $4.50 $6.00 $1.50 total 3 $4.50 $6.00 $1.50",
        "two price lists differ: 1 of these attempts",
        "Not changed: 5 attempts ($0.25): the usage was estimated.",
        "Overshoot: 2 attempts cost more than was held for them, by $0.00000007 in all.",
        "Overshoot: budget 'b' for 'ann', window from 2026-11-30, is $0.00000009 above its limit.",
        "Nothing was changed. To write this, add --apply and --note '…'.",
    ):
        assert words in shown


def test_what_was_written_names_its_repricing(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(FOUND.model_copy(update={"applied": True, "id": 7}))
    assert "Corrected, as repricing 7." in capsys.readouterr().out
    print_result(FOUND.model_copy(update={"attempts": 0, "agents": []}))
    assert "There is nothing to correct." in capsys.readouterr().out
