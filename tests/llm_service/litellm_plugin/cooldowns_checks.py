"""Which errors take a deployment out of use, with LiteLLM's own router. Run by run_checks.py."""

# pyright: basic, reportMissingImports=false, reportPrivateUsage=false

from __future__ import annotations

from litellm import Router
from litellm.exceptions import APIError
from litellm.router_utils import cooldown_handlers

from llm_service.litellm_plugin.cooldowns import cool_down_only_after_failures


async def _cooled_down(status: int) -> bool:
    """Whether the first of two deployments is out of use after its provider has answered once with this error."""
    deployments = [
        {"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "k"}, "model_info": {"id": name}}
        for name in ("a", "b")
    ]
    router = Router(model_list=deployments, cooldown_time=5)
    error = APIError(status, "refused", "openai", "m")
    return cooldown_handlers.set_cooldown_deployments(router, error, status, "a", 5)


async def check_litellm_takes_a_deployment_away_for_one_404() -> None:
    """What LiteLLM does without our module. If this fails, our module may not be needed any more."""
    decide = cooldown_handlers._is_cooldown_required
    cooldown_handlers._is_cooldown_required = getattr(decide, "__wrapped__", decide)
    try:
        assert await _cooled_down(404)
        assert await _cooled_down(401)
    finally:
        cooldown_handlers._is_cooldown_required = decide


async def check_a_caller_s_mistake_and_a_refused_key_take_no_deployment_away() -> None:
    for _ in range(2):
        cool_down_only_after_failures()
    for status in (401, 402, 403, 404, 400, 422):
        assert not await _cooled_down(status), status
    assert await _cooled_down(429)
    router_says = cooldown_handlers._is_cooldown_required
    for status, required in (("404", False), ("", False), (500, True), ("503", True), (408, True)):
        assert router_says(None, "a", status, "words") is required, status
