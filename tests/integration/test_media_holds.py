"""A small budget is not starved by an image, a PDF or a recording; and none of them costs more than was held (I1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import APIStatusError

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said
from tests.llm_service.wire.media_files import data_url, pdf, png, wav

PIXEL = {"type": "image_url", "image_url": {"url": data_url("image/png", png(1, 1))}}
PAGE = {"type": "file", "file": {"file_data": data_url("application/pdf", pdf()), "filename": "one.pdf"}}
SOUND = data_url("audio/wav", wav(300, rate=8_000))  # Google bills 9,600 tokens for this sound
MODELS = [
    "claude-haiku-5-5",
    "claude-haiku-4-5",
    "claude-sonnet-5-5",
    "gemini-2.5-flash",
    "gemini-2.5-pro",
    "gpt-4o",
    "gpt-4o-mini",
]


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


def asked(part: dict[str, Any], script: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": said("What is this?", script)[0]["content"]}, part]}]


@pytest.mark.parametrize("model", MODELS)
async def test_i1_one_pixel_and_one_page_hold_at_most_three_times_their_cost(caller: Caller, model: str) -> None:
    for part in (PIXEL, PAGE):
        await caller.call(model=model, max_tokens=50, messages=asked(part, {"output_tokens": 50}))
    for entry in await caller.agrees(2):
        assert entry["cost_nano"] <= entry["held_nano"] <= 3 * entry["cost_nano"], dict(entry)


async def test_a_small_image_is_served_by_a_budget_that_is_almost_unspent(caller: Caller) -> None:
    """Once the hold was $4.00, the price of the whole context window, and the call was refused."""
    await caller.budget("1", window="day")
    await caller.call(model="claude-sonnet-5-5", max_tokens=50, messages=asked(PIXEL))
    (entry,) = await caller.agrees(1)
    assert entry["held_nano"] < 10_000_000


@pytest.mark.parametrize(
    "part",
    [{"type": "file", "file": {"file_data": SOUND}}, {"type": "image_url", "image_url": {"url": SOUND}}],
    ids=["file", "image_url"],
)
async def test_i1_audio_is_held_and_posted_as_audio_whatever_field_carries_it(
    caller: Caller, part: dict[str, Any]
) -> None:
    """Once audio was held and posted at the price of text."""
    await caller.call(model="gemini-2.5-flash", max_tokens=50, messages=asked(part))
    (entry,) = await caller.agrees(1)
    assert 9_600_000 <= entry["cost_nano"] <= entry["held_nano"] <= 1.2 * entry["cost_nano"]


async def test_i1_audio_that_does_not_fit_is_refused_before(caller: Caller) -> None:
    """Once $0.90 of audio passed a limit of $0.40."""
    await caller.budget("0.005", window="day")
    with pytest.raises(APIStatusError) as refused:
        await caller.call(model="gemini-2.5-flash", messages=asked({"type": "file", "file": {"file_data": SOUND}}))
    assert refused.value.status_code in (402, 429)
    await caller.agrees(0)


async def test_a_cache_is_held_for_only_if_the_request_asks_for_one(caller: Caller) -> None:
    """Once every call was held at the price of writing to a cache."""
    text = "x" * 9_500
    await caller.call(model="claude-sonnet-5-5", max_tokens=16, messages=[{"role": "user", "content": text}])
    (entry,) = await caller.agrees(1)
    # $2 and $10 for a million tokens of input and output, plus 10 % for data residency.
    assert entry["held_nano"] <= 9_800 * 2_200 + 16 * 11_000
