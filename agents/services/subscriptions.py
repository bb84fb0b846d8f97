"""The desk of subscriptions: a service outside of the agents, where a customer's subscriptions are looked up and cancelled.

What must hold:
  A cancellation carries a key, by which the desk drops its repetition.
  A refusal of the desk (`DeskRefused`) has changed nothing. After `DeskUnreachable` nobody knows.
  A call is bounded in time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import aiohttp


class DeskError(Exception):
    """The desk did not do what it was asked to. The message says why."""


class DeskRefused(DeskError):
    """The desk says no, or there is none: nothing was changed."""


class DeskUnreachable(DeskError):
    """The desk gave no answer that can be used."""


@dataclass(frozen=True, slots=True)
class SubscriptionDesk:
    """The desk at an address. None: there is no desk, and everything is refused."""

    url: str | None = None
    timeout_s: float = 10

    async def of(self, customer: str) -> list[dict[str, Any]]:
        """A customer's subscriptions: the name of each, its plan, its price, and whether it is active.

        Raises:
            DeskRefused, DeskUnreachable.
        """
        found = await self._ask("GET", "subscriptions", params={"customer": customer})
        return cast("list[dict[str, Any]]", found.get("subscriptions", []))

    async def cancel(self, subscription: str, key: str) -> dict[str, Any]:
        """Cancel a subscription, once for each key.

        Raises:
            DeskRefused, DeskUnreachable.
        """
        body = {"subscription": subscription}
        return await self._ask("POST", "cancellations", json=body, headers={"idempotency-key": key})

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        if self.url is None:
            raise DeskRefused("No desk of subscriptions is configured (TREASURER_DESK_URL).")
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                aiohttp.ClientSession() as session,
                session.request(method, f"{self.url}/{path}", **request) as response,
            ):
                answer: Any = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise DeskUnreachable(f"The desk did not answer: {str(error) or type(error).__name__}.") from error
        if 400 <= response.status < 500 and response.status != 408:
            raise DeskRefused(_message(answer) or f"The desk has refused with HTTP {response.status}.")
        if response.status != 200 or not isinstance(answer, dict):
            raise DeskUnreachable(f"The desk answered HTTP {response.status}.")
        return cast("dict[str, Any]", answer)


def _message(answer: Any) -> str | None:
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return None
