"""The usage of a call: reads providers' reports, decides which of them are believed, and adds margins to counts. Pure.

What must hold:
  A report that cannot be true is not believed (I2):
    a report without input tokens, because LiteLLM may then have counted the output itself;
    a report whose parts add up to more than their total, unless the provider is known to report the parts in addition
    to it;
    a report with too few tokens for its text.
  The usage that replaces such a report is never less than the most expensive way to read it.
  A count that replaces a report always has the margins of this module added (I1).
Reports are in OpenAI's form, to which LiteLLM translates other providers' reports, plus the fields that LiteLLM passes
on unchanged: https://platform.openai.com/docs/api-reference/chat/object#chat/object-usage
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final, cast

from llm_service.money import MAX_COST_NANO, NANO_PER_DOLLAR, nano_from_reported_dollars
from llm_service.types import Usage

#: The length of the longest known tokens, in bytes (runs of spaces, in OpenAI's and Meta's vocabularies).
LONGEST_TOKEN = 128
#: The highest number of tokens, searches, … that is believed. The ledger has 32 bits for each number.
MOST_TOKENS = 2_000_000_000
#: The tokens that a provider adds around a text that was counted (the frame of a message, of a tool call …).
FRAME_TOKENS = 16
#: When a stream is cut, the provider may have generated this many tokens more than were seen.
IN_FLIGHT_TOKENS = 32
#: The error code of an attempt whose provider had sent more than was read. A count of such an attempt is not an upper
#: bound.
UNREAD = "owner_lost_unread"
#: The field of a stream's usage in which the plugin puts LiteLLM's own figure. The field `cost` has the provider's.
LITELLM_COST = "litellm_cost"

#: A provider, and those of its models that report reasoning tokens separately, and not as part of the completion's
#: tokens: https://docs.perplexity.ai/docs/getting-started/pricing (Sonar Deep Research). The reasoning of its other
#: models is part of the answer: https://docs.perplexity.ai/docs/sonar/models/sonar-reasoning-pro
_REASONING_BESIDE: Final = ("perplexity", "deep-research")
#: An xAI tick is 10⁻¹⁰ dollars: https://docs.x.ai/docs/models
_NANO_A_TICK: Final = Decimal("0.1")


def read_usage(report: object, provider: str | None = None, model: str | None = None) -> Usage | None:
    """The usage that an answer reports; None if the report is missing, not made of numbers, or contradicts itself.

    `provider` is LiteLLM's name of the provider, and `model` the model's name there, if they are known, because some
    providers and models count differently.
    """
    usage = _read(report, provider, model)
    return None if usage is None or _whole(usage) is not usage else usage


def dearest_reading(report: object, provider: str | None = None, model: str | None = None) -> Usage | None:
    """Read a report as `read_usage` does, but if its parts add up to more than their total, add the parts to the total."""
    usage = _read(report, provider, model)
    return None if usage is None else _whole(usage)


def _reasons_beside(provider: str | None, model: str | None) -> bool:
    """Whether reasoning is reported apart from the completion's tokens. Yes if the model is unknown, as that costs more."""
    name, models = _REASONING_BESIDE
    return provider == name and (model is None or models in model)


def _read(report: object, provider: str | None, model: str | None) -> Usage | None:
    if not isinstance(report, dict):
        return None
    fields = cast("dict[str, Any]", report)
    input_tokens = _tokens(fields, "prompt_tokens")
    output_tokens = _tokens(fields, "completion_tokens")
    if input_tokens == 0:
        return None
    prompt, completion = _details(fields, "prompt_tokens_details"), _details(fields, "completion_tokens_details")
    cached = max(_tokens(prompt, "cached_tokens"), _tokens(fields, "cache_read_input_tokens"))
    written = max(
        _tokens(prompt, "cache_creation_tokens"),
        _tokens(prompt, "cache_write_tokens"),
        _tokens(fields, "cache_creation_input_tokens"),
    )
    reasoning = max(_tokens(completion, "reasoning_tokens"), _tokens(fields, "reasoning_tokens"))
    cached_details = _details(prompt, "cached_tokens_details")
    return Usage(
        input_tokens=input_tokens,
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=min(output_tokens + (reasoning if _reasons_beside(provider, model) else 0), MOST_TOKENS),
        reasoning_tokens=reasoning,
        cache_write_1h_tokens=min(
            _tokens(_details(prompt, "cache_creation_token_details"), "ephemeral_1h_input_tokens"), written
        ),
        audio_input_tokens=_tokens(prompt, "audio_tokens"),
        cached_audio_tokens=_tokens(cached_details, "audio_tokens"),
        image_input_tokens=_tokens(prompt, "image_tokens"),
        video_input_tokens=_tokens(prompt, "video_tokens"),
        audio_output_tokens=_tokens(completion, "audio_tokens"),
        image_output_tokens=_tokens(completion, "image_tokens"),
        video_output_tokens=_tokens(completion, "video_tokens"),
        citation_tokens=_tokens(fields, "citation_tokens"),
        searches=max(
            _tokens(prompt, "web_search_requests"),
            _tokens(_details(fields, "server_tool_use"), "web_search_requests"),
            _tokens(fields, "num_search_queries"),
        ),
        region=_word(fields, "inference_geo"),
        speed=_word(fields, "speed"),
        search_context=_word(fields, "search_context_size"),
    )


