"""The frozen values that a governed call is made of. Pure data: no I/O, no clock, no defaults from settings.

Vocabulary (one word per thing): a *principal* is who is spending; a *hold* is money set aside for
one attempt of one call, *pending* and then *posted*, *voided* or *expired*; a *window* is one
period of one budget; a *grant* is the signed permission for one upstream request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from uuid import UUID


class WindowKind(StrEnum):
    """The period after which a budget starts again. Calendar periods, in the budget's time zone."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class Scope(StrEnum):
    """What a budget, limit or pause is attached to."""

    ORGANISATION = "organisation"
    TEAM = "team"
    AGENT = "agent"
    KEY = "key"
    MODEL = "model"  # rate limits only: every caller of a model together


class Dimension(StrEnum):
    """A budget may be split, or narrowed, by one of these properties of a call."""

    RUN = "run"
    USER = "user"
    SESSION = "session"
    TAG = "tag"


class LedgerState(StrEnum):
    """How an attempt ended. The first three are terminal and exclude each other; `adjusted` corrects later."""

    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"
    ADJUSTED = "adjusted"


class UsageSource(StrEnum):
    """Where the figures of a ledger entry come from, most trusted first."""

    PROVIDER = "provider"
    WITNESS = "witness"
    ESTIMATED = "estimated"
    HOLD = "hold"
    NONE = "none"


class ExpiryPolicy(StrEnum):
    """What the sweeper does with an expired hold that has no witness."""

    POST = "post"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget's definition as far as choosing which budgets apply to a call needs it.

    `per` with `per_value=None` gives each value of the dimension a window of its own (a limit per
    run, per user …); with a `per_value` only the calls that carry exactly that value count.
    The limit itself is not here: it is read where it is enforced, in Postgres.
    """

    id: int
    name: str
    scope: Scope
    scope_id: int
    window: WindowKind
    per: Dimension | None = None
    per_value: str | None = None
    model_pattern: str | None = None

    def subjects(self, model: str, context: CallContext) -> tuple[str, ...]:
        """The window subjects that a call falls into: none when the budget does not apply to it.

        A budget for each run, user or session takes calls that name none together, in the
        subject `""`: leaving a header out is no way around a limit.
        """
        if self.model_pattern is not None and not fnmatchcase(model, self.model_pattern):
            return ()
        if self.per is None:
            return ("",)
        values = context.values(self.per)
        if self.per_value is not None:
            return (self.per_value,) if self.per_value in values else ()
        return values or ("",)


class Condition(StrEnum):
    """Why a chain goes on from one model to the next."""

    ERROR = "error"  # the provider or the proxy failed: 5xx, a broken connection, an unreadable answer
    TIMEOUT = "timeout"
    RATE_LIMIT = "rate_limit"  # the provider's 429
    BREAKER_OPEN = "breaker_open"
    CONTEXT_TOO_LONG = "context_too_long"
    CONTENT_FILTER = "content_filter"
    NEAR_LIMIT = "near_limit"  # a budget's share for this model is used up, or all of it


class OnLeave(StrEnum):
    """What becomes of a stream whose caller has left.

    `CANCEL` gives it up: the provider stops, and what was got is paid for, which only an estimate tells. Where a
    provider goes on and bills all the same it is read to its end even so. `FINISH` always does: dearer, and exact.
    """

    CANCEL = "cancel"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model that may stand in for another, and after what."""

    model: str
    on: frozenset[Condition] = frozenset(Condition) - {Condition.NEAR_LIMIT, Condition.CONTENT_FILTER}


