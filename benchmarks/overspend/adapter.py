"""What the overspend test needs from a gateway: to start it, to give it budgets, and to read its books.

What must hold:
- The scenarios know nothing else of a gateway. They only call OpenAI's API over HTTP, with the keys and addresses that
  the adapter gives them.
- If a gateway cannot do something, the adapter raises `Unsupported` with the reason. The reason is printed, and is
  counted neither as a fault nor as a success.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Window = Literal["total", "minute"]
EVERYTHING: frozenset[str] = frozenset(
    ("one rate", "openai", "anthropic", "google", "perplexity", "openrouter", "deepseek", "own prices")
)


class Unsupported(Exception):
    """The gateway does not have this. The message is the reason, as the table prints it."""


@dataclass(frozen=True, slots=True)
class Account:
    """One agent with one budget. `name` identifies it in the gateway's books."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Books:
    """What the gateway's own books contain about an account.

    `spent_nano`: what the gateway counts as spent. `paid_calls`: the number of calls with a cost (None: the books do
    not show it). `open_nano`: what is held or reserved for calls that have not ended in the books.
    """

    spent_nano: int
    paid_calls: int | None = None
    open_nano: int = 0


class Adapter(Protocol):
    """A gateway. `start` is called first and `stop` last, whatever happens between them."""

    name: str
    #: For how many seconds after the last call the books may change: as long as a hold lives that a crash has left.
    settle_s: float
    #: What the gateway serves here: "one rate" is OpenAI's gpt-4o-mini; other models are named by provider ("openai",
    #: "anthropic", "google", "perplexity", "openrouter", "deepseek"). "own prices": an operator's configuration may name a
    #: model's prices.
    serves: frozenset[str]

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        """Start this number of instances. The simulated provider serves every model. The adapter may write to
        `folder`."""
        ...

    @property
    def urls(self) -> list[str]:
        """OpenAI-compatible addresses (`…/v1`), one for each instance."""
        ...

    def versions(self) -> dict[str, str]:
        """Names and versions of what is tested, for the report."""
        ...

    async def account(self, limit_nano: int, window: Window = "total", *, errors_are_billed: bool = False) -> Account:
        """Create an agent that has spent nothing, with a budget of this amount.

        `errors_are_billed`: the operator knows that this provider bills the requests that it answers with an error. If
        a gateway has a setting for that, the adapter sets it.

        Raises:
            Unsupported: there are no budgets for such a window.
        """
        ...

    async def books(self, account: Account) -> Books | None:
        """The gateway's books as they are now, or None if they cannot be read."""
        ...

    async def kill_and_restart(self) -> None:
        """Kill every gateway process at once, as `kill -9` does, and return when the gateway serves again.

        Raises:
            Unsupported: it cannot be done.
        """
        ...

    async def stop(self) -> None:
        """Stop everything that was started, also after a `start` that failed half-way."""
        ...
