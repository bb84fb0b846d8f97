"""The only module that speaks to LiteLLM Proxy: sends a granted request, and reads its answers' headers into facts.

What must hold:
  What was certainly not sent (`ProxyUnavailable`) is distinguished from what may have reached a provider (`Unanswered`).
  An error answer counts as free only where our plugin, the provider, or LiteLLM before it asked a provider says so.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, cast

import aiohttp
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
from llm_service.money import nano_from_reported_dollars
from llm_service.types import NO_TIMEOUTS, Condition, Timeouts
from llm_service.upstream.clocks import ahead_by, difference, disagrees
from llm_service.upstream.upstream import Billing, Refusal, Unanswered, UpstreamAnswer, UpstreamStream

#: A page of LiteLLM's that takes no grant and costs it nothing.
_OPEN_PAGE = "/health/liveliness"
_MOMENT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
#: Names the deployment that answered.
_DEPLOYMENT = "x-litellm-model-id"
#: Headers of an answer that went through our plugin, and so of a grant that was used or that it refused itself.
_OURS = ("x-treasurer-", "x-litellm-", "llm_provider-")
#: How providers, and LiteLLM for them, say that a request is too long: OpenAI's is a code, the others' are words
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
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class ProxyUpstream:
    """LiteLLM Proxy over HTTP. One session, kept connections, no retries of its own.

    Times are seconds: `connect_s` to reach it, `total_s` for a whole call, `silence_s` between two
    reads of a stream. A call's own `connect_s` and `silence_s` go before them, and a stream's `total_s`; how long
    anybody waits for a whole answer or for a first token is the service's to say: what was sent goes on.
    """

    def __init__(self, url: str, *, connect_s: float = 5.0, total_s: float = 300.0, silence_s: float = 120.0) -> None:
        self._url = url
        self._connect_s = connect_s
        self._total_s = total_s
        self._silence_s = silence_s
        self._session: aiohttp.ClientSession | None = None
        self._clock_ahead_s: float | None = None
        self._clock_seen = float("-inf")

    async def __aenter__(self) -> ProxyUpstream:
        self._session = aiohttp.ClientSession(
            self._url,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=self._total_s, sock_connect=self._connect_s, sock_read=self._total_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(
        self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS
    ) -> UpstreamAnswer | Refusal:
        """Ask for a whole answer.

        Raises:
            ProxyUnavailable: it was not sent.
            Unanswered: it may have been served.
        """
        response = await self._post(path, body, grant, timeouts.connect_s, None)
        try:
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unanswered(error) from error
        finally:
            response.release()
        return answer_of(response.status, response.headers, content)

    async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> UpstreamStream:
        """Ask for a stream. Raises as `send` does."""
        response = await self._post(path, body, grant, timeouts.connect_s, timeouts.total_s)
        return _Stream(response, timeouts.silence_s or self._silence_s)

    async def get(self, path: str, grant: str) -> Any:
        """Read JSON from one of the proxy's own pages.

        Raises:
            ProxyUnavailable: it is away.
            UpstreamError: it answered with an error.
        """
        return await self._read("GET", path, None, grant)

    async def ask(self, path: str, body: bytes, grant: str) -> Any:
        """Ask one of the proxy's own tools, which costs nothing. Raises as `get` does."""
        return await self._read("POST", path, body, grant)

    async def clock_ahead_s(self, *, fresh_s: float = 5.0) -> float | None:
        """By how many seconds the proxy's clock is ahead of ours, by an answer of the last `fresh_s`; None: not known.

        Asks for a page where there was no answer, for at most two seconds. Never raises for a proxy that is away.
        """
        if time.monotonic() - self._clock_seen > fresh_s:
            self._clock_ahead_s, self._clock_seen = None, float("-inf")
            try:
                async with self._live().get(_OPEN_PAGE, timeout=aiohttp.ClientTimeout(total=2)) as response:
                    self._see_clock(response.headers)
            except (aiohttp.ClientError, TimeoutError, OSError):
                return None
        return self._clock_ahead_s

    def _see_clock(self, headers: Mapping[str, str]) -> None:
        now = time.monotonic()
        if now - self._clock_seen > 1:  # not for each of a thousand answers
            self._clock_ahead_s, self._clock_seen = ahead_by(headers.get("Date"), time.time()), now

    async def _read(self, method: str, path: str, body: bytes | None, grant: str) -> Any:
        headers = {"Authorization": f"Bearer {grant}", "Content-Type": "application/json"}
        try:
            async with self._live().request(
                method, path, data=body, headers=headers, timeout=aiohttp.ClientTimeout(total=15)
            ) as response:
                self._see_clock(response.headers)
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _away(error) from error
        if response.status != 200:
            raise upstream_error(response.status, response.headers, content)
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise UpstreamError(f"LiteLLM Proxy's page {path} is not JSON.") from error

    async def _post(
        self, path: str, body: bytes, grant: str, connect_s: float | None, total_s: float | None
    ) -> aiohttp.ClientResponse:
        total_s = min(total_s or self._total_s, self._total_s)
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=connect_s or self._connect_s)
        headers = {"Authorization": f"Bearer {grant}", "Content-Type": "application/json"}
        for last in (False, True):
            try:
                response = await self._live().post(path, data=body, headers=headers, timeout=timeout)
                self._see_clock(response.headers)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if last:  # it was there for the first sending, and may have died over it
                    raise _unanswered(error) from error
                raise _away(error) from error
            except aiohttp.ServerDisconnectedError as error:
                # Mostly a kept connection that the proxy closed while it was idle. The grant can be used
                # once only, so sending it again cannot be served twice; if it is refused, it was served.
                if last:
                    raise _unanswered(error) from error
                continue
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _unanswered(error) from error
            # Whatever our plugin refuses the second sending for, the first one may have been served.
            if last and (response.status == 401 or "x-treasurer-refused" in response.headers):
                response.release()
                raise _unanswered(ConnectionError("the first sending was served, and its answer lost"))
            return response
        raise AssertionError("unreachable")

    def _live(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("ProxyUpstream is used outside its context")
        return self._session


class _Stream:
    def __init__(self, response: aiohttp.ClientResponse, silence_s: float) -> None:
        self._response = response
        self._silence_s = silence_s
        self.accepted = response.status == 200
        self.deployment = response.headers.get(_DEPLOYMENT)

    def event_error(self, fields: Mapping[str, object]) -> TreasurerError:
        return event_error(fields)

    def refusal(self, body: bytes) -> Refusal:
        return refusal_of(self._response.status, self._response.headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while True:
                async with asyncio.timeout(self._silence_s):
                    chunk = await content.readany()
                if not chunk:
                    return
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unanswered(error) from error

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unanswered(error) from error

    def close(self) -> None:
        self._response.close()


def _away(error: BaseException) -> ProxyUnavailable:
    return ProxyUnavailable(
        "LiteLLM Proxy does not answer, so the request was not sent and nothing was spent. Try again in a moment.",
        retry_after=2,
        details={"part": "proxy", "cause": type(error).__name__},
    )


def _lost(error: BaseException) -> TreasurerError:
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return UpstreamTimeout(
            "The model did not answer in time. What it may have cost stays held until the proxy's record of it is found."
        )
    return UpstreamError(
        "The connection broke before the answer was complete. What it may have cost stays held until the proxy's "
        "record of it is found.",
        details={"cause": type(error).__name__},
    )


def answer_of(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamAnswer | Refusal:
    """The facts of a whole answer, or of the error in its place."""
    if status != 200:
        return refusal_of(status, headers, body)
    return UpstreamAnswer(body, headers.get(_DEPLOYMENT), _reported_cost(headers.get("x-litellm-response-cost")))


def refusal_of(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """The facts of an error answer: the provider's, LiteLLM's, our own plugin's, or a balancer's."""
    refused = headers.get("x-treasurer-refused")
    error = _refusal_error(refused, status, headers, body)
    return Refusal(
        error=error,
        billing=Billing.FREE if certainly_unbilled(status, headers) else Billing.UNKNOWN,
        never_begun=_never_begun(f"A server before LiteLLM Proxy answered with {status}."),
        begun=status < 500 or any(name.lower().startswith(_OURS) for name in headers),
        by_us=refused is not None,
        provider_failed=min(status, error.status) >= 500 and refused is None,
        answered=refused != GRANT_USED,
    )


def _refusal_error(refused: str | None, status: int, headers: Mapping[str, str], body: bytes) -> TreasurerError:
    if refused == PRICES_CHANGED:
        return PricesChanged("The proxy has other prices than the call was held for.", retry_after=1)
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
    return upstream_error(status, headers, body)


def _never_begun(what: str) -> ProxyUnavailable:
    return ProxyUnavailable(
        f"{what} LiteLLM Proxy had not begun with the request, so nothing was spent. Try again in a moment.",
        retry_after=2,
        details={"part": "proxy", "cause": "never_used"},
    )


def _unanswered(error: BaseException) -> Unanswered:
    return Unanswered(_lost(error), _never_begun("The connection to LiteLLM Proxy broke, or took too long."))


def _reported_cost(dollars: str | None) -> int | None:
    try:
        return None if dollars is None else nano_from_reported_dollars(dollars)
    except ArithmeticError:
        return None


def certainly_unbilled(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an error answer of the proxy means that nothing can have been billed.

    Our plugin says so, where it was asked. Where not: LiteLLM passes the provider's own headers on (`llm_provider-…`) when the provider itself refused; an
    answer that it had begun to use names its deployment too. Its own refusals (bad request, not granted,
    cooldown) come before anything is sent. What is left are broken connections, time-outs and
    answers that it could not read: the provider may have billed those. Seen with LiteLLM 1.106.
    """
    told = headers.get("x-treasurer-free")
    if told is not None:
        return told == "1"
    if "x-treasurer-refused" in headers:  # our plugin let nothing through, unless a balancer had sent it before
        return headers["x-treasurer-refused"] != GRANT_USED
    if _DEPLOYMENT in headers:
        return False
    if status >= 500 or status in (408, 422):
        return status != 422 and any(name.lower().startswith("llm_provider-") for name in headers)
    return True


def upstream_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError | ProxyUnavailable:
    """The proxy's error answer as ours, with the provider's status, message, code and Retry-After.

    The proxy's 401 and 403 speak of our grant or of the operator's provider key, never of the caller's
    own key, so they become 502. A 500 over a request that LiteLLM could not read, and so sent to nobody (our plugin
    says which), is the caller's mistake: a 400, of which no breaker and no route makes a failure of the model.
    """
    if headers.get("x-treasurer-refused") == "clock":
        return _refused_for_time(headers.get("x-treasurer-time", ""), time.time())
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
    return _error(status, cast("dict[str, object]", fields) if isinstance(fields, dict) else {}, retry_after)


def _refused_for_time(told: str, now: float) -> ProxyUnavailable:
    """The error for a grant that was not valid by the proxy's clock, which showed `told` when ours showed `now`."""
    ahead_s = float(told) - now if _MOMENT.fullmatch(told) else None
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


def event_error(fields: Mapping[str, object]) -> UpstreamError:
    """The error event of a stream as ours; its code is a status where LiteLLM knew one."""
    code = str(fields.get("code") or "")
    status = int(code) if code.isdecimal() and 400 <= int(code[:4]) <= 599 else 502
    return _error(status, fields, None)


def _error(status: int, error: Mapping[str, object], retry_after: float | None) -> UpstreamError:
    message = str(error.get("message") or "The provider answered with an error.")
    message = message.partition("\nTraceback (most recent call last):")[0][:2000]  # LiteLLM adds its own
    code, kind, param = (str(error[name]) if error.get(name) else None for name in ("code", "type", "param"))
    mapped = 502 if status in (401, 403) else status
    error_code = code if code and not code.isdigit() and code != "None" else f"upstream_{mapped}"
    result = UpstreamError(message, status=mapped, code=error_code, param=param, retry_after=retry_after)
    if kind and kind != "None" and mapped == status:
        result.type = kind
    result.reason = _reason(result)
    return result


def _reason(error: UpstreamError) -> Condition | None:
    """What a provider's refusal of a request was for, where its words tell."""
    if error.status >= 500 or error.status == 429:
        return None
    said = f"{error.code} {error.type} {error.message}".lower()
    if any(sign in said for sign in _TOO_LONG):
        return Condition.CONTEXT_TOO_LONG
    return Condition.CONTENT_FILTER if any(sign in said for sign in _FILTERED) else None
