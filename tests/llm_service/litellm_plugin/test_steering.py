"""Fields and headers that would make LiteLLM do something else than was held for. auth_checks.py compares them with
LiteLLM's own list."""

from __future__ import annotations

import pytest

from llm_service.litellm_plugin.steering import steering_fields, steering_headers


def litellms_own(name: str) -> bool:
    return name in ("api_base", "metadata", "num_retries", "tags")


@pytest.mark.parametrize(
    ("names", "steering"),
    [
        ([], []),
        (["model", "messages", "max_tokens", "service_tier"], []),
        (["metadata", "tags"], []),
        (["num_retries", "api_base", "model"], ["api_base", "num_retries"]),
        (["max_output_tokens", "candidateCount", "extra_body"], ["candidateCount", "extra_body", "max_output_tokens"]),
    ],
)
def test_i1_fields_that_steer_are_named_in_order(names: list[str], steering: list[str]) -> None:
    assert steering_fields(dict.fromkeys(names, 1), litellms_own) == steering


@pytest.mark.parametrize(
    ("value", "steers"),
    [
        ({"metadata": {"a": "b"}, "prompt_cache_retention": "24h"}, False),
        ({}, False),
        ({"metadata": {}, "max_tokens": 100_000}, True),
        ({"model": "gpt-4o"}, True),
        ({"generationConfig": {}}, True),
        ("metadata", True),
        (["metadata"], True),
        (None, True),
    ],
)
def test_i1_what_goes_past_litellm_names_no_other_output_or_model(value: object, steers: bool) -> None:
    assert steering_fields({"model": "m", "extra_body": value}, litellms_own) == (["extra_body"] if steers else [])


@pytest.mark.parametrize(
    ("name", "steers"),
    [
        ("X-LiteLLM-Num-Retries", True),
        ("litellm-timeout", True),
        ("anthropic-beta", True),
        ("OpenAI-Organization", True),
        ("x-mcp-auth", True),
        ("authorization", False),
        ("content-type", False),
        ("x-request-id", False),
    ],
)
def test_i1_headers_that_steer_are_found_in_any_spelling(name: str, steers: bool) -> None:
    assert steering_headers([name]) == ([name] if steers else [])
