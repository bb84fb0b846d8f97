"""How much is held for a call, beside what it costs: one photograph, and text, on each model of config/litellm.yaml.

A hold that is many times the cost makes a budget refuse calls for which it has money. The holds are read from the ledger
after real calls. The costs are computed here from the providers' own pages (prices and rules, read in November 2026), so
that Treasurer's rules are not compared with themselves.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
from PIL import Image

from gateway.stack.state import StackState

#: The highest ratios of hold to cost that we accept: for one photograph, and for a text whose `max_tokens` is close to
#: the length of the answer.
MOST_PHOTO, MOST_TEXT = 3, 2
_ANSWER_TOKENS, _MOST_TOKENS = 270, 300
_QUESTION = "What is in this picture? Describe it in a few sentences, and say what time of the day it was taken."
_TEXT = (
    "A customer writes that the parcel came two days late and that the box was wet. Nothing in it is broken. She asks "
    "whether she can have the shipping cost back. Write a friendly answer that apologises, offers the cost of the shipping "
    "as a voucher, explains that the carrier had a strike in that week, and asks her to send a photograph of the box."
)
_CHARACTERS_A_TOKEN = 4  # https://platform.openai.com/tokenizer, https://ai.google.dev/gemini-api/docs/tokens


@dataclass(frozen=True, slots=True)
class Page:
    """What a provider's pages say: dollars for a million tokens of input and of output, and tokens of the photograph."""

    input: str
    output: str
    photo: int | None = None


#: Prices, and the photograph's tokens, by these pages: https://developers.openai.com/api/docs/pricing and
#: /guides/images-vision (4 tiles, or 32 × 24 patches × 1.62 tokens);
#: https://platform.claude.com/docs/en/about-claude/pricing and /build-with-claude/vision (37 × 28 patches);
#: https://ai.google.dev/gemini-api/docs/pricing and /image-understanding (4 tiles of 258 tokens).
PAGES = {
    "gpt-4o": Page("2.50", "10.00", 85 + 4 * 170),
    "gpt-4o-mini": Page("0.15", "0.60", 2833 + 4 * 5667),
    "gpt-4.1-mini": Page("0.40", "1.60", 1245),
    "gpt-5-mini": Page("0.25", "2.00", 1245),
    "claude-haiku-5-5": Page("0.10", "0.50", 37 * 28),
    "claude-haiku-4-5": Page("1.00", "5.00", 37 * 28),
    "claude-sonnet-5-5": Page("2.00", "10.00", 37 * 28),
    "gemini-2.5-flash": Page("0.30", "2.50", 4 * 258),
    "gemini-2.5-pro": Page("1.25", "10.00", 4 * 258),
    "local/llama-3.3-70b": Page("0.10", "0.40"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """The holds and costs of one model, in nano-dollars. The photograph's cost is None if the provider has no rule for
    images."""

    model: str
    photo_held: int | None
    photo_cost: int | None
    text_held: int
    text_cost: int


def photograph() -> str:
    """A JPEG of 1024 × 768 as a data URL, with something to see in it."""
    picture = Image.linear_gradient("L").resize((1024, 768))
    written = io.BytesIO()
    Image.merge("RGB", (picture, picture.rotate(180), picture)).save(written, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def cost(page: Page, text: str, photo_tokens: int = 0) -> int:
    """What the call costs by the provider's pages, in nano-dollars."""
    tokens = len(text) // _CHARACTERS_A_TOKEN + photo_tokens
    dollars = (tokens * Decimal(page.input) + _ANSWER_TOKENS * Decimal(page.output)) / 10**6
    return int(dollars * 10**9)


async def measure(state: StackState, key: str) -> list[Row]:
    """Make one call with a photograph and one with text on each model."""
    url, rows = photograph(), list[Row]()
    async with (
        aiohttp.ClientSession() as session,
        asyncpg.create_pool(state.database_url, min_size=1, max_size=1) as pool,
    ):
        for model, page in PAGES.items():
            picture = {"type": "image_url", "image_url": {"url": url}}
            shown = [{"type": "text", "text": _QUESTION}, picture]
            held = None if page.photo is None else await _held(session, pool, state, key, model, shown)
            photo_cost = None if page.photo is None else cost(page, _QUESTION, page.photo)
            text_held = await _held(session, pool, state, key, model, _TEXT)
            rows.append(Row(model, held, photo_cost, text_held, cost(page, _TEXT)))
    return rows


async def _held(
    session: aiohttp.ClientSession, pool: asyncpg.Pool, state: StackState, key: str, model: str, content: Any
) -> int:
    body = {"model": model, "max_tokens": _MOST_TOKENS, "messages": [{"role": "user", "content": content}]}
    headers = {"Authorization": f"Bearer {key}"}
    async with session.post(f"{state.gateway_url}/v1/chat/completions", json=body, headers=headers) as response:
        if response.status != 200:
            raise RuntimeError(f"{model}: {response.status} {await response.text()}")
        call_id = UUID(response.headers["x-treasurer-call-id"])
    for _ in range(100):
        held = await pool.fetchval("SELECT held_nano FROM ledger WHERE call_id = $1 AND state = 'posted'", call_id)
        if held is not None:
            return int(held)
        await pool.execute("SELECT pg_sleep(0.1)")  # the cost is posted after the answer was sent
    raise RuntimeError(f"the call {call_id} at {model} was not posted within ten seconds")
