"""The error tree. Each error carries the HTTP status, OpenAI's type and code, and when a client should retry.

    TreasurerError
    ├── InvalidRequest            400  the caller's request cannot be served as it stands
    │   ├── UnknownModel          404
    │   ├── UnpricedModel         400  no price: an operator gives one or marks the model free
    │   ├── BodyTooLarge          413
    │   ├── UnsupportedBody       415  a body in another form than JSON in UTF-8, or packed in a way that is not unpacked
    │   ├── RequestTimeout        408  its body did not arrive in time; the connection is closed
    │   ├── TookTooLong           400  a report: ask for a shorter period, or use filters
    │   ├── NotFound              404  an administrative object that does not exist
    │   ├── Conflict              409  it exists already, or is in use
    │   │   └── EnvelopeConflict  409  another run has this id
    │   ├── ApprovalExpired       410  nobody decided the approval in time
    │   ├── EnvelopeClosed        409  the run is over, waits, or is unknown: it may not spend
    │   ├── RunTooDeep            400  the run may not start a child, because it is already at the greatest depth
    │   ├── TooManyChildren       400  the run may not start another child
    │   └── IdempotencyConflict   409  the same key with another body, or the kept answer is gone
    ├── NotAuthenticated          401  missing, unknown, expired or revoked key
    ├── NotPermitted              403
    │   ├── ModelNotAllowed       403
    │   ├── EnvelopeNotYours      403  a call names the run of another agent
    │   └── Paused                403  agent, team or organisation
    ├── Refused                   429  governance refused it; nothing was sent upstream
    │   ├── BudgetExhausted       429  final for this window: x-should-retry false, unless it resets in a minute
    │   ├── BudgetTooSmall        429  money is left, but this call needs more: x-should-retry false, unless it resets in a minute
    │   ├── RunBudgetSpent        429  too little is left of the run's own budget: x-should-retry false
    │   ├── NearLimit             429  the model is served only up to a share of the budget
    │   ├── BudgetPaced           429  the budget's curve lets it through later: Retry-After
    │   ├── BudgetBusy            429  calls in flight hold the rest: Retry-After
    │   ├── BudgetCrowded         429  a split budget met too many new users, runs … in this minute: Retry-After
    │   ├── CostLimited           429  the route's limit for one call: x-should-retry false
    │   ├── TooManyReports        429  the gateway is busy with as many reports and lists as it may make: Retry-After
    │   └── RateLimited           429  pace: Retry-After
    ├── Unavailable               503  a part of Treasurer is away; nothing was spent
    │   ├── TreasuryUnavailable   503  Postgres
    │   │   ├── DatabaseBusy      503  all of this gateway's connections to it are in use
    │   │   └── DatabaseLocked    503  another transaction keeps a lock
    │   ├── BudgetLocked          503  another transaction in Postgres keeps a budget's window: Retry-After
    │   ├── BudgetUnusable        503  a budget has no window for this moment: an operator looks at the audit
    │   ├── ProxyUnavailable      503  LiteLLM Proxy
    │   │   └── ProxyClock        503  its clock and the gateway's differ, so it refuses all grants
    │   ├── ProxyBusy             503  LiteLLM Proxy serves as many streams as it can: Retry-After
    │   ├── PricesChanged         503  the prices changed three times between hold and sending
    │   └── BreakerOpen           503  a model, a provider or the proxy failed too often: Retry-After
    └── UpstreamError             the provider's status, else 502
        └── UpstreamTimeout       504

What must hold: a message says what happened, to whom, and what to do; it never holds a secret or a prompt. An error's
HTTP body depends on the API, so it is made elsewhere (`wire/openai_errors.py`).
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from llm_service.types import Condition


class TreasurerError(Exception):
    """The root. `details` is shown to the caller as `error.treasurer`, for programs."""

    status: int = 500
    type: str = "api_error"
    code: str = "internal_error"
    #: Makes OpenAI's SDKs retry or not, whatever the status. With None they decide.
    should_retry: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.details = details or {}
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    def headers(self) -> dict[str, str]:
        """Retry-After (whole seconds, RFC 9110 §10.2.3) and x-should-retry, where they apply."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


