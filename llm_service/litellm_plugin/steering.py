"""Fields and headers that steer LiteLLM, or a provider behind it, away from what the call's hold covers. Pure.

What must hold (I1):
  A granted request reaches the model, the address and the amount of output that its hold was computed for.
  LiteLLM's own parameters count as steering, except those that change nothing about the cost.
  `extra_body`, which LiteLLM passes on unread, may also contain only fields that change nothing about the cost.

The service itself lets none of these fields pass. This is a second check, for a body that did not go through the
service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llm_service.grants import EXTRA_BODY_FIELDS

#: Fields that are not LiteLLM's own parameters, but that name another model or another address, or that ask for more
#: output than `max_tokens` (Gemini obeys `max_output_tokens` instead of it, and `candidateCount` multiplies it).
_FIELDS = frozenset(
    {
        "additional_drop_params",
        "best_of",
        "candidateCount",
        "candidate_count",
        "content_policy_fallbacks",
        "context_window_fallbacks",
        "drop_params",
        "extra_headers",
        "extra_query",
        "generationConfig",
        "generation_config",
        "maxOutputTokens",
        "max_new_tokens",
        "max_output_tokens",
        "max_tokens_to_sample",
        "mock_testing_content_policy_fallbacks",
        "mock_testing_context_fallbacks",
        "mock_testing_fallbacks",
        "mock_testing_rate_limit_error",
        "modify_params",
        "num_retries_per_request",
    }
)
_HARMLESS_FIELDS = frozenset({"metadata", "tags"})
#: Prefixes of headers that steer LiteLLM (`x-litellm-num-retries`), or that it passes on to a provider (`anthropic-beta`).
_HEADERS = ("x-litellm-", "litellm-", "anthropic-", "openai-", "x-mcp-")


def steering_fields(fields: Mapping[str, Any], is_litellms_own: Callable[[str], bool]) -> list[str]:
    """The sorted names of the body's fields that steer. `is_litellms_own`: whether a field is LiteLLM's own parameter."""

    def steers(name: str, value: object) -> bool:
        if name == "extra_body":
            return not isinstance(value, dict) or not EXTRA_BODY_FIELDS.issuperset(value)  # pyright: ignore[reportUnknownArgumentType]  # JSON
        return name in _FIELDS or (name not in _HARMLESS_FIELDS and is_litellms_own(name))

    return sorted(name for name, value in fields.items() if steers(name, value))


def steering_headers(names: Iterable[str]) -> list[str]:
    """The sorted names of the headers that steer."""
    return sorted(name for name in names if name.lower().startswith(_HEADERS))
