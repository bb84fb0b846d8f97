"""Translates error answers of LiteLLM Proxy, and broken connections to it, into our errors and facts. Pure: no I/O, no
clock.

What must hold:
  An error counts as unbilled only if it comes from our plugin, from the provider, or from LiteLLM before it asked a
  provider (I1).
  A caller gets the provider's own status, message, code, parameter and Retry-After, and none of LiteLLM's words.
  An error about our grant, or about the operator's key for a provider, never looks like an error about the caller's own
  key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import orjson

from llm_service.errors import (
    PricesChanged,
    ProxyBusy,
    ProxyClock,
    ProxyUnavailable,
    TreasurerError,
    UpstreamError,
    UpstreamTimeout,
)
from llm_service.grants import GRANT_USED, GRANTS_UNAVAILABLE, PRICES_CHANGED
from llm_service.types import Condition
from llm_service.upstream.clocks import difference, disagrees
from llm_service.upstream.litellm_prose import Said, said
from llm_service.upstream.upstream import Billing, Refusal, Unanswered

#: The header that has LiteLLM's id of the deployment that answered.
DEPLOYMENT_HEADER = "x-litellm-model-id"
#: Prefixes of headers that only an answer of LiteLLM Proxy carries. A server between the gateway and the proxy sets
#: none of them.
_PROXY_HEADERS = ("x-treasurer-", "x-litellm-", "llm_provider-")
#: How an error says that a request is too long: OpenAI uses a code, other providers and LiteLLM use words
#: (LiteLLM 1.106: `ContextWindowExceededError`, from litellm_core_utils/exception_mapping_utils.py).
_TOO_LONG = (
    "context_length_exceeded",
    "contextwindowexceedederror",
    "maximum context length",
    "prompt is too long",
    "exceeds the maximum number of tokens",
    "exceed context limit",
    "input is too long",
)
_FILTERED = (
    "content_filter",
    "content_policy_violation",
    "contentpolicyviolationerror",
    "responsibleaipolicyviolation",
    "content management policy",
    "safety system",
)
#: Words with which a provider refuses the operator's key, credit or region.
_KEY_REFUSED = (401, 402, 403)
#: Our code for a reason that a caller could act on, if the provider has none.
_CODES = {Condition.CONTEXT_TOO_LONG: "context_length_exceeded", Condition.CONTENT_FILTER: "content_filter"}
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_UNIX_TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")


# -- no answer


def proxy_away(error: BaseException) -> ProxyUnavailable:
    """The error for a request that was certainly not sent."""
    return ProxyUnavailable(
        "LiteLLM Proxy does not answer, so the request was not sent and nothing was spent. Try again in a moment.",
        retry_after=2,
        details={"part": "proxy", "cause": type(error).__name__},
    )


def unanswered(error: BaseException) -> Unanswered:
    """The facts about a request that may have reached a provider, but whose connection broke or took too long."""
    return Unanswered(_lost(error), _never_begun("The connection to LiteLLM Proxy broke, or took too long."))


def _lost(error: BaseException) -> TreasurerError:
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(
            "The model did not answer in time. What it may have cost stays held until the proxy's record of it is found."
        )
    return UpstreamError(
        "The connection broke before the answer was complete. What it may have cost stays held until the proxy's "
        "record of it is found.",
        details={"cause": type(error).__name__},
    )


def _never_begun(reason: str) -> ProxyUnavailable:
    return ProxyUnavailable(
        f"{reason} LiteLLM Proxy had not begun with the request, so nothing was spent. Try again in a moment.",
        retry_after=2,
        details={"part": "proxy", "cause": "never_used"},
    )


# -- an error answer


def refusal_of(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Refusal:
    """The facts about an error answer, which may come from the provider, LiteLLM, our plugin, or a load balancer.

    `now` in Unix seconds.
    """
    refused = headers.get("x-treasurer-refused")
    error = _error_of_plugin(refused) or upstream_error(status, headers, body, now)
    return Refusal(
        error=error,
        billing=Billing.FREE if certainly_unbilled(status, headers) else Billing.UNKNOWN,
        never_begun=_never_begun(f"A server before LiteLLM Proxy answered with {status}."),
        begun=status < 500 or any(name.lower().startswith(_PROXY_HEADERS) for name in headers),
        by_us=refused is not None,
        provider_failed=min(status, error.status) >= 500 and refused is None,
        answered=refused != GRANT_USED,
        key_refused=refused is None and status in _KEY_REFUSED,
    )


def stream_refusal_of(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Refusal:
    """The facts about an error in place of a stream. LiteLLM names the deployment if it had already begun to stream."""
    refusal = refusal_of(status, headers, body, now)
    return replace(refusal, cut=headers.get(DEPLOYMENT_HEADER)) if refusal.billing is Billing.UNKNOWN else refusal


def certainly_unbilled(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an error answer of the proxy means that nothing can have been billed.

    If our plugin saw the error, a header of the plugin says so. Otherwise LiteLLM's headers show how far the request
    came. If the provider itself refused, its headers are passed on (`llm_provider-…`). If LiteLLM had begun to use an
    answer, the deployment is named as well. LiteLLM's own refusals (bad request, not granted, cooldown) come before
    anything is sent. All other errors are broken connections, time-outs and answers that LiteLLM could not read, which
    a provider may have billed. Seen with LiteLLM 1.106.
    """
    free = headers.get("x-treasurer-free")
    if free is not None:
        return free == "1"
    if "x-treasurer-refused" in headers:  # our plugin refused the request; an earlier one may have used the grant
        return headers["x-treasurer-refused"] != GRANT_USED
    if DEPLOYMENT_HEADER in headers:
        return False
    if status >= 500 or status in (408, 422):
        return status != 422 and any(name.lower().startswith("llm_provider-") for name in headers)
    return True


