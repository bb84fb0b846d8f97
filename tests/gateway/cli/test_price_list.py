"""What `treasurer models` shows of a model."""

from __future__ import annotations

import json
from typing import Any

from gateway.cli.price_list import besides, detail_lines, list_row, model_fields, price_rows
from llm_service.pricing.model_info import read_models
from llm_service.pricing.models import Model

PLAIN = {"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05, "litellm_provider": "openai", "mode": "chat"}


def entry(id_: str = "d1", underlying: str = "openai/m", **info: Any) -> dict[str, Any]:
    return {"model_name": "m", "litellm_params": {"model": underlying}, "model_info": PLAIN | {"id": id_} | info}


def model(*entries: dict[str, Any]) -> Model:
    return read_models(entries or [entry()])["m"]


def besides_of(**info: Any) -> str:
    return besides(model(entry(**info)))


def test_the_list_has_dollars_per_million_tokens_and_the_limits() -> None:
    made = entry(cache_read_input_token_cost=1.25e-07, max_input_tokens=128_000, max_output_tokens=16_384)
    assert list_row(model(made)) == {
        "model": "m",
        "input": "$2.50",
        "output": "$10.00",
        "cached": "$0.125",
        "cache write": "$2.50",
        "max input": "128,000",
        "max output": "16,384",
    }


def test_of_two_deployments_the_list_has_the_highest_of_each_price() -> None:
    other = entry("d2", input_cost_per_token=1e-06, output_cost_per_token=2e-05, input_cost_per_request=0.01)
    both = model(entry(), other)
    row = list_row(both)
    assert (row["input"], row["output"], row["max input"]) == ("$2.50", "$20.00", None)
    assert besides(both) == "each call $0.01"


def test_what_is_charged_besides_tokens() -> None:
    assert besides_of() == ""
    assert besides_of(input_cost_per_request=0.0004, output_cost_per_request=0.0000000001) == "each call $0.0004000001"
    named = {"search_context_size_low": 0.03, "search_context_size_medium": 0.035, "search_context_size_high": 0.05}
    by_context = "by search context: low $0.03, medium $0.035, high $0.05"
    assert besides_of(search_context_cost_per_query=named) == f"each search {by_context} (medium unless named)"
    searching = model(entry(underlying="perplexity/sonar", search_context_cost_per_query=named))
    assert besides(searching) == f"each call {by_context} (low unless named)"
    assert besides_of(citation_cost_per_token=2e-06) == "citation tokens $2.00 per million"


def test_media_and_reasoning_where_they_have_prices_of_their_own() -> None:
    assert besides_of(input_cost_per_audio_token=1e-04, output_cost_per_image_token=3e-05) == (
        "audio input $100.00; image output $30.00"
    )
    assert besides_of(output_cost_per_reasoning_token=3e-06) == "reasoning $3.00"
    assert besides_of(cache_creation_input_token_cost_above_1hr=4e-06) == "1 h cache write $4.00"


def test_what_multiplies_the_price_and_when_it_is_lower() -> None:
    assert besides_of(provider_specific_entry={"us": 1.1, "fast": 6}) == "in region us ×1.1; at speed fast ×6"
    in_europe = entry(regional_processing_uplift_multiplier_eu=1.1)
    in_europe["litellm_params"]["api_base"] = "https://eu.api.openai.com/v1"
    assert "every call ×1.1" in besides(model(in_europe))
    lower = {"input_cost_per_token": 1e-06}
    weekend = {"hours_utc": "00:00-00:00", "weekdays": ["sat", "sun"]}
    hours = {"hours_utc": "16:30-00:30", "windows": [weekend], "weekday_timezone": "Asia/Shanghai"}
    assert besides_of(off_peak_pricing=lower | hours) == (
        "cheaper 16:30–00:30 UTC, 00:00–00:00 UTC on Sat, Sun in Asia/Shanghai"
    )


def test_the_list_names_other_prices_and_the_full_view_has_them() -> None:
    made = model(
        entry(
            input_cost_per_token_above_200k_tokens=5e-06,
            input_cost_per_token_priority=4.25e-06,
            output_cost_per_token_priority=1.7e-05,
            input_cost_per_audio_token=1e-04,
            off_peak_pricing={"hours_utc": "16:30-00:30", "input_cost_per_token": 1e-06},
        )
    )
    shown = besides(made).split("; ")
    assert shown[-2:] == ["other prices above 200,000 input tokens", "other prices for service tier priority"]
    rows = {str(row["for"]): row for row in price_rows(made)}
    assert {name: (row["input"], row["output"]) for name, row in rows.items()} == {
        "default": ("$2.50", "$10.00"),
        "above 200,000 input tokens": ("$5.00", "$10.00"),
        "priority": ("$4.25", "$17.00"),
        "priority, above 200,000 input tokens": ("$5.00", "$17.00"),
        "cheaper hours": ("$1.00", "$10.00"),
        "cheaper hours, above 200,000 input tokens": ("$5.00", "$10.00"),
    }
    assert rows["default"]["audio input"] == "$100.00"
    assert "image input" not in rows["default"]  # its price is the same as that of text


def test_a_free_model_and_one_with_the_most_that_an_operator_named() -> None:
    assert besides_of(treasurer_free=True) == "free"
    most = {"searches": 3, "citation_tokens": 20_000}
    assert besides_of(treasurer_most=most) == "at most 3 searches, 20,000 citation tokens in one call (treasurer_most)"


def test_a_model_that_is_not_served_has_its_reason_and_no_price() -> None:
    made = model(entry(output_cost_per_answer=0.1))
    assert "Not served: it has a price 'output_cost_per_answer'" in "\n".join(detail_lines(made))
    assert price_rows(made) == []
    fields = model_fields(made)
    assert (fields["served"], fields["deployments"], fields["why_not_served"]) == (False, [], made.unpriced)


def test_one_model_in_full() -> None:
    made = entry(max_output_tokens=50, treasurer_quality=70, supports_vision=True, input_cost_per_request=0.005)
    assert detail_lines(model(made)) == [
        "m: chat, openai",
        "Input: no limit is known.",
        "Output: at most 50 tokens.",
        "Quality, by the operator: 70.",
        "Supports: vision.",
        "Besides: each call $0.005.",
    ]
    two = detail_lines(model(made, entry("d2", litellm_provider="azure")))
    assert two[0] == "m: chat, azure, openai"
    assert "Besides, at d1: each call $0.005." in two


def test_for_programs_each_price_is_an_integer_with_its_unit() -> None:
    made = model(
        entry(
            input_cost_per_request=0.0000000001,
            provider_specific_entry={"us": 1.1},
            citation_cost_per_token=2e-06,
            off_peak_pricing={"hours_utc": "16:30-00:30", "input_cost_per_token": 1e-06},
            treasurer_most={"searches": 3},
        )
    )
    fields = json.loads(json.dumps(model_fields(made)))
    assert (fields["served"], fields["why_not_served"], fields["free"]) == (True, None, False)
    assert fields["treasurer_most"] == {"searches": 3, "citation_tokens": 0, "reasoning_tokens": 0}
    (card,) = fields["deployments"]
    assert (card["deployment"], card["provider"]) == ("d1", "openai")
    plain, lower = card["token_prices"]
    assert plain == {
        "service_tier": "default",
        "cheaper_hours": False,
        "above_input_tokens": 0,
        "nano_dollars_per_million_tokens": {
            "input": 2_500_000_000,
            "output": 10_000_000_000,
            "cached": 2_500_000_000,
            "cache_write": 2_500_000_000,
            "1_h_cache_write": 2_500_000_000,
            "reasoning": 10_000_000_000,
        },
    }
    assert (lower["cheaper_hours"], lower["nano_dollars_per_million_tokens"]["input"]) == (True, 1_000_000_000)
    assert card["femto_dollars_per_request"] == {"low": 100_000, "medium": 100_000, "high": 100_000}
    assert card["nano_dollars_per_million_citation_tokens"] == 2_000_000_000
    assert card["region_multipliers_in_ten_thousandths"] == {"us": 11_000}
    assert card["cheaper_hours_utc"] == [{"weekdays": [], "weekdays_in": "UTC", "from": "16:30", "until": "00:30"}]
