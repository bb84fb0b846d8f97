"""How a call is settled: from what is known of its end to one ledger entry, telemetry, and pace given back.

What must hold (I2): each attempt is settled once. What the provider reports is posted as it is. An
answer whose usage is missing or zero is estimated with a margin, never above what was held. All of the output that was
held for is posted where an estimate would have no upper side (I1): of what a model thought unseen, and of a stream that
was left while the provider had sent more than was read. What may have been served without an answer is left to the
witness.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import orjson

from llm_service.call.attempt import Call, Ending
from llm_service.errors import ProxyUnavailable, TreasurerError, UpstreamError
from llm_service.guards.rate_limiter import RateLimiter
from llm_service.money import nano_from_reported_dollars
from llm_service.pricing.bounds import TextCount, counted_bound
from llm_service.pricing.catalog import Model
from llm_service.telemetry.logs import OwnText
from llm_service.telemetry.record import CallRecord
from llm_service.treasury.sweep import Sweeper
from llm_service.treasury.treasury import Treasury
from llm_service.types import LedgerState, Settlement, Usage, UsageSource
from llm_service.usage import (
    FRAME_TOKENS,
    IN_FLIGHT_TOKENS,
    LONGEST_TOKEN,
    UNREAD,
    read_usage,
    reported_cost,
    says_too_little,
)
from llm_service.wire.events import GENERATED, objects
from llm_service.wire.requests import ParsedRequest

log = logging.getLogger(__name__)

#: How long a cut stream's hold waits for the proxy's record of it before it is estimated, in seconds.
WITNESS_WAIT_S = 5.0
#: Ends of which the proxy has seen more than the service.
_READ_ON = ("client_left", "superseded", "upstream_timeout")
#: The fields of a message that hold a tool's call: today's form, and the older one.
_CALLS = ("tool_calls", "function_call")
#: A stream with less than so many bytes for each token that is reported is not looked at: most have an event for each.
_BYTES_AN_EVENT = 1000


class Settler:
    """Settles calls. `count_tokens` and `count_text` count the tokens of a request's input, and of a text."""

    def __init__(
        self,
        *,
        treasury: Treasury,
        limiter: RateLimiter,
        sweeper: Sweeper,
        count_tokens: Callable[[Model, ParsedRequest], Awaitable[TextCount]],
        count_text: Callable[[Model, str], Awaitable[TextCount]],
        record: Callable[[CallRecord], None],
        lifetime_s: float,
    ) -> None:
        self._treasury = treasury
        self._limiter = limiter
        self._sweeper = sweeper
        self._count_tokens = count_tokens
        self._count_text = count_text
        self._record = record
        self._lifetime_s = lifetime_s

    async def settle(self, call: Call, ending: Ending, answer: Callable[[], object]) -> int | None:
        """Post what a call cost, in nano-dollars. `answer` gives what was generated, where it must be estimated.

        None: nobody can tell yet, and the hold waits for the proxy's witness.
        """
        if ending.usage_source is UsageSource.NONE and ending.state is LedgerState.POSTED:
            told = await self._unreported(call, ending, answer)
            if told is None:
                self.unanswered(call, TreasurerError("the stream was left", code=ending.error_code))
                return None
            ending = told
        if ending.usage_source is UsageSource.ESTIMATED:
            ending = _at_its_dearest(call, ending)
        cost_nano = call.model.cost(ending.deployment, ending.usage, ending.service_tier)
        if ending.usage_source is UsageSource.ESTIMATED:
            cost_nano = min(cost_nano, call.hold.amount_nano)
        self._finish(call, ending, cost_nano)
        return cost_nano

    def void(self, call: Call, error: TreasurerError) -> None:
        """Nothing was bought: the whole hold goes back."""
        self._finish(call, Ending(LedgerState.VOIDED, error.status, error_code=error.code), 0)

    def post_hold(self, call: Call, error: TreasurerError) -> None:
        """It may have been bought, and nobody will ever tell: all that was held is spent."""
        ending = Ending(LedgerState.POSTED, error.status, usage_source=UsageSource.HOLD, error_code=error.code)
        self._finish(call, ending, call.hold.amount_nano)

    def unanswered(self, call: Call, error: TreasurerError, *, answered: bool = False) -> None:
        """It may have been bought. Its hold stays until a witness tells, or until it expires.

        `answered`: the proxy has answered, with an error that does not tell.
        """
        log.warning(
            "call %s may have been served without an answer (%s): looking for its witness", call.call_id, error.code
        )
        self._sweeper.watch(call.call_id, call.attempt, self._lifetime_s, answered=answered)
        self._limiter.release(call.pace, None)

    def _finish(self, call: Call, ending: Ending, cost_nano: int) -> None:
        provider = call.model.deployments.get(ending.deployment or "", call.model.provider)
        latency_ms = call.elapsed_ms()
        self._treasury.settle_soon(
            Settlement(
                call_id=call.call_id,
                attempt=call.attempt,
                state=ending.state,
                cost_nano=cost_nano,
                usage=ending.usage,
                usage_source=ending.usage_source,
                proxy_cost_nano=ending.proxy_cost_nano,
                provider=provider,
                deployment=ending.deployment,
                status=ending.status,
                error_code=ending.error_code,
                latency_ms=latency_ms,
                first_token_ms=call.first_token_ms,
                service_tier=ending.service_tier,
            )
        )
        self._limiter.release(call.pace, ending.usage.input_tokens + ending.usage.output_tokens)
        log.info(
            OwnText(f"call {call.call_id} {ending.state.value}"),
            extra={
                "agent": call.principal.agent,
                "model": call.model.name,
                "cost_nano": cost_nano,
                "status": ending.status,
                "error": ending.error_code,
                "latency_ms": latency_ms,
            },
        )
        self._record(
            CallRecord(
                call_id=call.call_id,
                attempt=call.attempt,
                operation=call.operation,
                stream=call.request.stream,
                principal=call.principal,
                context=call.context,
                requested_model=call.request.model,
                model=call.model.name,
                provider=provider,
                deployment=ending.deployment,
                status=ending.status,
                error_code=ending.error_code,
                state=ending.state,
                held_nano=call.hold.amount_nano,
                cost_nano=cost_nano,
                proxy_cost_nano=ending.proxy_cost_nano,
                usage=ending.usage,
                usage_source=ending.usage_source,
                started_at=call.started_at,
                latency_ms=latency_ms,
                first_token_ms=call.first_token_ms,
                parent=call.parent,
            )
        )

    async def _unreported(self, call: Call, ending: Ending, answer: Callable[[], object]) -> Ending | None:
        """What the provider did not say: from the proxy's witness, for a stream that was given up or cut; else estimated.

        Of a stream that did not end by itself LiteLLM too only counts what it saw, with a tokenizer that need not
        be the provider's: an estimate with its margin, and not below that count. What was left here was read on
        there (litellm_plugin/hooks.py), so without a witness what was seen says too little: None. What was read to its
        end here (a whole answer, a stream that is finished whoever listens) nobody has seen more of.
        """
        found = None
        seen_all = call.finishes or not call.request.stream
        if ending.error_code is not None and not seen_all:
            found = await self._sweeper.witnessed(call.call_id, call.attempt, WITNESS_WAIT_S)
        if found is None:
            left = ending.error_code in _READ_ON and not seen_all
            return None if left else await self._estimated(call, ending, answer())
        ending = replace(
            ending,
            deployment=found.deployment or ending.deployment,
            proxy_cost_nano=found.proxy_cost_nano,
            service_tier=found.service_tier or ending.service_tier,
        )
        if found.error_code == "owner_lost":  # the provider's own report
            return replace(ending, usage=found.usage, usage_source=UsageSource.WITNESS)
        ending = await self._estimated(call, ending, answer(), unread=found.error_code == UNREAD)
        input_tokens = max(ending.usage.input_tokens, found.usage.input_tokens)
        output_tokens = max(ending.usage.output_tokens, found.usage.output_tokens)
        return replace(ending, usage=Usage(input_tokens=input_tokens, output_tokens=output_tokens))

    async def _estimated(self, call: Call, ending: Ending, answer: object, *, unread: bool = False) -> Ending:
        """The provider did not say: count what went in and what came out, with a margin, within the hold.

        `unread`: more had come than was read, so that all may have been generated that was held for.
        """
        text = generated_text(answer) if isinstance(answer, bytes) else cast("tuple[str, int]", answer)[0]
        input_tokens, output_tokens = call.plan.input_tokens, len(text.encode())
        most_output = call.output_tokens * call.request.choices + call.request.extra_output
        try:
            if not call.request.media:
                counted = counted_bound(call.request, await self._count_tokens(call.model, call.request))
                input_tokens = min(input_tokens, counted)
            if text and not call.reasons_unseen:
                count = await self._count_text(call.model, text)
                output_tokens = min(output_tokens, count.bound + FRAME_TOKENS)
        except (ProxyUnavailable, UpstreamError) as error:
            log.warning(
                "call %s is settled by its size in bytes; its tokens could not be counted: %s", call.call_id, error
            )
        if call.reasons_unseen or unread:
            output_tokens = most_output
        elif ending.error_code is not None:
            output_tokens += IN_FLIGHT_TOKENS
        usage = Usage(input_tokens=input_tokens, output_tokens=min(output_tokens, most_output))
        return Ending(
            ending.state, ending.status, usage, UsageSource.ESTIMATED, ending.deployment, ending.proxy_cost_nano,
            ending.service_tier, ending.error_code,
        )  # fmt: skip


