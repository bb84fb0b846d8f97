"""A report of usage that cannot be true is not believed, and no report causes an error."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.money import MAX_COST_NANO
from llm_service.types import Usage
from llm_service.usage import (
    dearest_reading,
    more_usage,
    most_tokens,
    most_used,
    named_cost_nano,
    read_columns,
    read_usage,
    reported_cost,
    says_too_little,
    total,
)
from tests.examples import examples

NUMBERS = st.one_of(st.integers(-10, 10**12), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
DETAILS = st.one_of(
    NUMBERS,
    st.dictionaries(
        st.sampled_from(["cached_tokens", "cache_creation_tokens", "cache_write_tokens", "reasoning_tokens",
                         "cache_creation_token_details"]),
        st.one_of(NUMBERS, st.dictionaries(st.just("ephemeral_1h_input_tokens"), NUMBERS)),
    ),
)  # fmt: skip
REPORTS = st.one_of(
    NUMBERS,
    st.lists(NUMBERS),
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details",
                         "completion_tokens_details", "cache_read_input_tokens", "cache_creation_input_tokens", "cost"]),
        DETAILS,
    ),
)  # fmt: skip


@given(REPORTS)
@settings(max_examples=examples(400), deadline=None)
def test_a_part_is_never_more_than_its_whole(report: object) -> None:
    usage = read_usage(report)
    if usage is None:
        return
    assert usage.input_tokens > 0
    assert min(usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens, usage.cache_write_1h_tokens) >= 0
    assert usage.cached_tokens + usage.cache_write_tokens <= usage.input_tokens <= 2_000_000_000
    assert usage.cache_write_1h_tokens <= usage.cache_write_tokens
    assert usage.reasoning_tokens <= usage.output_tokens <= 2_000_000_000


@given(REPORTS)
@settings(max_examples=examples(100), deadline=None)
def test_a_reported_cost_is_a_whole_number_or_nothing(report: object) -> None:
    reported = reported_cost(report)
    assert reported is None or (type(reported) is int and reported >= 0)


@pytest.mark.parametrize(
    "report",
    [None, {}, [], "x", 1, {"prompt_tokens": 0, "completion_tokens": 0}, {"total_tokens": 9}, {"prompt_tokens": None},
     {"prompt_tokens": "12", "completion_tokens": 3.5}, {"prompt_tokens": True}, {"prompt_tokens": 0, "completion_tokens": 7}, {"prompt_tokens": -5}, {"prompt_tokens": 10**12}],
)  # fmt: skip
def test_an_empty_report_is_none(report: object) -> None:
    assert read_usage(report) is None


@pytest.mark.parametrize(
    "parts",
    [
        {"prompt_tokens_details": {"cached_tokens": 99}},
        {"cache_read_input_tokens": 8, "cache_creation_input_tokens": 9},
        {"prompt_tokens_details": {"cache_creation_tokens": 11}},
        {"completion_tokens_details": {"reasoning_tokens": 6}},
    ],
)
def test_parts_that_are_more_than_their_whole_are_not_believed(parts: dict[str, Any]) -> None:
    """If it were believed, tokens that were not cached could be charged as cached, or tokens beside the total be left
    out."""
    report = {"prompt_tokens": 10, "completion_tokens": 5} | parts
    assert read_usage(report) is None
    dearest = dearest_reading(report)
    assert dearest is not None
    assert dearest.input_tokens + dearest.output_tokens > 15


REPORT = {"prompt_tokens": 108, "completion_tokens": 3256}


def test_reasoning_is_beside_the_completion_where_the_provider_counts_so() -> None:
    report = REPORT | {"completion_tokens_details": {"reasoning_tokens": 100}}
    beside, within = read_usage(report, "perplexity"), read_usage(report, "openai")
    assert beside is not None
    assert within is not None
    assert (beside.output_tokens, beside.reasoning_tokens) == (3356, 100)
    assert (within.output_tokens, within.reasoning_tokens) == (3256, 100)


@pytest.mark.parametrize(
    ("model", "output_tokens"),
    [
        ("perplexity/sonar-deep-research", 3356),
        ("sonar-deep-research", 3356),
        (None, 3356),  # the dearer reading
        ("perplexity/sonar-reasoning-pro", 3256),  # its reasoning is part of the answer
        ("perplexity/openai/gpt-5.2", 3256),
    ],
)
def test_of_perplexitys_models_only_deep_research_reasons_beside_its_answer(
    model: str | None, output_tokens: int
) -> None:
    usage = read_usage(REPORT | {"completion_tokens_details": {"reasoning_tokens": 100}}, "perplexity", model)
    assert usage is not None
    assert (usage.output_tokens, usage.reasoning_tokens) == (output_tokens, 100)


def test_what_is_used_beyond_text_is_read() -> None:
    usage = read_usage(
        REPORT
        | {
            "prompt_tokens_details": {
                "audio_tokens": 1, "image_tokens": 2, "video_tokens": 3, "web_search_requests": 4, "cached_tokens": 9,
                "cached_tokens_details": {"audio_tokens": 1},
            },
            "completion_tokens_details": {"audio_tokens": 5, "image_tokens": 6, "video_tokens": 7},
            "citation_tokens": 8,
            "num_search_queries": 3,
            "inference_geo": "US",
            "speed": "standard",
            "search_context_size": "high",
        }
    )  # fmt: skip
    assert usage == Usage(
        108, 9, 0, 3256, 0, 0, 1, 1, 2, 3, 5, 6, 7, 8, 4, region="us", speed="standard", search_context="high"
    )  # fmt: skip
    assert usage is not None
    assert read_columns(asdict(usage), more_usage(usage)) == usage
    assert total([usage, Usage(1, searches=1)]) == replace(usage, input_tokens=109, searches=5)


def test_i2_no_number_is_too_large_for_the_ledger() -> None:
    most = {"prompt_tokens": 2 * 10**9, "completion_tokens": 2 * 10**9, "reasoning_tokens": 2 * 10**9}
    usage = read_usage(most, "perplexity")
    assert usage is not None
    summed = total([usage, usage])
    assert max(usage.output_tokens, summed.output_tokens, summed.input_tokens) < 2**31


def test_whole_numbers_with_a_decimal_point_are_numbers() -> None:
    usage = read_usage({"prompt_tokens": 12.0, "completion_tokens": 3.0, "num_search_queries": 2.0})
    assert usage == Usage(12, output_tokens=3, searches=2)


@pytest.mark.parametrize(
    "more", [{"searches": "2"}, {"searches": [2]}, {"region": 5}, {"searches": None}, {"other": 1}]
)
def test_i2_a_usage_of_another_version_can_be_read(more: dict[str, Any]) -> None:
    assert read_columns(asdict(Usage(1)), more) == Usage(1)


@pytest.mark.parametrize(
    ("provider", "fields", "nano"),
    [
        ("openrouter", {"cost": 0.00014}, 140_000),
        ("openrouter", {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.0002}}, 200_000),
        ("openrouter", {"cost": 0.1, "cost_details": {"upstream_inference_cost": 0.09}}, 100_000_000),
        ("perplexity", {"cost": {"input_tokens_cost": 0.1, "total_cost": 0.005156}}, 5_156_000),
        ("perplexity", {"cost": 0.005156}, 5_156_000),
        ("xai", {"cost_in_usd_ticks": 51_560_001}, 5_156_001),
        ("xai", {"cost": 0.1}, None),
        ("openai", {"cost": 0.1}, None),
        (None, {"cost": 0.1}, None),
        ("openrouter", {"cost": "free"}, None),
        ("openrouter", {"cost": True}, None),
        ("openrouter", {"cost": -0.1}, None),  # a figure that is not understood does not mean free
        ("openrouter", {"cost": float("nan")}, None),
        ("openrouter", {"cost": float("inf")}, MAX_COST_NANO),
        ("openrouter", {"cost": 10**5000}, MAX_COST_NANO),
        ("openrouter", {"cost": 8e5, "is_byok": True, "cost_details": {"upstream_inference_cost": 9e5}}, MAX_COST_NANO),
        # This is only the fee, because the caller's own key pays the rest.
        ("openrouter", {"cost": 0.001, "is_byok": True}, None),
        ("xai", {"cost_in_usd_ticks": 10**60}, MAX_COST_NANO),
    ],
)
def test_what_a_provider_says_that_it_bills(provider: str | None, fields: dict[str, Any], nano: int | None) -> None:
    assert named_cost_nano(REPORT | fields, provider) == nano


@pytest.mark.parametrize(
    ("tokens", "text", "too_little"),
    [
        (0, "", False),
        (0, "a", True),
        (1, " " * 128, False),
        (1, " " * 129, True),
        (1, "字" * 43, True),
        (2, "字" * 43, False),
    ],
)
def test_a_text_is_not_fewer_tokens_than_its_bytes_allow(tokens: int, text: str, too_little: bool) -> None:
    assert says_too_little(tokens, text) is too_little


OPENAI = {
    "prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 30},
}  # fmt: skip
ANTHROPIC = {
    "prompt_tokens": 100, "completion_tokens": 5, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 30,
    "prompt_tokens_details": {
        "cached_tokens": 60, "cache_creation_tokens": 30,
        "cache_creation_token_details": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        (OPENAI, Usage(100, 40, 0, 50, 30, 0)),
        (ANTHROPIC, Usage(100, 60, 30, 5, 0, 20)),
        ({"prompt_tokens": 10, "completion_tokens": 0}, Usage(10)),
        ({"prompt_tokens": 10, "prompt_tokens_details": None, "completion_tokens_details": 3}, Usage(10)),
    ],
)
def test_the_forms_of_providers(report: dict[str, Any], usage: Usage) -> None:
    assert read_usage(report) == usage


@pytest.mark.parametrize(
    ("report", "nano"),
    [(None, None), ({}, None), ({"cost": 1}, None), ({"litellm_cost": None}, None), ({"litellm_cost": True}, None), ({"litellm_cost": "1"}, None), ({"litellm_cost": 0}, 0),
     ({"litellm_cost": 0.000123}, 123_000), ({"litellm_cost": 1}, 10**9), ({"litellm_cost": 3.2e12}, 10**15), ({"litellm_cost": float("nan")}, None), ({"litellm_cost": -1}, None)],
)  # fmt: skip
def test_the_proxys_cost(report: object, nano: int | None) -> None:
    assert reported_cost(report) == nano


@given(st.builds(Usage, *[st.integers(0, 10**6)] * 6))
def test_i1_what_another_tokenizer_counted_is_taken_with_half_as_much_again_and_what_may_be_under_way(
    counted: Usage,
) -> None:
    most = most_used(counted)
    assert most.input_tokens >= 1.5 * counted.input_tokens - 0.5 + 16
    assert most.output_tokens >= 1.5 * counted.output_tokens - 0.5 + 32
    assert most_tokens(counted.output_tokens) * 2 <= 3 * counted.output_tokens
    assert most.cached_tokens == 0, "nobody has reported what was read from a cache: it is charged in full"
    assert most.cache_write_1h_tokens == (most.input_tokens if counted.cache_write_1h_tokens else 0)