def upstream_error(
    status: int, headers: Mapping[str, str], body: bytes, now: float
) -> UpstreamError | ProxyUnavailable:
    """An error answer as the error for the caller, with the provider's status, message, code and Retry-After.

    A 401, 402 or 403 of the proxy is about our grant or the operator's key for the provider, so it becomes a 502. Our
    plugin marks a 500 that LiteLLM raised because it could not read the request and so did not send it. That is the
    caller's mistake, so it becomes a 400, and no breaker and no route counts it as a failure of the model.
    """
    if headers.get("x-treasurer-refused") == "clock":
        return _refused_for_time(headers.get("x-treasurer-time", ""), now)
    unreadable = status == 500 and headers.get("x-treasurer-unreadable") == "1"
    if unreadable:
        status = 400
    try:
        content: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = None
    fields: object = cast("dict[str, object]", content).get("error") if isinstance(content, dict) else None
    if unreadable and isinstance(fields, dict):
        fields = cast("dict[str, object]", fields) | {"type": "invalid_request_error", "code": None}
    retry_after: float | None = None
    given = headers.get("Retry-After") or headers.get("llm_provider-retry-after")
    if given is not None and _SECONDS.fullmatch(given):
        retry_after = float(given)
    told = cast("dict[str, object]", fields) if isinstance(fields, dict) else {}
    if "x-treasurer-refused" in headers:
        message = str(told.get("message") or "LiteLLM Proxy refused the request.")
        return _shaped(status, Said(message), told, retry_after)
    error = _error(status, told, retry_after)
    if unreadable:
        error.message = f"This request cannot be translated for the provider of this model ({error.message})."
    return error


def event_error(fields: Mapping[str, object]) -> UpstreamError:
    """The error event of a stream as the error for the caller. The event's code is an HTTP status, if LiteLLM knew one."""
    code = str(fields.get("code") or "")
    status = int(code) if code.isdecimal() and 400 <= int(code[:4]) <= 599 else 502
    return _error(status, fields, None)


