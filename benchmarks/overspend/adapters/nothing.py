"""No gateway at all: callers reach the provider directly. The smallest adapter; it shows what happens without budgets."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from benchmarks.overspend.adapter import Account, Books, Unsupported, Window
from benchmarks.overspend.processes import Processes


class Nothing:
    """Keeps no limits and no books."""

    name = "no gateway"
    serves: frozenset[str] = frozenset(("one rate", "openai"))  # callers use OpenAI's address
    settle_s = 0.0

    def __init__(self, processes: Processes) -> None:
        self._url = ""

    @property
    def urls(self) -> list[str]:
        return [self._url]

    def versions(self) -> dict[str, str]:
        return {}

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        self._url = f"{provider_url}/openai/v1"

    async def account(self, limit_nano: int, window: Window = "total", *, errors_are_billed: bool = False) -> Account:
        return Account("nobody", f"sk-{uuid4().hex}")

    async def books(self, account: Account) -> Books | None:
        return None

    async def kill_and_restart(self) -> None:
        raise Unsupported("there is nothing to kill")

    async def stop(self) -> None:
        pass
