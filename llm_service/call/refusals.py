"""The errors with which governance refuses a call: each says what happened, to whom, what is left, and what to do. Pure."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from llm_service.errors import (
    BudgetBusy,
    BudgetCrowded,
    BudgetExhausted,
    BudgetLocked,
    BudgetPaced,
    BudgetTooSmall,
    BudgetUnusable,
    EnvelopeClosed,
    ModelNotAllowed,
    NearLimit,
    NotAuthenticated,
    Paused,
    RunBudgetSpent,
    TreasurerError,
)
from llm_service.money import format_decimal, format_dollars, format_percent, share_of
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.treasury.zones import in_zone, told
from llm_service.types import Budget, Principal, WindowKind

_PERIOD = {kind: f"a {kind.value}" for kind in WindowKind} | {WindowKind.TOTAL: "in total", WindowKind.HOUR: "an hour"}


#: In basis points. If less than this share of a budget's limit is left, the refusal calls the budget used up; otherwise
#: it says that the call does not fit.
_USED_UP = 500
#: The longest wait that callers are asked for. Some libraries sleep for as long as Retry-After says, however long that
#: is.
_RETRY_WITHIN_S = 60.0


def check_live(principal: Principal, now: float) -> None:
    """Refuse a key that has expired by `now`, in seconds of this process's monotonic clock.

    Raises:
        NotAuthenticated: the key has expired, perhaps while its call was waiting.
    """
    if principal.ends_at is not None and now >= principal.ends_at:
        raise NotAuthenticated.key_expired(principal.key, f"agent {principal.agent!r}", principal.expires_at)


def check_allowed(principal: Principal, model: str, now: float) -> None:
    """Refuse a call for reasons that have nothing to do with a budget. `now` as in `check_live`.

    Raises:
        NotAuthenticated: the key has expired. Paused: the agent, its team or its organisation is.
        ModelNotAllowed: the model is not in the key's list.
    """
    check_live(principal, now)
    check_spends(principal)
    if not principal.may_use(model):
        raise ModelNotAllowed(
            f"Key {principal.key!r} of agent {principal.agent!r} may not use {model!r}. It may use: {', '.join(principal.models)}.",
            param="model",
            details={"agent": principal.agent, "models": list(principal.models)},
        )


def check_spends(principal: Principal) -> None:
    """Refuse a principal that is paused. Raises `Paused`."""
    if principal.paused is not None:
        raise Paused(
            f"Agent {principal.agent!r} may not spend: {principal.paused} is paused. An administrator resumes it with "
            f"`treasurer resume {principal.paused}`.",
            details={"agent": principal.agent, "paused": principal.paused},
        )


def refusal(
    principal: Principal, denial: Denial, needed_nano: int, now: datetime, *, asker: str = "call"
) -> TreasurerError:
    """The error for a call that a budget has no room for. `needed_nano` is the least that the call needs.

    `asker`: "run" if a run asks for its reserve, instead of a call for its hold.
    """
    if denial.envelope is not None:
        return _of_run(principal, denial, denial.envelope, needed_nano)
    budget = next((budget for budget in principal.budgets if budget.id == denial.budget_id), None)
    name = budget.name if budget is not None else str(denial.budget_id)
    zone = budget.time_zone if budget is not None else "UTC"
    if denial.kind in (DenialKind.LOCKED, DenialKind.CROWDED, DenialKind.NO_WINDOW):
        return _without_a_window(principal, denial, budget, name, now)
    details: dict[str, object] = {
        "agent": principal.agent,
        "budget": name,
        "window": budget.window.value if budget is not None else None,
        "subject": denial.subject or None,
        "limit": format_decimal(denial.limit_nano),
        "spent": format_decimal(denial.posted_nano),
        "held": format_decimal(denial.pending_nano),
        "left": format_decimal(denial.left_nano),
        "needed": format_decimal(needed_nano),
        "resets_at": in_zone(denial.resets_at, zone).isoformat() if denial.resets_at is not None else None,
    }
    if denial.most_per_call is not None:
        details["most_per_call"] = format_percent(denial.most_per_call)
    what = f"budget {name!r} ({_describe(budget, denial)})"
    if denial.final:
        return _final(principal, denial, what, needed_nano, now, zone, details, asker)
    if denial.kind is DenialKind.NEAR_LIMIT:
        return NearLimit(
            f"This model is served to agent {principal.agent!r} only up to a share of {what}, and no cheaper one could "
            f"serve this {asker}: {format_dollars(denial.posted_nano)} is spent, {format_dollars(denial.pending_nano)} is "
            f"held, {format_dollars(denial.left_nano)} is left. {_resets(denial, zone)}Ask for a cheaper model, or have an "
            "administrator change the route (treasurer route list).",
            details=details,
        )
    if denial.kind is DenialKind.PACED and denial.resumes_at is not None:
        wait_s = max(0.0, (denial.resumes_at - now).total_seconds())
        error = BudgetPaced(
            f"Agent {principal.agent!r} is ahead of the pace of {what}: {format_dollars(denial.posted_nano)} is spent, and "
            f"this {asker}, which needs at least {format_dollars(needed_nano)}, is let through from "
            f"{told(denial.resumes_at, zone)}.",
            retry_after=min(max(wait_s, 1.0), 3600.0),
            details=details | {"resumes_at": in_zone(denial.resumes_at, zone).isoformat()},
        )
        error.should_retry = wait_s <= 60
        return error
    until_reset = (denial.resets_at - now).total_seconds() if denial.resets_at is not None else 2.0
    return BudgetBusy(
        f"Calls in flight hold what is left of {what} for agent {principal.agent!r}: {format_dollars(denial.posted_nano)} "
        f"is spent, {format_dollars(denial.pending_nano)} is held, {format_dollars(denial.left_nano)} is free"
        f"{_of_which(denial, denial.left_nano)}, and this {asker} needs at least {format_dollars(needed_nano)}. Try again "
        "when they have settled.",
        retry_after=max(1.0, min(2.0, until_reset)),
        details=details,
    )


def _of_run(principal: Principal, denial: Denial, run: UUID, needed_nano: int) -> TreasurerError:
    """The error for a call that is refused because of its run, and not because of a budget of its principal."""
    details: dict[str, object] = {"agent": principal.agent, "run": str(run)}
    if denial.kind is DenialKind.ENVELOPE_CLOSED:
        return EnvelopeClosed(
            f"Run {run} of agent {principal.agent!r} may not spend: it is over, it waits, or its envelope has expired. "
            "Nothing was spent. Resume it if it waits, or start another run.",
            details=details,
        )
    if denial.kind is DenialKind.LOCKED:
        return BudgetLocked(
            f"Run {run} of agent {principal.agent!r} is locked by another transaction in the treasury's database (an open "
            "session? see pg_stat_activity). Nothing was spent. Try again in a moment.",
            retry_after=1,
            details=details,
        )
    details |= {
        "budget": format_decimal(denial.limit_nano),
        "spent": format_decimal(denial.posted_nano),
        "held": format_decimal(denial.pending_nano),
        "left": format_decimal(denial.left_nano),
        "needed": format_decimal(needed_nano),
    }
    figures = (
        f"of {format_dollars(denial.limit_nano)}, {format_dollars(denial.posted_nano)} is spent or given to child runs, "
        f"{format_dollars(denial.pending_nano)} is held by calls in flight, {format_dollars(denial.left_nano)} is left, and "
        f"this call needs at least {format_dollars(needed_nano)}"
    )
    if denial.kind is DenialKind.RUN_BUSY:
        return BudgetBusy(
            f"Other calls of run {run} hold what is left of its budget: {figures}. Try again when they have settled.",
            retry_after=2,
            details=details,
        )
    used_up = denial.unspent_nano < share_of(denial.limit_nano, _USED_UP)
    what = "has used up its budget" if used_up else "has less left of its budget than this call needs"
    return RunBudgetSpent(
        f"Run {run} of agent {principal.agent!r} {what}: {figures}. Ask for less, or have an administrator raise the run's "
        "budget.",
        details=details,
    )


def _final(
    principal: Principal,
    denial: Denial,
    what: str,
    needed_nano: int,
    now: datetime,
    zone: str,
    details: dict[str, object],
    asker: str,
) -> TreasurerError:
    """The error for a call that will not fit even after other calls have ended.

    Waiting for the next window helps if the call would fit in an empty window. The caller is asked to wait for it only
    if it begins soon.
    """
    left_nano = denial.unspent_nano
    figures = (
        f"{format_dollars(denial.posted_nano)} is spent, {format_dollars(left_nano)} is left{_of_which(denial, left_nano)}, "
        f"and this {asker} needs at least {format_dollars(needed_nano)}. {_resets(denial, zone)}"
    )
    until_s = None if denial.resets_at is None else max(1.0, (denial.resets_at - now).total_seconds())
    fits_later = until_s is not None and needed_nano <= denial.for_one_call(denial.limit_nano)
    soon = fits_later and until_s is not None and until_s <= _RETRY_WITHIN_S
    used_up = left_nano < share_of(denial.limit_nano, _USED_UP)
    less = "" if used_up else " (a shorter prompt, fewer or smaller images, a cheaper model)"
    ask = f"Ask for less{less}, or have an administrator raise or top up the budget."
    if soon:
        ask = "Try again then."
    elif until_s is not None and not fits_later:
        ask = f"The {asker} would not fit after that either. {ask}"
    if used_up:
        error: TreasurerError = BudgetExhausted(
            f"Agent {principal.agent!r} has used up {what}: {figures}{ask}", details=details
        )
    else:
        error = BudgetTooSmall(
            f"This {asker} of agent {principal.agent!r} does not fit in what is left of {what}: {figures}{ask}",
            details=details,
        )
    if soon:
        error.retry_after, error.should_retry = until_s, True
    return error


def _of_which(denial: Denial, left_nano: int) -> str:
    if denial.most_per_call is None:
        return ""
    return (
        f" (of which one call may hold {format_percent(denial.most_per_call)}: "
        f"{format_dollars(denial.for_one_call(left_nano))})"
    )


def _without_a_window(
    principal: Principal, denial: Denial, budget: Budget | None, name: str, now: datetime
) -> TreasurerError:
    """The error for a call whose budget could not be checked, so that nobody knows how much is left."""
    details = {"agent": principal.agent, "budget": name, "subject": denial.subject or None}
    if denial.kind is DenialKind.LOCKED:
        return BudgetLocked(
            f"Budget {name!r} of agent {principal.agent!r} is locked by another transaction in the treasury's database "
            "(an open session? see pg_stat_activity). Nothing was spent. Try again in a moment.",
            retry_after=1,
            details=details,
        )
    if denial.kind is DenialKind.CROWDED:
        dimension = budget.per.value if budget is not None and budget.per is not None else "subject"
        return BudgetCrowded(
            f"Budget {name!r} of agent {principal.agent!r} is kept for each {dimension}, and has met as many new ones in "
            f"this minute as it takes; {denial.subject!r} would be one more. Nothing was spent. Try again in the next "
            "minute.",
            retry_after=60 - now.second,
            details=details,
        )
    return BudgetUnusable(
        f"Budget {name!r} of agent {principal.agent!r} has no window for this moment: it was changed or deleted by hand. "
        "Nothing was spent. An administrator finds it with `treasurer audit`, and archives it or puts it right.",
        retry_after=60,
        details=details,
    )


def _describe(budget: Budget | None, denial: Denial) -> str:
    limit = format_dollars(denial.limit_nano)
    if budget is None:
        return limit
    split = f", for {budget.per.value} {denial.subject or '(none)'!r}" if budget.per is not None else ""
    return f"{limit} {_PERIOD[budget.window]}{split}"


def _resets(denial: Denial, zone: str) -> str:
    if denial.resets_at is None:
        return "It does not reset. "
    return f"It resets at {told(denial.resets_at, zone)}. "
