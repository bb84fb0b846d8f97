"""The frozen values that a governed call is made of. Pure data: no I/O, no clock, no defaults from settings.

Vocabulary (one word per thing): a *principal* is who is spending; a *hold* is money set aside for
one attempt of one call, *pending* and then *posted*, *voided* or *expired*; a *window* is one period of one budget; a
*grant* is the signed permission for one upstream request; an *envelope* is money held for a whole run, on which the
run's calls draw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from uuid import UUID


class WindowKind(StrEnum):
    """The calendar period, in the budget's time zone, after which a budget starts again."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class Scope(StrEnum):
    """The kind of object to which a budget, limit or pause belongs."""

    ORGANISATION = "organisation"
    TEAM = "team"
    AGENT = "agent"
    KEY = "key"
    MODEL = "model"  # for rate limits only: all callers of a model together


class Dimension(StrEnum):
    """A property of a call by which a budget may be split or narrowed."""

    RUN = "run"
    USER = "user"
    SESSION = "session"
    TAG = "tag"


class LedgerState(StrEnum):
    """How an attempt ended. The first three are terminal and exclude each other; `adjusted` is a later correction."""

    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"
    ADJUSTED = "adjusted"


class UsageSource(StrEnum):
    """The source of the usage of a ledger entry, the most trusted first."""

    PROVIDER = "provider"
    WITNESS = "witness"
    ESTIMATED = "estimated"
    HOLD = "hold"
    NONE = "none"


class CostSource(StrEnum):
    """The source of the cost of a ledger entry."""

    PROVIDER = "provider"  # the provider itself reports the amount that it bills
    RATES = "rates"  # our rate card, for the usage that the provider reports
    UPSTREAM = "upstream"  # the figure of the upstream's own price list, which was above that of our rate card
    ESTIMATE = "estimate"  # our rate card, for a usage that was counted
    HOLD = "hold"  # all of the hold, because nothing shows what was bought
    REPRICED = "repriced"  # a later rate card, for the same usage: an operator has corrected a price that was wrong


class ExpiryPolicy(StrEnum):
    """How the sweeper ends an expired hold that has no witness."""

    POST = "post"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Budget:
    """The part of a budget's definition that decides whether it applies to a call.

    `per` with `per_value=None` gives each value of the dimension its own window (a limit per
    run, per user …); with a `per_value` only the calls that carry exactly that value count.
    The limit itself is not here, because it is read where it is enforced, in Postgres.
    """

    id: int
    name: str
    scope: Scope
    scope_id: int
    window: WindowKind
    per: Dimension | None = None
    per_value: str | None = None
    model_pattern: str | None = None
    time_zone: str = "UTC"

    def subjects(self, model: str, context: CallContext) -> tuple[str, ...]:
        """The subjects of the windows in which a call counts; empty if the budget does not apply to the call.

        In a budget for each run, user or session, all calls without one count together, under the subject `""`, so that
        nobody evades a limit by leaving a header out.
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
    NEAR_LIMIT = "near_limit"  # a budget, or this model's share of it, has no room for the call


class OnLeave(StrEnum):
    """What happens to a stream whose caller has left.

    `CANCEL` closes it: the provider stops, and the cost of the part that came is estimated. If the provider would go
    on and bill all of it anyway, the stream is read to its end. `FINISH` always reads it to its end: that costs more,
    but the cost is exact.
    """

    CANCEL = "cancel"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model that may stand in for another, and the failures after which it may."""

    model: str
    on: frozenset[Condition] = frozenset(Condition) - {Condition.NEAR_LIMIT, Condition.CONTENT_FILTER}


@dataclass(frozen=True, slots=True)
class Downgrade:
    """Once `at_share` of a budget's limit is used, the first of `models` that is good enough serves.

    `at_share` is in basis points, 1 to 10,000. A model is good enough if its `treasurer_quality` in config/litellm.yaml
    is at least `min_quality` (0 to 100).
    """

    at_share: int
    models: tuple[str, ...]
    min_quality: int = 0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; None: the service's setting. `total_s` is for one whole attempt, and never exceeds the service's."""

    connect_s: float | None = None
    first_token_s: float | None = None
    silence_s: float | None = None
    total_s: float | None = None


#: All timeouts are the service's own settings.
NO_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class Route:
    """How calls for the models that fit `model_pattern` are served: the chain, its bounds and its waiting times.

    `retries` is the number of further attempts at the same model; `max_attempts` counts all attempts of a call. No
    attempt begins once `max_elapsed_s` seconds have passed since the call came in, or if its hold and the (possible)
    costs of earlier attempts would together be more than `max_cost_nano`. `queue_s` is how long a call may
    wait for held money, for its budget's pace or for a rate limit; None means that it waits for held money as long as
    the service's setting says, and for nothing else. `errors_are_billed` means that the provider may bill a request
    that it answers with an error (5xx). So the whole hold is posted after such an error.
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


