"""`treasurer models` on a real stack: the data of LiteLLM Proxy's models, as text for people and as JSON for
programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import APIStatusError

from benchmarks.overspend.models import WITH_A_FEE, more_models
from gateway.stack.state import StackState
from tests.integration.caller import open_caller, said
from tests.integration.stacks import ROOT, another_stack

#: A model that searches as often as it likes, and whose images LiteLLM's map prices without any limit on their number.
RESEARCHER = "gemini/deep-research-pro-preview-12-2025"
MOST = {"searches": 3}


def deployment(name: str, model: str, **info: Any) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_key": "os.environ/NO_SUCH_KEY"},
        "model_info": info,
    }


@pytest.fixture(scope="module")
def models_stack(tmp_path_factory: pytest.TempPathFactory, stop_with_us: Callable[[int], None]) -> Iterator[StackState]:
    """A stack that also has models which are not served, and the same models configured as the reasons advise."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "litellm.yaml").read_text(encoding="utf-8"))
    config["model_list"] += [
        *more_models(),
        deployment("research", RESEARCHER),
        deployment("research-bounded", RESEARCHER, treasurer_most=MOST),
        deployment("research-served", RESEARCHER, treasurer_most=MOST, input_cost_per_image=0),
        deployment("opus-at-warp", "anthropic/claude-opus-4-5", provider_specific_entry={"warp": 2}),
        deployment("openai/*", "openai/*", input_cost_per_token=1e-06, output_cost_per_token=1e-06),
    ]
    folder: Path = tmp_path_factory.mktemp("models")
    folder.chmod(0o755)  # PostgreSQL may run under another account, which must be able to enter it
    with another_stack(folder, stop_with_us, config, {}) as state:
        yield state


def models(stack: StackState, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", "models", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TREASURER_DATA_DIR": str(stack.data_dir)},
        check=False,
    )


async def test_the_models_of_a_running_stack(models_stack: StackState) -> None:
    listed = models(models_stack, "--json")
    assert listed.returncode == 0, listed.stderr
    found = {model["model"]: model for model in json.loads(listed.stdout)}

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
    assert reasons.keys() == {
        "research", "research-bounded", "sonar-deep-research", WITH_A_FEE, "openai/*", "opus-at-warp"
    }  # fmt: skip
    assert "treasurer_most: {searches" in reasons["research"]
    assert "'input_cost_per_image', and nothing bounds it; set it to 0 in model_info" in reasons["research-bounded"]
    assert "set provider_specific_entry in model_info to one without it" in reasons["opus-at-warp"]
    assert "'output_cost_per_answer', and Treasurer does not know it; set it to 0" in reasons[WITH_A_FEE]
    assert "list each model by its name" in reasons["openai/*"]
    assert found["research-served"]["treasurer_most"]["searches"] == 3

    table = models(models_stack)
    assert table.returncode == 0, table.stderr
    lines = table.stdout.splitlines()
    (row,) = (line.split() for line in lines if line.strip().startswith("claude-sonnet-5-5 "))
    assert row == ["claude-sonnet-5-5", "$2.00", "$10.00", "$0.10", "$2.50", "1,000,000", "128,000"]
    (note,) = (line for line in lines if line.startswith("  claude-sonnet-5-5: "))
    assert "in region us ×1.1" in note
    (reason,) = (line for line in lines if line.startswith("  openai/*: "))
    assert reason == f"  openai/*: {reasons['openai/*']}"

    one = models(models_stack, "claude-sonnet-5-5")
    assert one.returncode == 0, one.stderr
    assert "in region us ×1.1" in one.stdout
    assert "1,000,000 tokens" in one.stdout
    none = models(models_stack, "gpt-5000")
    assert (none.returncode, none.stdout) == (1, "")
    assert "The model 'gpt-5000' does not exist. Known models: " in none.stderr


async def test_i1_a_price_that_an_operator_put_out_of_force_is_served_and_a_pattern_is_not(
    models_stack: StackState,
) -> None:
    async with open_caller(models_stack) as caller:
        await caller.call(model="research-served", messages=said(), max_tokens=50)
        for name, why in (
            ("openai/*", "list each model by its name"),
            ("openai/gpt-4.1-nano", "does not exist"),  # and is not served at the prices of the pattern `openai/*`
        ):
            with pytest.raises(APIStatusError, match=why):
                await caller.call(model=name, messages=said(), max_tokens=50)
