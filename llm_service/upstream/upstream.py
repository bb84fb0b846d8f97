"""Where a granted request goes: what the service asks of an upstream, and the facts that it gets back.

What must hold:
  Above this protocol nobody reads a header, or knows which proxy or provider answered: an answer carries facts.
  What was certainly not sent (`ProxyUnavailable`) is distinguished from what may have reached a provider (`Unanswered`),
  because the first costs nothing and the second may.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llm_service.errors import ProxyUnavailable, TreasurerError
from llm_service.types import NO_TIMEOUTS, Timeouts


class Billing(StrEnum):
    """What an error answer says about the provider's bill."""

    FREE = "free"  # nothing can have been billed
    UNKNOWN = "unknown"  # only a witness can tell


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """A whole answer that was served. `reported_cost_nano` is what the upstream says it cost, in nano-dollars."""

    body: bytes
    deployment: str | None = None
    reported_cost_nano: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer. `error` is the one for the caller, with the provider's own status, code and Retry-After."""

    error: TreasurerError
    billing: Billing
    #: The error for the caller where it turns out that the upstream never began with the request.
    never_begun: ProxyUnavailable
    #: False: a server on the way may have answered in the upstream's place, which may not have begun with the request.
    begun: bool = True
    #: Our own check of the grant refused it: no provider was asked, and it says nothing about the model.
    by_us: bool = False
    #: The provider itself failed, and was not refusing the request.
    provider_failed: bool = False
    #: False: another sending of the same request is still being served, so that its witness is yet to come.
    answered: bool = True


class Unanswered(Exception):
    """The request may have reached a provider, and no answer came: only a witness can tell what it cost."""

    def __init__(self, error: TreasurerError, never_begun: ProxyUnavailable | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        #: The error for the caller where it turns out that the upstream never began with the request.
        self.never_begun = never_begun or ProxyUnavailable(
            "The connection broke before the request was begun, so nothing was spent. Try again in a moment.",
            retry_after=2,
            details={"part": "proxy", "cause": "never_used"},
        )


class UpstreamStream(Protocol):
    """An answer that is still coming, or an error in its place (`accepted` is False).

    `chunks` ends, or raises `Unanswered`; so does `read`, which gives the body of an error, for `refusal`; `close`
    gives the answer up.
    """

    @property
    def accepted(self) -> bool: ...
    @property
    def deployment(self) -> str | None: ...
    def chunks(self) -> AsyncIterator[bytes]: ...
    def event_error(self, fields: Mapping[str, object]) -> TreasurerError:
        """The error that an event of the stream tells."""
        ...

    async def read(self) -> bytes: ...
    def refusal(self, body: bytes) -> Refusal: ...
    def close(self) -> None: ...


class Upstream(Protocol):
    """What answers a granted request. Both methods raise `ProxyUnavailable` if it was not sent, else `Unanswered`."""

    async def send(
        self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS
    ) -> UpstreamAnswer | Refusal: ...
    async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> UpstreamStream: ...