def answer_ending(
    call: Call,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    usage: object = None,
    service_tier: str | None = None,
    error_code: str | None = None,
    status: int = 200,
    text: Callable[[], str] = str,
    size: int = 0,
) -> Ending:
    """What an answer says of itself: a whole one by its body and headers, a stream by what was scanned.

    `text` gives what a stream of `size` bytes generated, where that has to be looked at: a report of no output, or of
    far too little, is not believed of an answer that carries more.
    """
    proxy_cost_nano = reported_cost(usage)
    if body is not None:
        content, size = _object(body), len(body)
        usage = content.get("usage")
        tier: object = content.get("service_tier")
        service_tier = tier if isinstance(tier, str) else None
        reported = headers.get("x-litellm-response-cost")
        proxy_cost_nano = _cost(reported)
    known = read_usage(usage)
    if known is not None:
        least = known.output_tokens * (LONGEST_TOKEN if body is not None else _BYTES_AN_EVENT)
        if size > least or not least:
            said = text() if body is None else generated_text(body)
            known = None if says_too_little(known.output_tokens, said) else known  # the answer itself says otherwise
    return Ending(
        LedgerState.POSTED,
        status,
        usage=known or Usage(),
        usage_source=UsageSource.PROVIDER if known is not None else UsageSource.NONE,
        deployment=headers.get("x-litellm-model-id"),
        proxy_cost_nano=proxy_cost_nano,
        service_tier=service_tier,
        error_code=error_code,
    )


