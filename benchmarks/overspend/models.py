"""The models of the scenarios that config/litellm.yaml does not ship, as deployments in LiteLLM's format.

What must hold: nothing here tells a gateway what a call costs. Each reads its own prices; only the last model has a price
of its own, whose name no gateway knows.
"""

from __future__ import annotations

from typing import Any

#: Costs as gpt-4o-mini, and a fee for each answer besides.
WITH_A_FEE = "gpt-4o-mini-with-a-fee"
FEE_NANO = 400_000

_KEY = "os.environ/OVERSPEND_NO_SUCH_KEY"


def more_models() -> list[dict[str, Any]]:
    """Deployments to add to the `model_list` of config/litellm.yaml."""
    names = {
        "gpt-4o-search-preview": "openai/gpt-4o-search-preview",
        "sonar": "perplexity/sonar",
        "sonar-deep-research": "perplexity/sonar-deep-research",
        "deepseek-flash": "deepseek/deepseek-flash",
        "openai/gpt-4o-mini": "openrouter/openai/gpt-4o-mini",
    }
    made: list[dict[str, Any]] = [
        {"model_name": name, "litellm_params": {"model": model, "api_key": _KEY}} for name, model in names.items()
    ]
    prices = {"input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7, "output_cost_per_answer": FEE_NANO / 10**9}
    made.append(
        {
            "model_name": WITH_A_FEE,
            "litellm_params": {"model": f"openai/{WITH_A_FEE}", "api_key": _KEY},
            "model_info": {"mode": "chat", "max_input_tokens": 128_000, "max_output_tokens": 16_384, **prices},
        }
    )
    return made
