"""How an attempt ended, as its answer shows, before it is priced. Pure.

What must hold: a report with no output tokens, or with far too few for the answer, is not believed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llm_service.types import LedgerState, Usage, UsageSource
from llm_service.upstream.upstream import UpstreamAnswer
from llm_service.usage import (
    LONGEST_TOKEN,
    dearest_reading,
    named_cost_nano,
    read_usage,
    reported_cost,
    says_too_little,
)
from llm_service.wire.answers import generated_text, json_object
from llm_service.wire.events import EventScanner

#: Most streams send an event for each token. So a report is believed, without a look at the stream's text, if the
#: stream has at most this many bytes for each reported token.
_BYTES_AN_EVENT = 1000


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, before it is priced."""

    state: LedgerState
    status: int
    usage: Usage = field(default_factory=Usage)
    usage_source: UsageSource = UsageSource.NONE
    deployment: str | None = None
    proxy_cost_nano: int | None = None
    service_tier: str | None = None
    error_code: str | None = None
    named_cost_nano: int | None = None  # the call's cost as the provider itself reports it
    least: Usage | None = None  # a report that is not believed; an estimate costs at least as much

    def abandoned(self, error_code: str, status: int) -> Ending:
        """This ending, of an attempt that nobody waited for any more."""
        return replace(self, error_code=error_code, status=status)


def answer_ending(answer: UpstreamAnswer, provider: str | None = None, model: str | None = None) -> Ending:
    """The ending of a whole answer. `provider` is the provider of the deployment that answered, and `model` its name there."""
    content = json_object(answer.body)
    report = content.get("usage")
    usage = read_usage(report, provider, model)
    believable = usage is None or _is_plausible(usage, len(answer.body), LONGEST_TOKEN)
    if usage is not None and not believable:
        believable = not says_too_little(usage.output_tokens, generated_text(answer.body))
    tier: object = content.get("service_tier")
    ending = Ending(
        LedgerState.POSTED,
        200,
        deployment=answer.deployment,
        proxy_cost_nano=answer.reported_cost_nano,
        service_tier=tier if isinstance(tier, str) else None,
    )
    return _reported(ending, report, provider, model, usage if believable else None)


def stream_ending(
    deployment: str | None,
    scanner: EventScanner,
    error_code: str | None,
    status: int,
    provider: str | None = None,
    model: str | None = None,
) -> Ending:
    """The ending of a stream, from its scanned events. `provider` and `model`: as for `answer_ending`."""
    usage = read_usage(scanner.usage, provider, model)
    believable = usage is None or _is_plausible(usage, scanner.size, _BYTES_AN_EVENT)
    if usage is not None and not believable:
        believable = not says_too_little(usage.output_tokens, scanner.text()[0])
    ending = Ending(
        LedgerState.POSTED,
        status,
        deployment=deployment,
        proxy_cost_nano=reported_cost(scanner.usage),
        service_tier=scanner.service_tier,
        error_code=error_code,
    )
    return _reported(ending, scanner.usage, provider, model, usage if believable else None)


def cut_ending(deployment: str | None) -> Ending:
    """The ending of a stream that was cut before its first byte arrived."""
    return Ending(LedgerState.POSTED, 502, deployment=deployment, error_code="upstream_cut")


def _is_plausible(usage: Usage, size: int, most_bytes_a_token: int) -> bool:
    """Whether the reported output can account for `size` bytes. If so, the text need not be read."""
    return usage.output_tokens > 0 and size <= usage.output_tokens * most_bytes_a_token


def _reported(ending: Ending, report: object, provider: str | None, model: str | None, usage: Usage | None) -> Ending:
    """The ending with the provider's report. `usage` is the reported usage, or None if it is not believed.

    A cost in the report counts even if the reported usage is not believed, because the provider will bill that cost.
    """
    named_nano = named_cost_nano(report, provider)
    if usage is None:
        least = dearest_reading(report, provider, model)
        if not named_nano:
            return replace(ending, least=least)
        usage = least or Usage()
    return replace(ending, usage=usage, usage_source=UsageSource.PROVIDER, named_cost_nano=named_nano)
