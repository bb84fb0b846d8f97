"""The simulated provider: its invoice, and what a call costs there. This program starts it, or uses a running one.

What must hold: the judge knows nothing of any gateway. It counts and prices with the provider's own modules and price
list, which come from no gateway.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.overspend.processes import Processes
from gateway.stack.ports import free_port
from gateway.stack.probe import http_ok
from gateway.stack.simulated_provider import tokens
from gateway.stack.simulated_provider.prices import PriceList, Terms, Used

ROOT = Path(__file__).resolve().parent.parent.parent
#: By the beginning of a model's name, the API under which the provider serves it.
_FACES = (
    ("claude", "anthropic"),
    ("gemini", "google"),
    ("sonar", "perplexity"),
    ("grok", "xai"),
    ("deepseek", "deepseek"),
    ("openai/", "openrouter"),
)
_QUIET_S = 0.6


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the invoice, with the fields that are needed here."""

    seq: int
    model: str
    state: str
    input_tokens: int
    output_tokens: int
    cost_nano: int
    at: float


def face_of(model: str) -> str:
    """The API under which the provider serves a model."""
    return next((face for start, face in _FACES if model.startswith(start)), "openai")


class Provider:
    """Asks the simulated provider at `url` for its invoice, and prices calls as it does."""

    def __init__(self, url: str, prices: PriceList, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._prices = prices
        self._http = http

    def cost_nano(self, model: str, used: Used, terms: Terms | None = None) -> int:
        """What the provider bills for this, on these terms (now, unless they name a time).

        Raises:
            ValueError: the provider has no price for it, so the scenario could not be judged.
        """
        rates = self._prices.rates(face_of(model), model)
        if rates is None:
            raise ValueError(f"the price list has no {model}")
        cost = rates.cost(used, terms or Terms(at=time.time()))
        if cost.unpriced:
            raise ValueError(f"the price list has no price for {', '.join(cost.unpriced)} of {model}")
        return cost.nano

    async def last(self) -> int:
        """The number of the last line of the invoice."""
        return int((await self._invoice("since=0"))["last_seq"])

    async def lines(self, since: int) -> list[Line]:
        """The lines after number `since`."""
        invoice = await self._invoice(f"lines=1&since={since}")
        if invoice["unpriced"]:
            raise ValueError(f"the provider has no price for {invoice['unpriced']}")
        return [
            Line(
                seq=line["seq"],
                model=line["model"],
                state=line["state"],
                input_tokens=line["input_tokens"],
                output_tokens=line["output_tokens"],
                cost_nano=line["cost_nano"],
                at=line["at"],
            )
            for line in invoice["lines"]
        ]

    async def quiet(self, at_least_s: float) -> None:
        """Wait until nothing more is billed: streams that callers left may still be read to their end."""
        await asyncio.sleep(at_least_s)
        seen = await self.last()
        for _ in range(40):
            await asyncio.sleep(_QUIET_S)
            if (now := await self.last()) == seen:
                return
            seen = now
        raise RuntimeError("the provider goes on billing long after the last call")

    async def _invoice(self, query: str) -> dict[str, Any]:
        async with self._http.get(f"{self.url}/_sim/invoice?{query}") as response:
            return await response.json()


def count_tokens(text: str, *, chat: bool) -> int:
    """The number of tokens that the provider counts for one text: a whole message, or an embedding's input."""
    around = tokens.TOKENS_PER_ANSWER + tokens.TOKENS_PER_MESSAGE if chat else 0
    return around + tokens.count(text)


async def start_provider(processes: Processes, folder: Path, seed: int) -> str:
    """Start a simulated provider for this test, and return its address.

    Raises:
        RuntimeError: it did not start.
    """
    port, log = free_port(), folder / "provider.log"
    arguments = ["--port", str(port), "--seed", str(seed)]
    command = [sys.executable, "-m", "gateway.stack.simulated_provider", *arguments]
    process = await processes.start(command, log=log, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    while not await http_ok(f"{url}/_sim/health"):
        if process.returncode is not None:
            raise RuntimeError(f"the simulated provider did not start:\n{log.read_text()}")
        await asyncio.sleep(0.1)
    return url
