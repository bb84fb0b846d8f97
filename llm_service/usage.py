"""How many tokens a call used: which reports are believed, and the margins that are added to a count. Pure.

What must hold:
  A report that cannot be true is not believed (I2):
    one without any input tokens, because LiteLLM may then have counted the output itself;
    one whose parts are more than their whole, because it would charge the price of cached tokens for tokens that were
    not cached, or leave out tokens that are billed beside them;
    one with too few tokens for its text.
  A count that stands in for a report is always taken with the margins of this module (I1).
Reports are in OpenAI's form, to which LiteLLM translates those of other providers:
https://platform.openai.com/docs/api-reference/chat/object#chat/object-usage
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from llm_service.money import nano_from_reported_dollars
from llm_service.types import Usage

#: The longest tokens that are known, in bytes (runs of spaces, in OpenAI's and Meta's vocabularies).
LONGEST_TOKEN = 128
#: The tokens that a provider adds around a text that was counted (the frame of a message, of a tool call …).
FRAME_TOKENS = 16
#: The tokens that a provider may have generated, when a stream was cut, beyond those that were seen.
IN_FLIGHT_TOKENS = 32
#: The error code of an attempt of which the provider had sent more than was read, so that no count of it is an upper
#: bound.
UNREAD = "owner_lost_unread"
#: The field of a stream's report of usage in which the plugin puts LiteLLM's own figure. `cost` there is the provider's.
LITELLM_COST = "litellm_cost"


def read_usage(report: object) -> Usage | None:
    """The usage that an answer reports; None if the report is missing, not made of numbers, or contradicts itself."""
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
    """Whether a text is longer than so many tokens can be in any vocabulary."""
    # A model that was cut may leave half a character, which is not valid UTF-8 and still counts.
    return len(text.encode("utf-8", "surrogatepass")) > LONGEST_TOKEN * output_tokens


def most_tokens(counted: int) -> int:
    """An upper bound for the tokens that a model's tokenizer makes of a text, from another tokenizer's count.

    Half as much again, because other tokenizers were seen to make up to a third more than the one that counted.
    """
    return counted + counted // 2


def most_used(counted: Usage) -> Usage:
    """An upper bound for the usage of a stream that was cut, from LiteLLM's own count.

    LiteLLM's tokenizer may not be the provider's, and it counts only the part that LiteLLM had received.
    """
    input_tokens = most_tokens(counted.input_tokens) + FRAME_TOKENS
    # The plugin reports cache writes if the request asked for a cache: all of the input may have been written to it.
    written = input_tokens if counted.cache_write_1h_tokens else 0
    return Usage(
        input_tokens=input_tokens,
        output_tokens=most_tokens(counted.output_tokens) + IN_FLIGHT_TOKENS,
        cache_write_tokens=written,
        cache_write_1h_tokens=written,
    )


def reported_cost(report: object) -> int | None:
    """The cost that LiteLLM reports in a stream's usage, in nano-dollars."""
    if not isinstance(report, dict):
        return None
    cost: object = cast("dict[str, Any]", report).get(LITELLM_COST)
    return nano_from_reported_dollars(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) else None


def _tokens(fields: Mapping[str, Any], name: str) -> int:
    value: object = fields.get(name)
    return value if type(value) is int and 0 <= value <= 2_000_000_000 else 0


def _details(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value: object = fields.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
