"""The only module that speaks to LiteLLM Proxy: it sends a granted request, and returns facts instead of headers.

What must hold:
  A request that was certainly not sent (`ProxyUnavailable`) is distinguished from one that may have reached a provider
  (`Unanswered`), because only the second can have cost anything.
  A request is sent again only if its grant, which can be used once, rules out that it is served twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

import aiohttp
import orjson

from llm_service.errors import TreasurerError, UpstreamError
from llm_service.money import nano_from_reported_dollars
from llm_service.telemetry.record import TRACEPARENT
from llm_service.types import NO_TIMEOUTS, Timeouts
from llm_service.upstream.clocks import ahead_by
from llm_service.upstream.litellm_errors import (
    DEPLOYMENT_HEADER,
    event_error,
    proxy_away,
    refusal_of,
    stream_refusal_of,
    unanswered,
    upstream_error,
)
from llm_service.upstream.upstream import Refusal, UpstreamAnswer, UpstreamStream

#: A page of LiteLLM that needs no grant and takes LiteLLM no work.
_OPEN_PAGE = "/health/liveliness"


class ProxyUpstream:
    """LiteLLM Proxy over HTTP: one session, whose connections are kept.

    Times in seconds: `connect_s` to reach the proxy, `total_s` for a whole call, `silence_s` between two reads of a
    stream. A call's own `connect_s` and `silence_s`, and a stream's own `total_s`, override these. The service decides
    how long a caller waits for a whole answer or for a first token. After that the request goes on.
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
            ProxyUnavailable: the request was not sent. Unanswered: the request may have been served.
        """
        response = await self._post(path, body, grant, timeouts.connect_s, None)
        try:
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unanswered(error) from error
        finally:
            response.release()
        return answer_of(response.status, response.headers, content)

    async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> UpstreamStream:
        """Ask for a stream. Raises as `send` does."""
        response = await self._post(path, body, grant, timeouts.connect_s, timeouts.total_s)
        return _Stream(response, timeouts.silence_s or self._silence_s)

    async def get(self, path: str, grant: str) -> Any:
        """Read JSON from one of the proxy's own endpoints.

        Raises:
            ProxyUnavailable: the proxy is away.
            UpstreamError: the proxy answered with an error.
        """
        return await self._read("GET", path, None, grant)

    async def ask(self, path: str, body: bytes, grant: str) -> Any:
        """Post JSON to one of the proxy's own endpoints, which do not call a provider. Raises as `get` does."""
        return await self._read("POST", path, body, grant)

    async def clock_ahead_s(self, *, fresh_s: float = 5.0) -> float | None:
        """By how many seconds the proxy's clock is ahead of ours, from an answer not older than `fresh_s`; None: unknown.

        If there was no such answer, asks the proxy for a page and waits for at most two seconds. A proxy that is away
        makes this return None; it never raises.
        """
        if time.monotonic() - self._clock_seen > fresh_s:
            self._clock_ahead_s, self._clock_seen = None, float("-inf")
            try:
                async with self._live().get(_OPEN_PAGE, timeout=aiohttp.ClientTimeout(total=2)) as response:
                    self._note_clock(response.headers)
            except (aiohttp.ClientError, TimeoutError, OSError):
                return None
        return self._clock_ahead_s

    def _note_clock(self, headers: Mapping[str, str]) -> None:
        now = time.monotonic()
        if now - self._clock_seen > 1:  # once a second is enough, as answers come a thousand times a second
            self._clock_ahead_s, self._clock_seen = ahead_by(headers.get("Date"), time.time()), now

    async def _read(self, method: str, path: str, body: bytes | None, grant: str) -> Any:
        headers = {"Authorization": f"Bearer {grant}", "Content-Type": "application/json"}
        try:
            async with self._live().request(
                method, path, data=body, headers=headers, timeout=aiohttp.ClientTimeout(total=15)
            ) as response:
                self._note_clock(response.headers)
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise proxy_away(error) from error
        if response.status != 200:
            raise upstream_error(response.status, response.headers, content, time.time())
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
        if (traceparent := TRACEPARENT.get()) is not None:  # so that LiteLLM's own spans are below the attempt's
            headers["traceparent"] = traceparent
        for last in (False, True):
            try:
                response = await self._live().post(path, data=body, headers=headers, timeout=timeout)
                self._note_clock(response.headers)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if last:  # the proxy had the first request, and may have died while it served that
                    raise unanswered(error) from error
                raise proxy_away(error) from error
            except aiohttp.ServerDisconnectedError as error:
                # Usually this was a kept connection that the proxy had closed because it was idle. The request is sent
                # again: the grant can be used once, so it cannot be served twice. If the second request is refused, the
                # first one may have been served.
                if last:
                    raise unanswered(error) from error
                continue
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise unanswered(error) from error
            # If our plugin refuses the second request, for whatever reason, the first one may have been served.
            if last and (response.status == 401 or "x-treasurer-refused" in response.headers):
                response.release()
                raise unanswered(ConnectionError("the first sending may have been served, and its answer was lost"))
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
        self.deployment = response.headers.get(DEPLOYMENT_HEADER)

    def event_error(self, fields: Mapping[str, object]) -> TreasurerError:
        return event_error(fields)

    def refusal(self, body: bytes) -> Refusal:
        return stream_refusal_of(self._response.status, self._response.headers, body, time.time())

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
            raise unanswered(error) from error

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unanswered(error) from error

    def close(self) -> None:
        self._response.close()


def answer_of(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamAnswer | Refusal:
    """The facts about a whole answer, or about the error in its place."""
    if status != 200:
        return refusal_of(status, headers, body, time.time())
    return UpstreamAnswer(body, headers.get(DEPLOYMENT_HEADER), _reported_cost(headers.get("x-litellm-response-cost")))


def _reported_cost(dollars: str | None) -> int | None:
    try:
        return None if dollars is None else nano_from_reported_dollars(dollars)
    except ArithmeticError:
        return None
