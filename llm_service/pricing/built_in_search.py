"""Models that search the web, or run other tools, without being asked to. Pure data, and how to look a model up.

What must hold (I1): a search is charged beside the tokens, so a model that searches by itself is served only if what it
can search has a bound and a price. A model that is listed nowhere here searches only with a hosted tool, and those are
refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Searching:
    """How a model searches. `once`: exactly once for each request; else as often as it likes.

    `context` is the search context if a request names none: 0 low, 1 medium, 2 high.
    """

    once: bool
    context: int = 1


#: By the model's name at its provider, with LiteLLM's prefix. The first that fits is used.
_SEARCHING: tuple[tuple[re.Pattern[str], Searching], ...] = (
    # "as many searches as it needs": https://docs.perplexity.ai/docs/getting-started/pricing (2026-10-19)
    (re.compile(r"deep-?research"), Searching(once=False, context=0)),
    # A fee for each request by its search context, which is low unless the request says otherwise (same page).
    (re.compile(r"^perplexity/"), Searching(once=True, context=0)),
    (re.compile(r"/perplexity/"), Searching(once=True, context=2)),  # through another provider: the dearest
    # "always retrieve information from the web before responding":
    # https://platform.openai.com/docs/guides/tools-web-search (Chat Completions)
    (re.compile(r"-search-(preview|api)(-|$)"), Searching(once=True, context=1)),
    # OpenRouter's web plug-in, Groq's compound systems, and other names that say so: nothing bounds how often.
    (re.compile(r":online$|(^|/)compound(-|$)|-search$|-online$"), Searching(once=False)),
)


def searching(underlying: str) -> Searching | None:
    """How a model searches by itself, by its name at its provider. None: it does not."""
    name = underlying.lower()
    return next((how for pattern, how in _SEARCHING if pattern.search(name)), None)
