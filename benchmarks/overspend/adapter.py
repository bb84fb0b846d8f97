"""What the overspend test needs of a gateway: to be started, to be given budgets, and to show its books.

What must hold: nothing else of a gateway is known to the scenarios. All they do to it is OpenAI's API over HTTP,
with the keys and addresses that the adapter gives. What a gateway cannot do raises `Unsupported`, with the
reason; it is printed, and never counted as a fault or as a success.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Window = Literal["total", "minute"]


class Unsupported(Exception):
    """The gateway has no such thing. The message says why, in the words of the table."""


@dataclass(frozen=True, slots=True)
class Account:
    """One agent with one budget. `name` is how the gateway's books know it."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Books:
    """What the gateway's own books say of an account.

    `spent_nano` is what it counts as spent, `paid_calls` how many calls it has at a cost (None: it does not
    say), and `open_nano` what is held or reserved for calls that have not ended in the books.
    """

    spent_nano: int
    paid_calls: int | None = None
    open_nano: int = 0


class Adapter(Protocol):
    """A gateway. `start` comes first, `stop` last, whatever happened between them."""

    name: str
    #: How long after the last call the books may still change: the longest life of what a crash leaves behind.
    settle_s: float

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        """Start so many instances, all providers being the simulated one. `folder` is the adapter's to fill."""
        ...

    @property
    def urls(self) -> list[str]:
        """OpenAI-compatible addresses (`…/v1`), one for each instance."""
        ...

    def versions(self) -> dict[str, str]:
        """What is tested, for the report."""
        ...

    async def account(self, limit_nano: int, window: Window = "total", *, errors_are_billed: bool = False) -> Account:
        """A new agent that has spent nothing, with a budget of so much.

        `errors_are_billed`: its operator knows that this provider bills what it answers with an error. A gateway
        that can be told so is told.

        Raises:
            Unsupported: there are no budgets for such a window.
        """
        ...

    async def books(self, account: Account) -> Books | None:
        """What the gateway's books say now; None: they cannot be read."""
        ...

    async def kill_and_restart(self) -> None:
        """Kill every gateway process at once, as `kill -9` does, and return when the gateway serves again.

        Raises:
            Unsupported: it cannot be done.
        """
        ...

    async def stop(self) -> None:
        """End what was started; also after a `start` that failed half-way."""
        ...