@dataclass(frozen=True, slots=True)
class Downgrade:
    """From `at_share` (basis points of a budget's limit, 1 to 10,000) the first of `models` that is good enough serves.

    Good enough: its `treasurer_quality` in config/litellm.yaml is at least `min_quality` (0 to 100).
    """

    at_share: int
    models: tuple[str, ...]
    min_quality: int = 0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. None: the service's own setting. `total_s` is of one attempt, to its end, and never above the service's."""

    connect_s: float | None = None
    first_token_s: float | None = None
    silence_s: float | None = None
    total_s: float | None = None


#: The service's own settings.
NO_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class Route:
    """How calls for the models that fit `model_pattern` are served: the chain, its bounds and its patience.

    `retries` are more attempts at the same model; `max_attempts` counts all of a call's. No attempt begins
    `max_elapsed_s` seconds after the call came in, nor where its hold and what the earlier ones cost, or may
    have, pass `max_cost_nano`. `queue_s` is how long a call may wait for held money, for its budget's
    pace or for a rate limit; None: for held money as long as the service's setting says, else not at all.
    `errors_are_billed`: the provider may bill what it answers with an error of its own (5xx): the whole hold is posted.
    """

    id: int = 0
    model_pattern: str = "*"
    fallbacks: tuple[Fallback, ...] = ()
    retries: int = 0
    max_attempts: int = 4
    max_elapsed_s: float = 60.0
    max_cost_nano: int | None = None
    downgrade: Downgrade | None = None
    timeouts: Timeouts = NO_TIMEOUTS
    queue_s: float | None = None
    on_leave: OnLeave = OnLeave.CANCEL
    errors_are_billed: bool = False


#: One attempt at the model that was asked for.
NO_ROUTE = Route(max_attempts=1)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Pace, not money: how often, how many tokens, how many at once. `None` is no limit.

    `subject` names the bucket in Redis (`"agent:7"`); `model_pattern` narrows which calls count.
    `name` is what people call the subject (`"agent researcher"`), for messages; empty: the subject.
    """

    id: int
    scope: Scope
    subject: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    model_pattern: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is spending: organisation → team → agent → key, with what governs them at one epoch.

    `paused` names the scope that is paused ("team research"), if any. `models` are the patterns
    of models that the key may use; empty means all. `epoch` is the version of the configuration
    this was read at: admission refuses a principal of an older epoch, so it is read again.
    `ends_at` is when its key expires, in seconds of this process's monotonic clock; None: never.
    """

    organisation_id: int
    organisation: str
    team_id: int
    team: str
    agent_id: int
    agent: str
    key_id: int | None
    key: str | None
    epoch: int
    models: tuple[str, ...] = ()
    paused: str | None = None
    expires_at: datetime | None = None
    ends_at: float | None = None
    default_max_tokens: int = 4096
    floor_tokens: int = 16
    budgets: tuple[Budget, ...] = ()
    limits: tuple[RateLimit, ...] = ()
    routes: tuple[Route, ...] = ()  # the agent's, its team's, its organisation's: the first that fits counts

    def route(self, model: str) -> Route:
        """How calls for this model are served."""
        return next((route for route in self.routes if fnmatchcase(model, route.model_pattern)), NO_ROUTE)

    def may_use(self, model: str) -> bool:
        """Whether the key's list of models allows this one (shell-style patterns, `*` and `?`)."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class CallContext:
    """What the caller says about a call: attribution that budgets, reports, metrics and traces carry."""

    run: str | None = None
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    idempotency_key: str | None = None

    def values(self, dimension: Dimension) -> tuple[str, ...]:
        """The values of a dimension on this call: none, one, or for tags any number."""
        if dimension is Dimension.TAG:
            return tuple(dict.fromkeys(self.tags))  # a tag named twice is one: a window takes a call once
        value = {Dimension.RUN: self.run, Dimension.USER: self.user, Dimension.SESSION: self.session}[dimension]
        return () if value is None else (value,)


#: A call about which its caller says nothing.
NO_CONTEXT = CallContext()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt, as a provider reports them.

    `input_tokens` includes `cached_tokens` and `cache_write_tokens`; `output_tokens` includes
    `reasoning_tokens` (OpenAI's convention; LiteLLM translates the others to it).
    `cache_write_1h_tokens` are the part of the cache writes that are kept for an hour (Anthropic).
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_tokens: int = 0


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """One attempt's request for money. Nano-dollars; `floor_nano` is the least that is worth having."""

    call_id: UUID
    attempt: int
    principal: Principal
    context: CallContext
    model: str
    amount_nano: int
    floor_nano: int
    lifetime_s: float
    lines: tuple[tuple[int, str], ...]  # (budget id, window subject): every window that must have room
    requested_model: str | None = None  # what the caller asked for, where another model serves
    max_share: int = 10_000  # basis points of each limit that may be used for this model; less: near its limit
    rate_card_id: int | None = None  # the rates that the amount is a bound by, and that it is settled at


@dataclass(frozen=True, slots=True)
class Hold:
    """Money set aside, durable. `amount_nano` may be less than was asked for, never less than the floor."""

    call_id: UUID
    attempt: int
    amount_nano: int
    #: The budget with the least left after this hold, and what is left of it; None without budgets.
    tightest_budget_id: int | None
    tightest_left_nano: int | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """How one attempt ended, as the ledger will have it. Nano-dollars and milliseconds."""

    call_id: UUID
    attempt: int
    state: LedgerState
    cost_nano: int
    usage: Usage = field(default_factory=Usage)
    usage_source: UsageSource = UsageSource.NONE
    proxy_cost_nano: int | None = None
    provider: str | None = None
    deployment: str | None = None
    status: int | None = None
    error_code: str | None = None
    latency_ms: int | None = None
    first_token_ms: int | None = None
    service_tier: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer in OpenAI's wire format. `headers` are Treasurer's own, for the caller."""

    status: int
    body: bytes
    headers: dict[str, str]
    call_id: UUID
    cost_nano: int