def _error_of_plugin(refused: str | None) -> TreasurerError | None:
    """The error for a refusal by our own plugin, chosen by the refusal's code. None: the answer's body decides."""
    if refused == PRICES_CHANGED:
        return PricesChanged(
            "The proxy has other prices than the call was held for, so it was not sent, and nothing was spent.",
            retry_after=1,
        )
    if refused == GRANTS_UNAVAILABLE:
        return ProxyUnavailable(
            "LiteLLM Proxy could not make sure that this call is served once, because its database or its disk does not "
            "answer; so it was not sent, and nothing was spent. Try again in a moment.",
            retry_after=1,
            details={"part": "proxy", "cause": refused},
        )
    if refused == ProxyBusy.code:
        return ProxyBusy(
            "LiteLLM Proxy has as many streams under way as it takes, so this one was not begun and nothing was spent. "
            "Try again in a moment.",
            retry_after=1,
            details={"part": "proxy"},
        )
    return None


def _refused_for_time(proxy_time: str, now: float) -> ProxyUnavailable:
    """The error for a grant that was not valid by the proxy's clock, which showed `proxy_time` when ours showed `now`."""
    ahead_s = float(proxy_time) - now if _UNIX_TIME.fullmatch(proxy_time) else None
    if ahead_s is None or disagrees(ahead_s):
        differs = "and this gateway's differ" if ahead_s is None else f"is {difference(ahead_s)}"
        return ProxyClock(
            f"The clock of LiteLLM Proxy {differs}, so it refuses what this gateway signs. Nothing was sent to a "
            "provider, and nothing was spent. An operator sets both machines' clocks (NTP).",
            retry_after=30,
            details={"part": "proxy", "cause": "clock", "ahead_s": None if ahead_s is None else round(ahead_s)},
        )
    return ProxyUnavailable(
        "LiteLLM Proxy had no worker for this request until its grant had expired, so it was not sent to a provider "
        "and nothing was spent. Try again in a moment.",
        retry_after=5,
        details={"part": "proxy", "cause": "too_busy"},
    )


def _error(status: int, error: Mapping[str, object], retry_after: float | None) -> UpstreamError:
    """An error answer of a provider, or of LiteLLM, as the error for the caller."""
    if status in _KEY_REFUSED:
        return _key_refused(status, retry_after)
    raw = str(error.get("message") or "")
    reason = _reason(status, f"{error.get('code')} {error.get('type')} {raw}")
    words = said(raw)
    if words.code is None and reason is not None:
        words = replace(words, code=_CODES.get(reason))
    result = _shaped(status, words, error, retry_after)
    result.reason = reason
    return result


def _shaped(status: int, words: Said, error: Mapping[str, object], retry_after: float | None) -> UpstreamError:
    code, kind, param = (str(error[name]) if error.get(name) else None for name in ("code", "type", "param"))
    mapped = 502 if status in _KEY_REFUSED else status
    own_code = code if code and not code.isdigit() and code != "None" else None
    result = UpstreamError(
        words.message or "The provider answered with an error.",
        status=mapped,
        code=words.code or own_code or f"upstream_{mapped}",
        param=words.param or (param if param != "None" else None),
        retry_after=retry_after,
    )
    kind = words.type or kind
    if kind and kind != "None" and mapped == status:
        result.type = kind
    return result


def _key_refused(status: int, retry_after: float | None) -> UpstreamError:
    """The error for an answer about the operator's account at the provider. The caller gets no details of it."""
    error = UpstreamError(
        f"The provider of this model refuses this gateway's key, its credit or its region (HTTP {status}). Only an "
        "operator can mend that.",
        status=502,
        code="provider_key_refused",
        retry_after=retry_after,
    )
    error.should_retry = False
    return error


def _reason(status: int, words: str) -> Condition | None:
    """Why a provider refused a request, if the code or the text of its answer shows that."""
    if status >= 500 or status == 429:
        return None
    words = words.lower()
    if any(sign in words for sign in _TOO_LONG):
        return Condition.CONTEXT_TOO_LONG
    return Condition.CONTENT_FILTER if any(sign in words for sign in _FILTERED) else None
