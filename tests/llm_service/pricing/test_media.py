"""Tokens of images and files: a provider's rule, else the context window, else nothing."""

from __future__ import annotations

import pytest

from llm_service.pricing.media import media_tokens


@pytest.mark.parametrize(
    ("underlying", "media", "window", "tokens"),
    [
        ("openai/gpt-4o", (), None, 0),
        ("openai/gpt-4o", ("image", "image_low"), None, 85 + 8 * 170 + 85),
        ("openai/gpt-4o-mini", ("image",), None, 2833 + 8 * 5667),
        ("openai/gpt-4.1-2025-04-14", ("image",), None, 85 + 8 * 170),
        ("openai/gpt-4.1-mini", ("image_low",), None, 2500),
        ("openai/gpt-4.1-nano", ("image",), None, 3800),
        ("anthropic/claude", ("image",), 200_000, 200_000),
        ("anthropic/claude", ("image",), None, None),
        ("openai/gpt-4o", ("image", "file"), 128_000, 128_000),
        ("openai/gpt-4o", ("file",), None, None),
    ],
)
def test_i1_media_are_bounded_by_a_rule_or_by_the_window(
    underlying: str, media: tuple[str, ...], window: int | None, tokens: int | None
) -> None:
    assert media_tokens(underlying, media, window) == tokens
