"""Refusals because of budgets. A budget that is used up, one that is too small for this call, and a busy one are never
confused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from llm_service.call.refusals import check_allowed, refusal
from llm_service.errors import (
    BudgetBusy,
    BudgetExhausted,
    BudgetLocked,
    BudgetTooSmall,
    EnvelopeClosed,
    ModelNotAllowed,
    NotAuthenticated,
    Paused,
    RunBudgetSpent,
    TreasurerError,
)
from llm_service.money import NANO_PER_DOLLAR as DOLLAR
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.types import Budget, Dimension, Principal, Scope, WindowKind

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAILY = Budget(3, "daily", Scope.AGENT, 7, WindowKind.DAY)
RUNS = Budget(4, "each run", Scope.TEAM, 2, WindowKind.TOTAL, per=Dimension.RUN)


def principal(**fields: object) -> Principal:
    return Principal(1, "acme", 2, "research", 7, "digest", 9, "laptop", 1, budgets=(DAILY, RUNS), **fields)  # pyright: ignore[reportArgumentType]


def denial(*, final: bool, budget_id: int = 3, subject: str = "", resets_at: datetime | None = NOW) -> Denial:
    return Denial(
        DenialKind.EXHAUSTED if final else DenialKind.BUSY,
        budget_id,
        subject,
        1 * DOLLAR,
        DOLLAR * 3 // 4,
        DOLLAR // 5,
        resets_at,
    )


def test_an_agent_that_is_not_paused_and_may_use_the_model_may_go_on() -> None:
    check_allowed(principal(), "gpt-4o", 100.0)
    check_allowed(principal(models=("gpt-*",), ends_at=100.1), "gpt-4o", 100.0)


def test_a_key_that_has_expired() -> None:
    with pytest.raises(NotAuthenticated) as refused:
        check_allowed(principal(paused="team research", ends_at=100.0, expires_at=NOW), "gpt-4o", 100.0)
    error = refused.value
    assert (error.status, error.details) == (401, {"reason": "expired"})
    assert "'laptop' of agent 'digest' expired at 2026-" in error.message


def test_a_pause_is_said_before_anything_else() -> None:
    with pytest.raises(Paused) as refused:
        check_allowed(principal(paused="team research", models=("x",)), "gpt-4o", 100.0)
    assert "team research is paused" in refused.value.message
    assert refused.value.details == {"agent": "digest", "paused": "team research"}


def test_a_model_that_is_not_on_the_keys_list() -> None:
    with pytest.raises(ModelNotAllowed) as refused:
        check_allowed(principal(models=("gpt-4o-mini", "claude-*")), "gpt-4o", 100.0)
    error = refused.value
    assert (error.status, error.param) == (403, "model")
    assert all(part in error.message for part in ("'laptop'", "'digest'", "'gpt-4o'", "gpt-4o-mini, claude-*"))


def final(
    left_nano: int, *, resets_at: datetime | None, budget_id: int = 3, most_per_call: int | None = None
) -> Denial:
    """A denial by a budget of one dollar, of which this much is not spent. A tenth of the rest is held."""
    return Denial(
        DenialKind.EXHAUSTED, budget_id, "", DOLLAR, DOLLAR - left_nano, left_nano // 10, resets_at, None, most_per_call
    )


TOMORROW = datetime(2026, 11, 23, 1, 0, tzinfo=ZoneInfo("Europe/Berlin"))


def test_used_up_is_final_and_says_what_is_left_and_when_it_resets() -> None:
    error = refusal(principal(), final(40_000_000, resets_at=TOMORROW), 300_000_000, NOW)
    assert isinstance(error, BudgetExhausted)
    assert error.headers() == {"x-should-retry": "false"}
    assert error.message == (
        "Agent 'digest' has used up budget 'daily' ($1.00 a day): $0.96 is spent, $0.04 is left, and this call needs at "
        "least $0.30. It resets at 2026-11-23 00:00:00 UTC. Ask for less, or have an administrator raise or top up the "
        "budget."
    )
    assert error.details == {
        "agent": "digest", "budget": "daily", "window": "day", "subject": None, "limit": "1.000000000",
        "spent": "0.960000000", "held": "0.004000000", "left": "0.036000000", "needed": "0.300000000",
        "resets_at": "2026-11-23T00:00:00+00:00",
    }  # fmt: skip


def test_times_are_in_the_budgets_own_zone_with_their_offset() -> None:
    berlins = replace(DAILY, time_zone="Europe/Berlin")
    resets = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)
    whose = replace(principal(), budgets=(berlins,))
    error = refusal(whose, denial(final=True, resets_at=resets), 1, NOW)
    assert "It resets at 2026-11-23 00:00:00+01:00 (Europe/Berlin). " in error.message
    assert error.details["resets_at"] == "2026-11-23T00:00:00+01:00"
    paced = replace(denial(final=False, resets_at=resets), kind=DenialKind.PACED, resumes_at=NOW + timedelta(hours=1))
    error = refusal(whose, paced, 1, NOW)
    assert "is let through from 2026-11-22 14:00:00+01:00 (Europe/Berlin)." in error.message
    assert error.details["resumes_at"] == "2026-11-22T14:00:00+01:00"


def test_a_call_that_is_too_large_for_what_is_left_is_not_told_that_the_budget_is_used_up() -> None:
    """An image needs a hold of four dollars, and the budget is one dollar, of which 99.6 % is unspent."""
    error = refusal(principal(), final(996_000_000, resets_at=TOMORROW), 4 * DOLLAR, NOW)
    assert isinstance(error, BudgetTooSmall)
    assert (error.status, error.code) == (429, "budget_too_small_for_call")
    assert error.headers() == {"x-should-retry": "false"}
    assert error.message == (
        "This call of agent 'digest' does not fit in what is left of budget 'daily' ($1.00 a day): $0.004 is spent, "
        "$0.996 is left, and this call needs at least $4.00. It resets at 2026-11-23 00:00:00 UTC. The call would not fit "
        "after that either. Ask for less (a shorter prompt, fewer or smaller images, a cheaper model), or have an "
        "administrator raise or top up the budget."
    )
    assert (error.details["left"], error.details["needed"]) == ("0.896400000", "4.000000000")


@pytest.mark.parametrize(
    ("left_nano", "kind"), [(DOLLAR // 20, BudgetTooSmall), (DOLLAR // 20 - 1, BudgetExhausted), (0, BudgetExhausted)]
)
def test_a_budget_is_used_up_when_less_than_a_twentieth_is_left(left_nano: int, kind: type) -> None:
    assert type(refusal(principal(), final(left_nano, resets_at=None), DOLLAR, NOW)) is kind


@pytest.mark.parametrize("left_nano", [0, DOLLAR // 2])
@pytest.mark.parametrize(
    ("wait_s", "needed_nano", "retry_after"),
    [(42, DOLLAR, 42), (0, DOLLAR, 1), (60, DOLLAR, 60), (61, DOLLAR, None), (42, DOLLAR + 1, None)],
)
def test_only_a_window_that_ends_soon_is_worth_waiting_for(
    left_nano: int, wait_s: int, needed_nano: int, retry_after: int | None
) -> None:
    error = refusal(principal(), final(left_nano, resets_at=NOW + timedelta(seconds=wait_s)), needed_nano, NOW)
    assert error.retry_after == retry_after
    assert error.should_retry is (retry_after is not None)
    assert error.message.endswith("UTC. Try again then.") is (retry_after is not None)


def test_a_total_says_what_to_do_instead_of_waiting() -> None:
    error = refusal(principal(), final(DOLLAR // 2, resets_at=None, budget_id=4), DOLLAR, NOW)
    assert (error.retry_after, error.should_retry) == (None, False)
    assert "It does not reset. Ask for less" in error.message


def test_a_share_for_one_call_is_named_with_what_it_amounts_to() -> None:
    denied = final(DOLLAR // 2, resets_at=NOW + timedelta(seconds=30), most_per_call=1_250)
    error = refusal(principal(), denied, 125_000_001, NOW)
    assert isinstance(error, BudgetTooSmall)
    assert "$0.50 is left (of which one call may hold 12.5%: $0.0625), and this call needs at least" in error.message
    assert error.details["most_per_call"] == "12.5%"
    assert error.retry_after is None  # one call may hold an eighth of the dollar at most, so waiting does not help
    assert refusal(principal(), denied, 125_000_000, NOW).retry_after == 30
    busy = Denial(DenialKind.BUSY, 3, "", DOLLAR, 0, DOLLAR // 2, None, None, 1_250)
    assert "$0.50 is free (of which one call may hold 12.5%: $0.0625)" in refusal(principal(), busy, 1, NOW).message


def test_busy_says_when_to_try_again() -> None:
    error = refusal(principal(), denial(final=False, resets_at=NOW + timedelta(hours=1)), 100_000_000, NOW)
    assert isinstance(error, BudgetBusy)
    assert error.headers() == {"retry-after": "2", "x-should-retry": "true"}
    for part in ("'daily'", "$0.75 is spent", "$0.20 is held", "$0.05 is free", "at least $0.10"):
        assert part in error.message


@pytest.mark.parametrize(("left_s", "retry_after"), [(-5, 1), (0.2, 1), (1.5, 1.5), (3600, 2)])
def test_a_window_that_ends_sooner_is_waited_for_no_longer(left_s: float, retry_after: float) -> None:
    error = refusal(principal(), denial(final=False, resets_at=NOW + timedelta(seconds=left_s)), 1, NOW)
    assert error.retry_after == retry_after


def test_a_budget_for_each_run_names_the_run_and_that_it_never_resets() -> None:
    named = refusal(principal(), denial(final=True, budget_id=4, subject="r1", resets_at=None), 1, NOW)
    assert "$1.00 in total, for run 'r1'" in named.message
    assert "It does not reset." in named.message
    assert (named.details["subject"], named.details["resets_at"]) == ("r1", None)
    nameless = refusal(principal(), denial(final=True, budget_id=4, resets_at=None), 1, NOW)
    assert "for run '(none)'" in nameless.message


@pytest.mark.parametrize("final", [True, False])
def test_a_budget_that_is_not_the_principals_any_more_is_named_by_its_number(final: bool) -> None:
    error = refusal(principal(), denial(final=final, budget_id=99), 1, NOW)
    assert "budget '99' ($1.00)" in error.message
    assert error.details["window"] is None


def test_spent_above_a_lowered_limit_leaves_nothing() -> None:
    over = Denial(DenialKind.EXHAUSTED, 3, "", DOLLAR, 2 * DOLLAR, 0, None)
    assert over.left_nano == 0
    assert "$0.00 is left" in refusal(principal(), over, 1, NOW).message


RUN = UUID("0191d7a0-4c5e-7c3f-9d0b-5a1f3c2e4d6b")


def of_run(kind: DenialKind, *, spent: int = 0, held: int = 0) -> TreasurerError:
    denied = Denial(kind, 0, "", 1 * DOLLAR, spent, held, None, envelope=RUN)
    return refusal(principal(), denied, DOLLAR // 2, NOW)


def test_i9_a_runs_own_budget_is_named_with_what_is_left() -> None:
    used_up = of_run(DenialKind.RUN_SPENT, spent=DOLLAR * 99 // 100)
    assert isinstance(used_up, RunBudgetSpent)
    assert (used_up.status, used_up.should_retry, used_up.retry_after) == (429, False, None)
    assert f"Run {RUN} of agent 'digest' has used up its budget: of $1.00, $0.99 is spent" in used_up.message
    assert used_up.details["left"] == "0.010000000"
    too_little = of_run(DenialKind.RUN_SPENT, spent=DOLLAR * 3 // 4)
    assert isinstance(too_little, RunBudgetSpent)
    assert "has less left of its budget than this call needs" in too_little.message
    busy = of_run(DenialKind.RUN_BUSY, spent=DOLLAR // 4, held=DOLLAR // 2)
    assert isinstance(busy, BudgetBusy)
    assert (busy.details["held"], busy.details["run"]) == ("0.500000000", str(RUN))


def test_a_run_that_may_not_spend_is_another_error_than_one_that_has_spent() -> None:
    over = of_run(DenialKind.ENVELOPE_CLOSED)
    assert isinstance(over, EnvelopeClosed)
    assert (over.status, over.code, over.should_retry) == (409, "envelope_closed", False)
    locked = of_run(DenialKind.LOCKED)
    assert isinstance(locked, BudgetLocked)
    assert str(RUN) in locked.message
