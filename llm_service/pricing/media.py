"""How many tokens an image or a file can be, by the rule that its provider has published. Pure.

What must hold (I1):
  A rule never gives less than what the provider bills.
  Where there is no rule, the model's context window is the bound. Where that is not known either, the request is refused.

To add a provider: a row for each family of its models, with the address of the page that states the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_service.wire.requests import FILE, IMAGE_LOW


@dataclass(frozen=True, slots=True)
class ImageRule:
    """The most tokens that one image becomes, for models whose name at the provider begins with `prefix`.

    `low_tokens` is for an image of which the request asks for low detail.
    """

    prefix: str
    tokens: int
    low_tokens: int

    @classmethod
    def tiled(cls, prefix: str, base: int, tile: int) -> ImageRule:
        """OpenAI's rule: a base, and a number for each tile of 512 pixels. Images are scaled down to at most 8 tiles."""
        return cls(prefix, base + 8 * tile, base)

    @classmethod
    def whole(cls, prefix: str, tokens: int) -> ImageRule:
        """An image is at most `tokens` tokens, whatever its size and detail."""
        return cls(prefix, tokens, tokens)


#: The first rule whose prefix fits is used. So a longer prefix stands before a shorter one with which it begins.
#: https://platform.openai.com/docs/guides/images-vision#calculating-costs
_RULES = (
    ImageRule.tiled("openai/gpt-4o-mini", base=2833, tile=5667),
    ImageRule.tiled("openai/gpt-4o", base=85, tile=170),
    ImageRule.whole("openai/gpt-4.1-mini", 2500),
    ImageRule.whole("openai/gpt-4.1-nano", 3800),
    ImageRule.tiled("openai/gpt-4.1", base=85, tile=170),
)


def media_tokens(underlying: str, media: Sequence[str], window: int | None) -> int | None:
    """The most tokens that these images and files are for a model. None: nothing bounds them.

    `underlying` is the model's name at its provider, `media` the kinds that a parsed request lists, `window` the
    model's context window.
    """
    if not media:
        return 0
    rule = next((rule for rule in _RULES if underlying.startswith(rule.prefix)), None)
    if rule is None or FILE in media:
        return window
    return sum(rule.low_tokens if kind == IMAGE_LOW else rule.tokens for kind in media)
