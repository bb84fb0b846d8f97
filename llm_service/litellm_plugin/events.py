"""Translates LiteLLM's events: the witness of an attempt, and whether the attempt can have been billed.

What must hold:
  Usage that the provider reported is distinguished from usage that LiteLLM counted itself (I2).
  A report that cannot be true proves nothing (I2).
  An attempt counts as free only if nothing can have been bought (I1).

Runs inside LiteLLM Proxy, seen with LiteLLM 1.106.
"""
# LiteLLM is in another environment than the type checker's, so its types are unknown here.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import litellm

from llm_service.money import nano_from_reported_dollars
from llm_service.types import Usage
from llm_service.usage import LITELLM_COST, named_cost_nano, read_usage, says_too_little
from llm_service.witness import Outcome, Witness

_log = logging.getLogger("treasurer.litellm_plugin")

#: The entry in the metadata of LiteLLM's key that carries the call id and the attempt of a grant.
CLAIM = "treasurer"
#: Marks a stream whose provider reported no usage. LiteLLM's report is then LiteLLM's own count.
COUNTED = "treasurer_counted"

#: Errors of httpx, aiohttp and the OpenAI SDK: the provider answered with an error status, or was not reached.
_FREE_CAUSES = frozenset(
    {
        "HTTPStatusError",
        "APIStatusError",
        # httpx's ConnectError is not here, because LiteLLM's transport also raises it if an answer breaks off.
        "ConnectTimeout",
        "ClientConnectorError",
        "ClientConnectorDNSError",
        "ClientConnectorCertificateError",
        "ClientConnectorSSLError",
        "ConnectionRefusedError",
    }
)

