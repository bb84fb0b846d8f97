"""Models that search the web, or run other tools, without being asked to. Pure data, and its look-up.

What must hold (I1): a search is charged in addition to the tokens. So a model that searches automatically is served
only if the number of its searches has a bound and a search has a price. A model that is not listed here searches only
with a hosted tool, and requests for hosted tools are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Searching:
    """How a model searches. `once`: exactly once for each request; otherwise the model decides how often.

    `context` is the search context if a request names none: 0 low, 1 medium, 2 high.
    """

    once: bool
    context: int = 1


#: By the model's name at its provider, with LiteLLM's prefix. The first pattern that matches is used.
_SEARCHING: tuple[tuple[re.Pattern[str], Searching], ...] = (
    # It makes "as many searches as it needs": https://docs.perplexity.ai/docs/getting-started/pricing (2026-10-19)
    (re.compile(r"deep-?research"), Searching(once=False, context=0)),
    # Each request costs a fee, which depends on the search context. That is low by default (same page).
    (re.compile(r"^perplexity/"), Searching(once=True, context=0)),
    (re.compile(r"/perplexity/"), Searching(once=True, context=2)),  # via another provider: the highest fee
    # These models "always retrieve information from the web before responding":
    # https://platform.openai.com/docs/guides/tools-web-search (Chat Completions)
    (re.compile(r"-search-(preview|api)(-|$)"), Searching(once=True, context=1)),
    # OpenRouter's web plug-in, Groq's compound systems, and names that suggest a search. Nothing limits the number of
    # searches.
    (re.compile(r":online$|(^|/)compound(-|$)|-search$|-online$"), Searching(once=False)),
)


def searching(underlying: str) -> Searching | None:
    """How a model searches automatically; None: it does not. `underlying` is the model's name at its provider."""
    name = underlying.lower()
    return next((how for pattern, how in _SEARCHING if pattern.search(name)), None)