class InvalidRequest(TreasurerError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class UnknownModel(InvalidRequest):
    status = 404
    code = "model_not_found"


class UnpricedModel(InvalidRequest):
    code = "model_not_priced"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class UnsupportedBody(InvalidRequest):
    """The body has a form that is not accepted. `accepts`: the codings that are, for a client that can choose."""

    status = 415
    code = "unsupported_media_type"

    def __init__(self, message: str, *, accepts: str | None = None) -> None:
        super().__init__(message)
        self.accepts = accepts

    def headers(self) -> dict[str, str]:
        """The root's headers, and Accept-Encoding if the coding was the reason (RFC 9110 §12.5.3)."""
        return super().headers() | ({} if self.accepts is None else {"accept-encoding": self.accepts})


class RequestTimeout(InvalidRequest):
    """The request did not arrive in time. The gateway does not wait for the rest."""

    status = 408
    code = "request_timeout"

    def headers(self) -> dict[str, str]:
        """The root's headers, and a header that closes the connection."""
        return super().headers() | {"connection": "close"}


class TookTooLong(InvalidRequest):
    code = "took_too_long"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class Conflict(InvalidRequest):
    status = 409
    code = "conflict"
    should_retry = False  # otherwise the SDKs would retry a 409


class EnvelopeConflict(Conflict):
    """The id of a run was used before, with another budget, reserve, agent or parent."""

    code = "envelope_conflict"


class ApprovalExpired(InvalidRequest):
    """Nobody decided in time. The run has failed, or continues without the tool."""

    status = 410
    code = "approval_expired"


class EnvelopeClosed(InvalidRequest):
    """The run may not spend, because it is over, waits, or is unknown."""

    status = 409
    code = "envelope_closed"
    should_retry = False


class RunTooDeep(InvalidRequest):
    code = "run_too_deep"


class TooManyChildren(InvalidRequest):
    code = "too_many_children"


class IdempotencyConflict(InvalidRequest):
    status = 409
    code = "idempotency_conflict"
    should_retry = False


class NotAuthenticated(TreasurerError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    @classmethod
    def key_expired(cls, key: str | None, whose: str, expires_at: datetime | None) -> NotAuthenticated:
        """The error for a key that has expired; `whose` is "agent 'news'" or "an administrator"."""
        when = f" at {expires_at:%Y-%m-%d %H:%M:%S} UTC" if expires_at is not None else ""
        return cls(
            f"Key {key!r} of {whose} expired{when}. Ask an administrator for a new one.", details={"reason": "expired"}
        )


class NotPermitted(TreasurerError):
    status = 403
    type = "permission_error"
    code = "not_permitted"


class ModelNotAllowed(NotPermitted):
    code = "model_not_allowed"


class EnvelopeNotYours(NotPermitted):
    code = "envelope_not_yours"


class Paused(NotPermitted):
    code = "paused"


class Refused(TreasurerError):
    status = 429
    type = "rate_limit_error"
    code = "refused"


class BudgetExhausted(Refused):
    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry = False


class BudgetTooSmall(Refused):
    """The budget is not used up, but this call needs more than is left, or more than one call may take."""

    type = "insufficient_quota"
    code = "budget_too_small_for_call"
    should_retry = False


class RunBudgetSpent(Refused):
    """Too little is left of the run's own budget. Only the giver of this budget can raise it."""

    type = "insufficient_quota"
    code = "run_budget_spent"
    should_retry = False


class NearLimit(Refused):
    code = "budget_near_limit"
    should_retry = False


class BudgetPaced(Refused):
    code = "budget_paced"
    should_retry = True


class BudgetBusy(Refused):
    code = "budget_busy"
    should_retry = True


class BudgetCrowded(Refused):
    """A budget that is split by user, run, session or tag has met too many new values of it in this minute."""

    code = "budget_crowded"
    should_retry = True


class CostLimited(Refused):
    """The call would cost more than its route's limit for one call, which counts all attempts together."""

    code = "call_cost_limit"
    should_retry = False


class TooManyReports(Refused):
    code = "too_many_reports"
    should_retry = True


class RateLimited(Refused):
    """A rate limit. `extra_headers` are the x-ratelimit headers. `should_retry` is False for calls that can never pass."""

    code = "rate_limit_exceeded"
    should_retry = True

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        details: dict[str, Any] | None = None,
        should_retry: bool = True,
        extra_headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after, details=details)
        self.should_retry = should_retry
        self.extra_headers = extra_headers or {}

    def headers(self) -> dict[str, str]:
        """The root's headers, the x-ratelimit headers, and retry-after-ms, which OpenAI's SDKs read first."""
        headers = super().headers() | self.extra_headers
        if self.retry_after is not None:
            headers["retry-after-ms"] = str(max(1, math.ceil(self.retry_after * 1000)))
        return headers


class Unavailable(TreasurerError):
    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class TreasuryUnavailable(Unavailable):
    code = "treasury_unavailable"


class DatabaseBusy(TreasuryUnavailable):
    code = "database_busy"


class DatabaseLocked(TreasuryUnavailable):
    code = "database_locked"


class BudgetLocked(Unavailable):
    code = "budget_locked"


class BudgetUnusable(Unavailable):
    code = "budget_unusable"


class ProxyUnavailable(Unavailable):
    code = "proxy_unavailable"


class ProxyBusy(Unavailable):
    """The proxy is too busy. Nothing was sent to a provider. Another model would not help: it has the same proxy."""

    code = "proxy_busy"
    should_retry = True


class ProxyClock(ProxyUnavailable):
    code = "proxy_clock"


class PricesChanged(Unavailable):
    code = "prices_changed"


class BreakerOpen(Unavailable):
    code = "breaker_open"


class UpstreamError(TreasurerError):
    status = 502
    type = "upstream_error"
    code = "upstream_error"
    #: Why a provider refused a request, if it gave a reason: the context was too long, or the content was filtered.
    reason: Condition | None = None


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"
