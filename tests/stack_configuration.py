"""LiteLLM's configuration for the stack that tests share: what config/litellm.yaml ships, and more models.

What must hold:
- Nothing that config/litellm.yaml ships is changed.
- Tests that take deployments out of use have models of their own, so that they need not wait for the end of a cooldown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from benchmarks.overspend.models import WITH_A_FEE, more_models

ROOT = Path(__file__).parent.parent
#: A model that searches as often as it likes, and whose images LiteLLM's map prices without any limit on their number.
RESEARCHER = "gemini/deep-research-pro-preview-12-2025"
MOST = {"searches": 3}
#: Models whose price Treasurer cannot bound, so that it does not serve them (`treasurer models` says why).
NOT_SERVED = frozenset({"research", "research-bounded", "sonar-deep-research", WITH_A_FEE, "openai/*", "opus-at-warp"})
#: Models with two deployments each, like gpt-4o-mini, and with its provider, prices and retries.
BALANCED = tuple(f"balanced-{number}" for number in range(4))
BALANCED_UNDERLYING = "gpt-4o-mini"
#: One more of them, whose cooldown is long enough for a test to make some calls in it on a busy machine.
OUT_OF_USE, _COOLDOWN_S = "out-of-use", 10


def stack_configuration() -> dict[str, Any]:
    """The shipped configuration with models that search, models that are not served, and models to take out of use."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "litellm.yaml").read_text(encoding="utf-8"))
    config["model_list"] += [
        *more_models(),
        _deployment("research", RESEARCHER),
        _deployment("research-bounded", RESEARCHER, treasurer_most=MOST),
        _deployment("research-served", RESEARCHER, treasurer_most=MOST, input_cost_per_image=0),
        _deployment("opus-at-warp", "anthropic/claude-opus-4-5", provider_specific_entry={"warp": 2}),
        _deployment("openai/*", "openai/*", input_cost_per_token=1e-06, output_cost_per_token=1e-06),
        *(
            _deployment(name, f"openai/{BALANCED_UNDERLYING}", id=f"{name}-{side}")
            for name in BALANCED
            for side in "ab"
        ),
        *(
            _deployment(
                OUT_OF_USE, f"openai/{BALANCED_UNDERLYING}", id=f"{OUT_OF_USE}-{side}", cooldown_time=_COOLDOWN_S
            )
            for side in "ab"
        ),
    ]
    retries = config["router_settings"]["model_group_retry_policy"]
    retries |= dict.fromkeys((*BALANCED, OUT_OF_USE), retries[BALANCED_UNDERLYING])
    return config


def _deployment(name: str, model: str, **info: Any) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_key": "os.environ/NO_SUCH_KEY"},
        "model_info": info,
    }
