"""What a model does without being asked: it searches, reads what it has found, and thinks. All of it is billed.

What must hold: these are knobs of `script.py`, and a script changes each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: OpenAI's search models search once for each call of chat completions; Perplexity's answers always use a search,
#: which the fee for the request pays for. Deep research searches as often as it likes: no parameter limits that.
_ONE_SEARCH: Mapping[str, Any] = {"searches": 1}
_DEEP_RESEARCH: Mapping[str, Any] = {"searches": 24, "citation_tokens": 4_000, "reasoning_tokens": 12_000}


def habits(face: str, model: str) -> Mapping[str, Any]:
    """The knobs that apply to this model when a script does not change them."""
    if face == "openai" and ("-search-preview" in model or "-search-api" in model):
        return _ONE_SEARCH
    if face == "perplexity" and "deep-research" in model:
        return _DEEP_RESEARCH
    return {}
