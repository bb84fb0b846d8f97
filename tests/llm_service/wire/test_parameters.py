"""Which parameters can reach which provider. tests/integration/test_parameters.py tests that they do."""

from __future__ import annotations

from typing import Any

import pytest

from llm_service.errors import InvalidRequest
from llm_service.wire.parameters import as_sent, check_arrives

CLAUDE, GEMINI, OPENAI = ("anthropic",), ("gemini",), ("openai",)
CUSTOM = [{"type": "custom", "custom": {"name": "c"}}]
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}


def refused(data: dict[str, Any], providers: tuple[str, ...], *, always_thinks: bool = False) -> InvalidRequest | None:
    try:
        check_arrives(data, "the-model", providers, always_thinks=always_thinks)
    except InvalidRequest as error:
        return error
    return None


@pytest.mark.parametrize(
    ("providers", "param", "value"),
    [
        *[(each, "metadata", {"a": "b"}) for each in (CLAUDE, GEMINI, ("groq",), ("openai", "azure"))],
        *[(each, "prompt_cache_retention", "24h") for each in (CLAUDE, GEMINI, ("azure",))],
        *[(each, "prompt_cache_options", {"mode": "implicit"}) for each in (CLAUDE, GEMINI, ("bedrock",))],
        *[(each, "tool_choice", ALLOWED) for each in (CLAUDE, GEMINI)],
        *[(each, "min_p", 0.1) for each in (CLAUDE, GEMINI)],
        *[(each, "repetition_penalty", 1.1) for each in (CLAUDE, GEMINI, ("vertex_ai-language-models",))],
        *[(each, "tools", CUSTOM) for each in (CLAUDE, GEMINI)],
        (CLAUDE, "n", 2),
        (CLAUDE, "seed", 0),
        (CLAUDE, "service_tier", "flex"),
        (CLAUDE, "response_format", {"type": "json_object"}),
        (CLAUDE, "frequency_penalty", 0.1),
        (GEMINI, "parallel_tool_calls", False),
        (GEMINI, "thinking", {"type": "disabled"}),
        (OPENAI, "thinking", {"type": "enabled", "budget_tokens": 1024}),
    ],
)
def test_what_cannot_reach_a_provider_is_refused_by_name(providers: tuple[str, ...], param: str, value: object) -> None:
    error = refused({param: value}, providers)
    assert error is not None
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", param)
    assert "'the-model'" in error.message
    assert "itellm" not in error.message.lower()


@pytest.mark.parametrize(
    ("providers", "data"),
    [
        (CLAUDE, {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "store": False, "n": 1}),
        (CLAUDE, {"service_tier": "auto", "logit_bias": {}, "functions": [], "modalities": ["text"], "metadata": {}}),
        (CLAUDE, {"service_tier": "default", "seed": None, "min_p": 0, "repetition_penalty": 1}),
        (GEMINI, {"parallel_tool_calls": True, "service_tier": "auto", "store": False, "logit_bias": None}),
        (("bedrock",), {"service_tier": "auto", "metadata": {}, "prompt_cache_options": {}}),
    ],
)
def test_what_asks_for_nothing_is_left_out(providers: tuple[str, ...], data: dict[str, Any]) -> None:
    assert refused(data, providers) is None
    assert as_sent({"model": "m", **data}, providers) == {"model": "m"}


def test_a_provider_with_the_parameter_gets_what_asks_for_nothing_too() -> None:
    data = {"presence_penalty": 0, "n": 1, "service_tier": "auto", "parallel_tool_calls": True, "store": False}
    assert as_sent(data, OPENAI) == data
    assert as_sent({"frequency_penalty": 0, "n": 1}, GEMINI) == {"frequency_penalty": 0, "n": 1}


def test_what_litellm_would_keep_from_openai_goes_past_it() -> None:
    data = {
        "metadata": {"a": "b"},
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"ttl": "30m"},
        "tool_choice": ALLOWED,
    }
    assert refused(data, OPENAI) is None
    assert as_sent({"model": "m", **data}, OPENAI) == {"model": "m", "extra_body": data}
    assert as_sent({"tool_choice": "required"}, OPENAI) == {"tool_choice": "required"}


def test_one_of_several_providers_that_lacks_a_parameter_is_enough() -> None:
    assert refused({"seed": 1}, ("openai", "anthropic")) is not None
    assert as_sent({"n": 1}, ("openai", "anthropic")) == {}


@pytest.mark.parametrize("data", [{"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}])
def test_a_model_that_always_thinks_says_so(data: dict[str, Any]) -> None:
    assert refused(data, CLAUDE) is None
    error = refused(data, CLAUDE, always_thinks=True)
    assert error is not None
    assert error.param == next(iter(data))