#: Python's own errors, which LiteLLM raises if it cannot read a chunk. The provider may go on after that chunk.
_UNREADABLE_CHUNK = (ValueError, LookupError, TypeError, AttributeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How one attempt ended, as one of LiteLLM's callbacks reported it."""

    outcome: Outcome
    call: Mapping[str, Any]  # LiteLLM's record of the attempt
    usage: Any = None
    cost: Any = None  # in dollars
    started_at: Any = None
    ended_at: Any = None  # None: it ended just now
    error: Exception | None = None
    unread: bool = False  # whether the provider may have sent more than was read


def witness_of(end: AttemptEnd) -> Witness | None:
    """The witness of an attempt that has ended; None if no grant was involved."""
    call = end.call
    parameters: Mapping[str, Any] = call.get("litellm_params") or {}
    metadata = metadata_of(call) or metadata_of(parameters)
    claim = (metadata.get("user_api_key_metadata") or {}).get(CLAIM)
    if not claim:  # a request for a page such as /model/info, or LiteLLM's own health check
        return None
    information: Mapping[str, Any] = metadata.get("model_info") or call.get("model_info") or {}
    usage, cost = end.usage, end.cost
    counted = end.outcome != "success" or bool(call.get(COUNTED))
    if counted and usage is not None and claim.get("drain_on_disconnect"):
        usage, cost = None, None  # much of the stream may be unseen, so a count of the rest would be too low
    provider, report = _provider(call, parameters), _report(usage)
    used, tier = read_usage(report, provider, str(call.get("model") or "") or None) or Usage(), _service_tier(call)
    if counted:  # no report says how the input was cached or in which tier: use the highest rate and the requested tier
        tier = tier or (call.get("optional_params") or {}).get("service_tier")
        if "cache_control" in repr(call.get("messages")):
            used = replace(used, cache_write_tokens=used.input_tokens, cache_write_1h_tokens=used.input_tokens)
    return Witness(
        call_id=claim["call_id"],
        attempt=int(claim["attempt"]),
        outcome=end.outcome,
        model=str(metadata.get("model_group") or call.get("model") or ""),
        provider=provider,
        deployment=information.get("id"),
        cost_nano=None if cost is None else nano_from_reported_dollars(cost),
        usage=used,
        named_cost_nano=None if counted else named_cost_nano(report, provider),
        service_tier=tier,
        counted=counted,
        unread=end.unread,
        status=_status(end.outcome, end.error),
        error=None if end.error is None else type(end.error).__name__,
        started_at=_utc(end.started_at),
        ended_at=_utc(end.ended_at) or datetime.now(UTC),
    )


def certainly_unbilled(error: BaseException) -> bool:
    """Whether a failed attempt cannot have been billed: the provider answered with an error, or was not reached.

    Any other request may have been served: its connection broke, it took too long, or LiteLLM could not read the answer
    (such as an answer of Anthropic's or Google's without usage). LiteLLM raises the same exceptions for all of these,
    so only the causes of an exception can decide.
    """
    return any(type(cause).__name__ in _FREE_CAUSES for cause in causes(error))


def unreadable(error: BaseException) -> bool:
    """Whether an error that LiteLLM raised before it sent a request was caused by a mistake of the caller.

    LiteLLM reports such an error as a 500. If all of its causes are errors of Python or LiteLLM, LiteLLM could not
    translate the request.
    Errors of the network, of files or of a cloud's credentials have to be mended by the operator.
    """
    return getattr(error, "status_code", None) == 500 and all(
        type(cause).__module__.partition(".")[0] in ("builtins", "json", "litellm", "pydantic_core")
        and not isinstance(cause, OSError | TimeoutError | MemoryError | RecursionError)
        for cause in causes(error)
    )


def ended_by_litellm(error: BaseException) -> bool:
    """Whether LiteLLM itself has ended a stream, so that the provider may have sent more than was read.

    LiteLLM ends a stream when a time-out passes, even if LiteLLM was only busy elsewhere, or when it cannot read a
    chunk. Any other end of a stream (a broken connection, the provider's own error) is seen after everything that was
    sent.
    """
    own = any("Timeout" in type(cause).__name__ or isinstance(cause, _UNREADABLE_CHUNK) for cause in causes(error))
    return own and not certainly_unbilled(error)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, the one that it was raised from, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def grant_name(metadata: Any) -> str:
    """The name of a request's grant, from the metadata of its key."""
    claim: Mapping[str, Any] = (metadata or {}).get(CLAIM) or {}
    return f"{claim.get('call_id')}.{claim.get('attempt')}"


def details_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """LiteLLM's own record of a call under way. The plugin adds its marks to it."""
    return getattr(request.get("litellm_logging_obj"), "model_call_details", {})


def is_own_count(chunk: Any, response: Any) -> bool:
    """Whether a chunk carries usage that no provider reported, because LiteLLM has counted the stream itself.

    Its count may be too low. If the chunk is withheld from the service, the service estimates with a margin instead.
    """
    received = getattr(response, "chunks", None)
    if getattr(chunk, "usage", None) is None or not isinstance(received, list):
        return False
    return all(getattr(each, "usage", None) is None for each in received)


def metadata_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metadata of a request with that of its key, under whichever name LiteLLM has put them; empty if there are none."""
    for name in ("litellm_metadata", "metadata"):
        found = call.get(name)
        if isinstance(found, Mapping) and "user_api_key_metadata" in found:
            return found
    return {}


def _provider(call: Mapping[str, Any], parameters: Mapping[str, Any]) -> str | None:
    named = call.get("custom_llm_provider") or parameters.get("custom_llm_provider")
    if named:
        return str(named)
    provider, slash, _ = str(call.get("model", "")).partition("/")
    return provider if slash else None


def _status(outcome: Outcome, error: Exception | None) -> int | None:
    if outcome == "cancelled":
        return 499
    if error is None:
        return 200
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and 100 <= status <= 599 else None


def _report(usage: Any) -> dict[str, Any]:
    """The fields of LiteLLM's usage. LiteLLM translates every provider's usage to OpenAI's convention, more or less."""
    return {} if usage is None else usage.model_dump()


def usage_of(response: Any) -> Any:
    """The usage of an answer; None if it is too small for the text of the answer, and so cannot be true."""
    usage, choices = getattr(response, "usage", None), getattr(response, "choices", None)
    messages = [getattr(choice, "message", None) for choice in choices] if isinstance(choices, list) else []
    parts = [getattr(message, name, None) for message in messages for name in ("content", "reasoning_content")]
    text = "".join(part for part in parts if isinstance(part, str))
    return None if says_too_little(_tokens(usage, "completion_tokens"), text) else usage


def _service_tier(call: Mapping[str, Any]) -> str | None:
    """The service tier that the provider reported, if LiteLLM has kept it."""
    for source in (
        call.get("complete_streaming_response"),
        call.get("async_complete_streaming_response"),
        call.get("original_response"),
    ):
        tier = getattr(source, "service_tier", None)
        if isinstance(tier, str):
            return tier
    return None


def _tokens(source: Any, name: str) -> int:
    value = getattr(source, name, None)
    return max(0, int(value)) if isinstance(value, int | float) else 0


def reported_its_end(chunks: list[Any]) -> bool:
    """Whether the chunks that LiteLLM has kept contain the provider's end and, with or after it, its report.

    False if the answer has several choices, because LiteLLM does not keep all of their ends.
    """
    choices = {choice.index for chunk in chunks for choice in getattr(chunk, "choices", None) or ()}
    ends = [place for place, chunk in enumerate(chunks) if _finishes(chunk)]
    return (
        len(choices) == 1
        and bool(ends)
        and any(getattr(chunk, "usage", None) is not None for chunk in chunks[ends[-1] :])
    )


def _finishes(chunk: Any) -> bool:
    return any(getattr(choice, "finish_reason", None) for choice in getattr(chunk, "choices", None) or ())


def set_own_figure_apart(chunk: Any, response: Any) -> None:
    """Move LiteLLM's own figure of a stream's cost, which it writes into the provider's report, to a separate field.

    A cost that the provider itself has reported stays in the report, or is put back.
    """
    usage: Any = getattr(chunk, "usage", None)
    figure = getattr(usage, "cost", None)
    if usage is None or figure is None:
        return
    named = [getattr(getattr(kept, "usage", None), "cost", None) for kept in getattr(response, "chunks", None) or ()]
    own = next((cost for cost in reversed(named) if cost is not None), None)
    chunk.usage = usage.model_copy(update={"cost": own, LITELLM_COST: figure})


def rebuilt(call: Any, details: Mapping[str, Any], chunks: list[Any], messages: Any) -> tuple[Any, float | None]:
    """The answer that these chunks of a stream make, with its usage, and its cost in dollars. LiteLLM computes both.

    If no provider reported usage, the usage is LiteLLM's count. None for both: nothing is known.
    """
    if not chunks:
        return None, None
    try:
        built = litellm.stream_chunk_builder(chunks=chunks, messages=messages)
        if built is None:
            return None, None
        built.model = details["model"]  # the chunks carry the caller's name for the model, which has no price
        built._hidden_params.pop("response_cost", None)  # it was computed without the deployment's own prices
        return built, call.response_cost_calculator(result=built)
    except Exception as fault:  # noqa: BLE001  # LiteLLM's counting may fail in any way
        _log.warning("What was seen of a stream that was cut could not be counted: %s", type(fault).__name__)
        return None, None


def _utc(moment: Any) -> datetime | None:
    """A time in UTC. LiteLLM's times are local and without a time zone."""
    return moment.astimezone(UTC) if isinstance(moment, datetime) else None
