"""`treasurer models` on a real stack: the data of LiteLLM Proxy's models, as text for people and as JSON for
programs."""

from __future__ import annotations

import json

import pytest
from openai import APIStatusError

from benchmarks.overspend.models import WITH_A_FEE
from gateway.stack.state import StackState
from tests.integration.administering import Treasurer
from tests.integration.caller import open_caller, said
from tests.stack_configuration import NOT_SERVED


async def test_the_models_of_a_running_stack(treasurer_on_stack: Treasurer) -> None:
    listed = await treasurer_on_stack("models", "--json")
    assert listed.code == 0, listed.err
    found = {model["model"]: model for model in json.loads(listed.out)}

    (gpt,) = found["gpt-4o"]["deployments"]
    plain, priority = gpt["token_prices"]  # https://developers.openai.com/api/docs/pricing
    prices = plain["nano_dollars_per_million_tokens"]
    assert (prices["input"], prices["output"], prices["cached"]) == (2_500_000_000, 10_000_000_000, 1_250_000_000)
    assert (priority["service_tier"], priority["nano_dollars_per_million_tokens"]["output"]) == ("priority", 17 * 10**9)
    assert (found["gpt-4o"]["max_input_tokens"], found["gpt-4o"]["max_output_tokens"]) == (128_000, 16_384)

    (sonnet,) = found["claude-sonnet-5-5"]["deployments"]
    assert sonnet["region_multipliers_in_ten_thousandths"] == {"us": 11_000}
    assert found["local/qwen3-8b"]["free"]
    assert len(found["gpt-4o-mini"]["deployments"]) == 2

    reasons = {name: model["why_not_served"] or "" for name, model in found.items() if not model["served"]}
    assert reasons.keys() == NOT_SERVED
    assert "treasurer_most: {searches" in reasons["research"]
    assert "'input_cost_per_image', and nothing bounds it; set it to 0 in model_info" in reasons["research-bounded"]
    assert "set provider_specific_entry in model_info to one without it" in reasons["opus-at-warp"]
    assert "'output_cost_per_answer', and Treasurer does not know it; set it to 0" in reasons[WITH_A_FEE]
    assert "list each model by its name" in reasons["openai/*"]
    assert found["research-served"]["treasurer_most"]["searches"] == 3

    table = await treasurer_on_stack("models")
    assert table.code == 0, table.err
    lines = table.out.splitlines()
    (row,) = (line.split() for line in lines if line.strip().startswith("claude-sonnet-5-5 "))
    assert row == ["claude-sonnet-5-5", "$2.00", "$10.00", "$0.10", "$2.50", "1,000,000", "128,000"]
    (note,) = (line for line in lines if line.startswith("  claude-sonnet-5-5: "))
    assert "in region us ×1.1" in note
    (reason,) = (line for line in lines if line.startswith("  openai/*: "))
    assert reason == f"  openai/*: {reasons['openai/*']}"

    one = await treasurer_on_stack("models", "claude-sonnet-5-5")
    assert one.code == 0, one.err
    assert "in region us ×1.1" in one.out
    assert "1,000,000 tokens" in one.out
    none = await treasurer_on_stack("models", "gpt-5000")
    assert (none.code, none.out) == (1, "")
    assert "The model 'gpt-5000' does not exist. Known models: " in none.err


async def test_i1_a_price_that_an_operator_put_out_of_force_is_served_and_a_pattern_is_not(
    stack: StackState,
) -> None:
    async with open_caller(stack) as caller:
        await caller.call(model="research-served", messages=said(), max_tokens=50)
        for name, why in (
            ("openai/*", "list each model by its name"),
            ("openai/gpt-4.1-nano", "does not exist"),  # and is not served at the prices of the pattern `openai/*`
        ):
            with pytest.raises(APIStatusError, match=why):
                await caller.call(model=name, messages=said(), max_tokens=50)
