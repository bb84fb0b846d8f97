"""The models of the scenarios that config/litellm.yaml does not ship, as deployments in LiteLLM's format.

What must hold: a gateway reads its own prices. Only two models have prices here, as they would in an operator's
configuration: OpenRouter's model, which LiteLLM's map lacks, and the last one, which also has a price under a name that
no gateway knows.
"""

from __future__ import annotations

from typing import Any

#: A model that costs as much as gpt-4o-mini, plus a fee for each answer.
WITH_A_FEE = "gpt-4o-mini-with-a-fee"
FEE_NANO = 400_000
#: A model served by OpenRouter, which reports the cost of each call.
ROUTED = "openai/gpt-4o-mini"

_KEY = "os.environ/OVERSPEND_NO_SUCH_KEY"


def more_models() -> list[dict[str, Any]]:
    """Deployments to add to the `model_list` of config/litellm.yaml."""
    names = {
        "gpt-4o-search-preview": "openai/gpt-4o-search-preview",
        "sonar": "perplexity/sonar",
        "sonar-deep-research": "perplexity/sonar-deep-research",
        "deepseek-flash": "deepseek/deepseek-flash",
    }
    made: list[dict[str, Any]] = [
        {"model_name": name, "litellm_params": {"model": model, "api_key": _KEY}} for name, model in names.items()
    ]
    limits = {"mode": "chat", "max_input_tokens": 128_000, "max_output_tokens": 16_384}
    prices = {"input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7}
    fee = {"output_cost_per_answer": FEE_NANO / 10**9}
    no_fee: dict[str, float] = {}
    for name, model, more in (
        (ROUTED, f"openrouter/{ROUTED}", no_fee),
        (WITH_A_FEE, f"openai/{WITH_A_FEE}", fee),
    ):
        parameters = {"model": model, "api_key": _KEY}
        information = {**limits, **prices, **more}
        made.append({"model_name": name, "litellm_params": parameters, "model_info": information})
    return made
