"""The protocol between the service and an upstream: a granted request goes in, facts come out.

What must hold:
  No module above this protocol reads a header, or knows which proxy or provider answered: an answer carries facts.
  A request that was certainly not sent (`ProxyUnavailable`) is distinguished from one that may have reached a provider
  (`Unanswered`), because only the second can have cost anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llm_service.errors import ProxyUnavailable, TreasurerError
from llm_service.types import NO_TIMEOUTS, Timeouts


class Billing(StrEnum):
    """Whether a provider can have billed a request that ended in an error."""

    FREE = "free"  # nothing can have been billed
    UNKNOWN = "unknown"  # only a witness, the proxy's own record, can show that


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """A whole answer that was served. `reported_cost_nano` is the upstream's own figure for its cost."""

    body: bytes
    deployment: str | None = None
    reported_cost_nano: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer. `error` goes to the caller, with the provider's own status, code and Retry-After."""

    error: TreasurerError
    billing: Billing
    #: The error for the caller if it turns out that the upstream never began with the request.
    never_begun: ProxyUnavailable
    #: False: the answer may be from a server in between, so the upstream may never have got the request.
    begun: bool = True
    #: Our own check of the grant refused the request. No provider was asked, so the model did not fail.
    by_us: bool = False
    #: The provider failed. It did not just refuse this request.
    provider_failed: bool = False
    #: False: the same request was sent twice, and the other one is still being served, so its witness is yet to come.
    answered: bool = True
    #: The deployment whose stream was cut before its first byte arrived.
    cut: str | None = None
    #: The provider refused the operator's key, account or region. Neither the request nor the model is at fault.
    key_refused: bool = False


class Unanswered(Exception):
    """The request may have reached a provider, but no whole answer came, so only a witness can show the cost."""

    def __init__(self, error: TreasurerError, never_begun: ProxyUnavailable | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        #: The error for the caller if it turns out that the upstream never began with the request.
        self.never_begun = never_begun or ProxyUnavailable(
            "The connection broke before the request was begun, so nothing was spent. Try again in a moment.",
            retry_after=2,
            details={"part": "proxy", "cause": "never_used"},
        )


class UpstreamStream(Protocol):
    """An answer that is still coming, or an error in its place (`accepted` is False).

    `chunks` yields the answer's bytes. `read` returns the body of an error, to be passed to `refusal`. Both raise
    `Unanswered` if the connection breaks. `close` abandons the rest of the answer.
    """

    @property
    def accepted(self) -> bool: ...
    @property
    def deployment(self) -> str | None: ...
    def chunks(self) -> AsyncIterator[bytes]: ...
    def event_error(self, fields: Mapping[str, object]) -> TreasurerError:
        """The error for the caller, from the fields of an error event of the stream."""
        ...

    async def read(self) -> bytes: ...
    def refusal(self, body: bytes) -> Refusal: ...
    def close(self) -> None: ...


class Upstream(Protocol):
    """A place that answers granted requests.

    Both methods raise `ProxyUnavailable` if the request was certainly not sent, and `Unanswered` if it may have been.
    """

    async def send(
        self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS
    ) -> UpstreamAnswer | Refusal: ...
    async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> UpstreamStream: ...