#: The route that makes one attempt at the model that was asked for.
NO_ROUTE = Route(max_attempts=1)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit of speed, not of money: requests and tokens a minute, and simultaneous calls. `None` means no limit.

    `subject` names the bucket in Redis (`"agent:7"`); `model_pattern` narrows which calls count.
    `name` is the subject's name in messages (`"agent researcher"`); if it is empty, they use `subject`.
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
    """The one who pays: organisation → team → agent → key, with the budgets, limits and routes of one epoch.

    `paused` names the scope that is paused ("team research"), if any. `models` are the patterns of models that the key
    may use; empty means all. `epoch` is the version of the configuration at which the principal was read. Admission
    refuses a principal of an older epoch, which is then read again.
    `ends_at` is when the key expires, in seconds of this process's monotonic clock; None: never.
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
    routes: tuple[Route, ...] = ()  # in the order agent, team, organisation; the first that fits applies

    def route(self, model: str) -> Route:
        """The route for this model."""
        return next((route for route in self.routes if fnmatchcase(model, route.model_pattern)), NO_ROUTE)

    def may_use(self, model: str) -> bool:
        """Whether the key's list of models allows this one (shell-style patterns, `*` and `?`)."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class CallContext:
    """What the caller says a call belongs to. Budgets, reports, metrics and traces use it."""

    run: str | None = None
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    idempotency_key: str | None = None
    envelope: UUID | None = None  # the run whose money the call spends
    #: For how many seconds the answer is kept for its idempotency key; None: the service's setting.
    keep_answer_s: float | None = None

    def values(self, dimension: Dimension) -> tuple[str, ...]:
        """The values that this call has in a dimension: none, one, or (tags) any number."""
        if dimension is Dimension.TAG:
            return tuple(dict.fromkeys(self.tags))  # each tag counts once, even if it is named twice
        value = {Dimension.RUN: self.run, Dimension.USER: self.user, Dimension.SESSION: self.session}[dimension]
        return () if value is None else (value,)


#: The context of a call whose caller gives none.
NO_CONTEXT = CallContext()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one attempt used, as a provider reports it: tokens, searches, and the conditions under which it was served.

    `input_tokens` includes cached tokens, cache writes, and the tokens of audio, images and video; `output_tokens`
    includes `reasoning_tokens` and the tokens of audio, images and video (OpenAI's convention; LiteLLM translates the
    others to it). `cache_write_1h_tokens` are the part of the cache writes that are kept for an hour (Anthropic), and
    `cached_audio_tokens` the part of the cached tokens that are audio. `citation_tokens` are in neither of the two
    (Perplexity).
    `region` is where the call was served, `speed` how fast, and `search_context` how much of its results a search used
    ("low", "medium" or "high"). They are empty if the provider does not report them.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_1h_tokens: int = 0
    audio_input_tokens: int = 0
    cached_audio_tokens: int = 0
    image_input_tokens: int = 0
    video_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_output_tokens: int = 0
    video_output_tokens: int = 0
    citation_tokens: int = 0
    searches: int = 0
    region: str = ""
    speed: str = ""
    search_context: str = ""


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """The request of an attempt for a hold, in nano-dollars. `floor_nano` is the smallest hold that is of use."""

    call_id: UUID
    attempt: int
    principal: Principal
    context: CallContext
    model: str
    amount_nano: int
    floor_nano: int
    lifetime_s: float
    lines: tuple[tuple[int, str], ...]  # (budget id, window subject): every window that must have room
    requested_model: str | None = None  # the model that the caller asked for, if another one serves the call
    max_share: int = 10_000  # basis points of each limit that this model may use, before it is "near limit"
    #: How much of the rest of each budget this hold may take, in basis points. But the floor is always granted.
    most_of_left: int = 10_000
    rate_card_id: int | None = None  # the rates from which the amount was computed, and at which it is settled
    envelope: UUID | None = None  # the run whose envelope pays; `lines` then also names the windows of the envelope


@dataclass(frozen=True, slots=True)
class Hold:
    """Money that is set aside, on disk. `amount_nano` may be less than was asked for, but not less than the floor."""

    call_id: UUID
    attempt: int
    amount_nano: int
    #: The budget with the least left after this hold, and the amount left in it; None without budgets.
    tightest_budget_id: int | None
    tightest_left_nano: int | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """How one attempt ended, for the ledger. Amounts in nano-dollars, times in milliseconds."""

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
    cost_source: CostSource | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer in OpenAI's wire format. `headers` are Treasurer's own, for the caller."""

    status: int
    body: bytes
    headers: dict[str, str]
    call_id: UUID
    cost_nano: int
