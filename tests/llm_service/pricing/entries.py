"""Entries of `/model/info`, for tests."""

from __future__ import annotations

from typing import Any

PRICED = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "litellm_provider": "openai", "mode": "chat"}


def entry(name: str = "m", id_: str = "d1", underlying: str = "openai/m", **info: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": underlying}, "model_info": PRICED | {"id": id_} | info}