def _whole(usage: Usage) -> Usage:
    """The usage itself if no total is less than the sum of its parts. Otherwise such parts are added to their total."""
    output_tokens = usage.output_tokens
    parts = usage.reasoning_tokens + usage.audio_output_tokens + usage.image_output_tokens + usage.video_output_tokens
    if parts > output_tokens:
        output_tokens += parts
    input_tokens = usage.input_tokens
    if usage.cached_tokens + usage.cache_write_tokens > input_tokens:
        input_tokens += usage.cached_tokens + usage.cache_write_tokens
    media = usage.audio_input_tokens + usage.image_input_tokens + usage.video_input_tokens
    if media > input_tokens:
        input_tokens += media
    if (input_tokens, output_tokens) == (usage.input_tokens, usage.output_tokens):
        return usage
    return replace(usage, input_tokens=input_tokens, output_tokens=output_tokens)


#: The fields of a usage that have their own columns in the ledger and in a witness. The other fields are in one JSON
#: column.
COLUMNS: Final = (
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
)
_NOTHING: Final = Usage()
_MORE: Final = tuple(name for name in Usage.__dataclass_fields__ if name not in COLUMNS)


def more_usage(usage: Usage) -> dict[str, int | str]:
    """The fields of a usage that have no column, by name. Fields that are zero or empty are left out."""
    return {name: value for name in _MORE if (value := getattr(usage, name))}


def read_columns(columns: Mapping[str, int], more: Mapping[str, Any]) -> Usage:
    """The usage of a row: its columns, and its `more_usage`. A field that is unknown or has an unexpected type is left
    out, because another version of Treasurer may have written the row.
    """
    known: dict[str, Any] = {
        name: more[name] for name in _MORE if type(more.get(name)) is type(getattr(_NOTHING, name))
    }
    return Usage(**{name: columns[name] for name in COLUMNS}, **known)


def total(usages: Sequence[Usage]) -> Usage:
    """The sum of all usages. In a field that is not a number, the first value that is not empty counts."""
    summed: dict[str, Any] = {}
    for name in Usage.__dataclass_fields__:
        values = [getattr(usage, name) for usage in usages]
        words = [value for value in values if isinstance(value, str)]
        summed[name] = next(filter(None, words), "") if words else min(sum(values), MOST_TOKENS)
    return Usage(**summed)


def named_cost_nano(report: object, provider: str | None) -> int | None:
    """The cost of a call that the provider itself reports, in nano-dollars, rounded up, at most `MAX_COST_NANO`. None: it
    reports none.

    Only fields that are known to be the provider's own bill are read:
    OpenRouter's `cost`, plus the other provider's bill if the call used the customer's own key there
    (https://openrouter.ai/docs/use-cases/usage-accounting), Perplexity's `cost.total_cost`
    (https://docs.perplexity.ai/api-reference/chat-completions-post) and xAI's `cost_in_usd_ticks`.
    """
    if not isinstance(report, dict):
        return None
    fields = cast("dict[str, Any]", report)
    if provider == "xai":
        ticks: object = fields.get("cost_in_usd_ticks")
        if type(ticks) is int and ticks >= 0:
            return int((min(ticks, MAX_COST_NANO * 10) * _NANO_A_TICK).to_integral_value(rounding=ROUND_CEILING))
        return None
    cost: object = fields.get("cost")
    if provider == "perplexity":
        return _dollars(cast("dict[str, Any]", cost).get("total_cost") if isinstance(cost, dict) else cost)
    if provider == "openrouter":
        own = _dollars(cost)
        elsewhere = _dollars(_details(fields, "cost_details").get("upstream_inference_cost"))
        if fields.get("is_byok") is not True:
            return own
        return None if own is None or elsewhere is None else min(own + elsewhere, MAX_COST_NANO)
    return None


def _dollars(value: object) -> int | None:
    """Dollars as nano-dollars. None: it is not an amount, or it is below zero (and so must not count as a price of zero)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:  # NaN is refused, too
        return None
    return nano_from_reported_dollars(min(value, MAX_COST_NANO // NANO_PER_DOLLAR))


def says_too_little(output_tokens: int, text: str) -> bool:
    """Whether a text is so long that this many tokens cannot account for it in any vocabulary."""
    # An answer that was cut may end with half a character, which is not valid UTF-8 but still counts.
    return len(text.encode("utf-8", "surrogatepass")) > LONGEST_TOKEN * output_tokens


def most_tokens(counted: int) -> int:
    """An upper bound for the tokens that a model's tokenizer makes of a text, from another tokenizer's count.

    It is one and a half times the count, because other tokenizers were seen to make up to a third more tokens.
    """
    return counted + counted // 2


def most_used(counted: Usage) -> Usage:
    """An upper bound for the usage of a stream that was cut, from LiteLLM's own count.

    LiteLLM's tokenizer may not be the provider's, and it counts only the part that LiteLLM had received.
    """
    input_tokens = most_tokens(counted.input_tokens) + FRAME_TOKENS
    # If the plugin reports cache writes, the request asked for a cache, and all of the input may have been written to
    # it.
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
    return _dollars(cast("dict[str, Any]", report).get(LITELLM_COST))


def _tokens(fields: Mapping[str, Any], name: str) -> int:
    """A number of tokens, searches, …; zero if there is none. Some servers write whole numbers as 12.0."""
    value: object = fields.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


def _details(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value: object = fields.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _word(fields: Mapping[str, Any], name: str) -> str:
    value: object = fields.get(name)
    return value.lower()[:32] if isinstance(value, str) and value.isprintable() else ""
