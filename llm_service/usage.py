"""What a provider reports about a call, as LiteLLM translates it to OpenAI's form. Pure.

What must hold: a report that cannot be true is not believed. A usage without any token of input is as
good as none (LiteLLM may have counted the output itself then), and so is one whose parts are more than their whole:
whoever believed it would charge cached tokens' price for what was none, or leave out what is billed beside it.
https://platform.openai.com/docs/api-reference/chat/object#chat/object-usage
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from llm_service.money import nano_from_reported_dollars
from llm_service.types import Usage

#: Bytes of the longest tokens there are (runs of spaces, in OpenAI's and Meta's vocabularies).
LONGEST_TOKEN = 128


def read_usage(report: object) -> Usage | None:
    """The usage of an answer, or None when the report is missing, empty or not numbers."""
    if not isinstance(report, dict):
        return None
    fields = cast("dict[str, Any]", report)
    input_tokens = _tokens(fields, "prompt_tokens")
    output_tokens = _tokens(fields, "completion_tokens")
    if input_tokens == 0:
        return None
    prompt = _details(fields, "prompt_tokens_details")
    cached = max(_tokens(prompt, "cached_tokens"), _tokens(fields, "cache_read_input_tokens"))
    written = max(
        _tokens(prompt, "cache_creation_tokens"),
        _tokens(prompt, "cache_write_tokens"),
        _tokens(fields, "cache_creation_input_tokens"),
    )
    usage = Usage(
        input_tokens=input_tokens,
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=output_tokens,
        reasoning_tokens=_tokens(_details(fields, "completion_tokens_details"), "reasoning_tokens"),
        cache_write_1h_tokens=min(
            _tokens(_details(prompt, "cache_creation_token_details"), "ephemeral_1h_input_tokens"), written
        ),
    )
    return None if contradicts_itself(usage) else usage


def contradicts_itself(usage: Usage) -> bool:
    """Whether a part is more than its whole."""
    return (
        usage.cached_tokens + usage.cache_write_tokens > usage.input_tokens
        or usage.reasoning_tokens > usage.output_tokens
    )


def says_too_little(output_tokens: int, text: str) -> bool:
    """Whether a text cannot be so few tokens: no vocabulary has longer ones."""
    # Half of a character, as a model that was cut leaves it, is no UTF-8, and counts all the same.
    return len(text.encode("utf-8", "surrogatepass")) > LONGEST_TOKEN * output_tokens


def reported_cost(report: object) -> int | None:
    """What LiteLLM says in a stream's usage that it cost, in nano-dollars."""
    if not isinstance(report, dict):
        return None
    cost: object = cast("dict[str, Any]", report).get("cost")
    return nano_from_reported_dollars(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) else None


def _tokens(fields: Mapping[str, Any], name: str) -> int:
    value: object = fields.get(name)
    return value if type(value) is int and 0 <= value <= 2_000_000_000 else 0


def _details(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value: object = fields.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