def _at_its_dearest(call: Call, ending: Ending) -> Ending:
    """Nobody has said how the input was cached, nor in which tier it was served: as was asked for, and as it costs most."""
    tier = ending.service_tier or call.request.service_tier
    if b'"cache_control"' not in orjson.dumps(call.request.data):  # Anthropic's writes cost more than input
        return replace(ending, service_tier=tier)
    written = ending.usage.input_tokens
    usage = replace(ending.usage, cache_write_tokens=written, cache_write_1h_tokens=written)
    return replace(ending, usage=usage, service_tier=tier)


def is_filtered(body: bytes) -> bool:
    """Whether a provider's content filter withheld every choice of a whole answer."""
    if b'"content_filter"' not in body:
        return False
    choices = list(objects(_object(body).get("choices")))
    return bool(choices) and all(choice.get("finish_reason") == "content_filter" for choice in choices)


def generated_text(body: bytes) -> str:
    """The text that a whole answer carries: contents, refusals, reasoning and tool calls of every choice."""
    parts: list[str] = []
    for choice in objects(_object(body).get("choices")):
        for message in objects([choice.get("message")]):
            parts += [message[name] for name in GENERATED if isinstance(message.get(name), str)]
            parts += [orjson.dumps(message[name]).decode() for name in _CALLS if message.get(name)]
    return "".join(parts)


def _object(body: bytes) -> dict[str, Any]:
    try:
        content: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _cost(reported: str | None) -> int | None:
    if reported is None:
        return None
    try:
        return nano_from_reported_dollars(reported)
    except ArithmeticError:
        return None
