"""From a failed attempt to the next one, or to the end of the chain.

What must hold: every walk along a chain ends (`routing.next_after`). If a stand-in is refused (it cannot take the
request, or has no budget for it), the final error still names the failure of the model that was asked for, and lists
the refusal among the attempts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from llm_service.call import routing
from llm_service.call.admission import Admission
from llm_service.call.attempt import Admitted, Attempt
from llm_service.errors import TreasurerError, UpstreamError, UpstreamTimeout
from llm_service.guards.breaker_gate import BreakerGate
from llm_service.types import Condition

log = logging.getLogger(__name__)

#: `(attempt, reason, model)`: the attempt failed for this reason, and the call goes on with this model.
FellBack = Callable[[Attempt, str, str], None]


class Failover:
    """Walks along the chains of calls."""

    def __init__(self, admission: Admission, breakers: BreakerGate, fell_back: FellBack) -> None:
        self._admission = admission
        self._breakers = breakers
        self._fell_back = fell_back

    def following(self, attempt: Attempt, error: TreasurerError) -> Attempt | None:
        """The next attempt after this error; None if there is none."""
        call = attempt.call
        call.tried.append((attempt.candidate.model, error))
        reason = routing.condition_of(error)
        place = None if reason is None else self._next_place(attempt, reason, error.status)
        before = routing.condition_of(call.failures[-1][1]) if call.failures else None
        own = reason is None or (reason is Condition.NEAR_LIMIT and before is not Condition.NEAR_LIMIT)
        if place is None and before is not None and own:
            # A stand-in that cannot take this request, or has no budget for it, is skipped.
            reason, place = before, self._next_place(attempt, before, error.status, again=False)
        else:
            call.failures.append((attempt.candidate.model, error))
        if reason is None or place is None:
            return None
        following = attempt.following(place)
        log.info(
            "call %s goes on with %s after %s", call.call_id, following.candidate.model, error.code,
            extra={"agent": call.principal.agent, "model": attempt.candidate.model, "reason": reason.value},
        )  # fmt: skip
        self._fell_back(attempt, reason.value, following.candidate.model)
        return following

    def stands_in(self, admitted: Admitted, filtered: bool) -> bool:
        """Whether a content filter withheld the whole answer (`filtered`), and another model may stand in."""
        request = admitted.call.request
        alone = not request.stream or request.choices == 1
        return filtered and alone and self._next_place(admitted.attempt, Condition.CONTENT_FILTER, 400) is not None

    def _next_place(self, attempt: Attempt, reason: Condition, status: int, *, again: bool = True) -> int | None:
        call = attempt.call
        if len(call.chain) == 1 and not call.route.retries:
            return None
        progress = routing.Progress(
            attempt.number + 1 - call.repriced, call.elapsed_s, sum(call.spent_nano.values()), attempt.tries_here
        )
        models = self._admission.models
        here = models.get(attempt.candidate.model)

        def blocked(name: str) -> bool:
            return self._breakers.blocked(models[name]) is not None

        return routing.next_after(
            call.chain,
            attempt.place,
            reason,
            call.route,
            progress,
            blocked,
            not again or (here is not None and here.retried_upstream(status) and not call.route.errors_are_billed),
        )


def final_error(attempt: Attempt, last: TreasurerError) -> TreasurerError:
    """The error of a call whose chain has ended: its last failure. The refusal of a stand-in is not such a failure."""
    call = attempt.call
    if not call.failures or attempt.number == 0:
        return last
    error = call.failures[-1][1]
    error.details = error.details | {
        "attempts": [{"model": model, "status": failed.status, "code": failed.code} for model, failed in call.tried]
    }
    return error


def late_error(admitted: Admitted, what: str, waited_s: float | None) -> UpstreamTimeout:
    """The error of an attempt that is given up because it did not give `what` in time. The breakers count it."""
    admitted.attempt.late = True
    admitted.breaker_permit.failed()
    goes_on = not admitted.call.request.stream or admitted.drain_on_disconnect
    return UpstreamTimeout(
        f"{admitted.model.name!r} did not give {what} within {waited_s:g} s. "
        + ("It still runs to its end, and what that costs" if goes_on else "It was given up, and what it cost")
        + " is posted.",
        details={"model": admitted.model.name, "timeout_s": waited_s},
    )


def withheld_error(admitted: Admitted) -> UpstreamError:
    """The error of an attempt whose whole answer a content filter withheld."""
    error = UpstreamError(
        f"The content filter of {admitted.model.name!r} withheld its answer.", status=400, code="content_filter"
    )
    error.reason = Condition.CONTENT_FILTER
    return error
