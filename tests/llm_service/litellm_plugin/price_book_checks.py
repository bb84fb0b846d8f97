"""The versions of prices, against LiteLLM's router. Run by run_checks.py."""

# pyright: basic, reportMissingImports=false, reportPrivateUsage=false

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from litellm import Router

from tests.llm_service.litellm_plugin.checking import Door, body, granted


def a_proxy_with(*deployments: dict[str, Any], **more: Any) -> Any:
    """LiteLLM's router, and the prices on LiteLLM's page of models."""
    router = Router(model_list=[json.loads(json.dumps(each)) for each in deployments], **more)

    def shown(model: dict[str, Any]) -> dict[str, Any]:
        named = {key: value for key, value in model["litellm_params"].items() if "cost" in key}
        return model | {"model_info": {**model["model_info"], **named}}

    return SimpleNamespace(llm_router=router, _get_proxy_model_info=shown)


def house(cost: float, name: str = "house", number: str = "h1") -> dict[str, Any]:
    parameters = {"model": "openai/house", "api_base": "http://127.0.0.1:1", "api_key": "k"}
    costs = {"input_cost_per_token": cost, "output_cost_per_token": cost}
    return {"model_name": name, "litellm_params": parameters | costs, "model_info": {"id": number}}


async def check_i1_a_call_of_other_prices_is_refused_and_its_grant_is_used_up() -> None:
    door = Door()
    sys.modules["litellm.proxy.proxy_server"] = proxy = a_proxy_with(  # type: ignore[assignment]
        house(1e-7), house(1e-7, number="h2"), house(1e-7, "wild/*", "w"), model_group_alias={"home": "house"}
    )
    try:
        stamped = {each["model_info"]["id"]: each["model_info"] for each in proxy.llm_router.model_list}
        listing = granted(b"", "/model/info", model=None)
        await door.ask(listing, b"", "/model/info", method="GET")
        version = stamped["h1"]["treasurer_prices"]
        assert version == stamped["h2"]["treasurer_prices"]
        assert "treasurer_prices" not in stamped["w"], "a wildcard's prices are not known"
        assert stamped["w"]["treasurer_pattern"] == "wild/*"
        assert "treasurer_pattern" not in stamped["h1"]
        content = body(model="house")
        now = granted(content, model="house", prices=version)
        await door.ask(now, content)
        await door.refused(401, "used before", now, content)
        await door.ask(granted(content, model="house"), content)  # a grant of a gateway of the previous version
        alias = body(model="home")
        await door.ask(granted(alias, model="home", prices=version), alias)
        gone = body(model="gone")
        await door.refused(409, "have changed", granted(gone, model="gone", prices=version), gone)

        sys.modules["litellm.proxy.proxy_server"] = a_proxy_with(house(1e-5), house(1e-7, number="h2"))  # type: ignore[assignment]
        stale = granted(content, model="house", prices=version)
        headers = await door.refused(409, "have changed", stale, content)
        assert headers["x-treasurer-refused"] == "prices_changed", headers
        await door.refused(401, "used before", stale, content)  # as when a balancer sends the request twice
        await door.ask(granted(content, model="house"), content)
    finally:
        del sys.modules["litellm.proxy.proxy_server"]


async def check_the_statuses_that_the_router_retries_are_shown_as_it_is_configured() -> None:
    door = Door()
    policy = {"house": {"RateLimitErrorRetries": 1, "ServiceUnavailableErrorRetries": 2, "TimeoutErrorRetries": 0}}
    for configured, shown in (
        ({"model_group_retry_policy": policy, "num_retries": 0}, [429, 503]),
        ({"num_retries": 0}, []),
        ({"num_retries": 1}, [400, 401, 404, 408, 429, 500, 503]),
    ):
        sys.modules["litellm.proxy.proxy_server"] = proxy = a_proxy_with(  # type: ignore[assignment]
            house(1e-7), house(1e-7, number="h2"), **configured
        )
        try:
            await door.ask(granted(b"", "/model/info", model=None), b"", "/model/info", method="GET")
            stamped = [each["model_info"]["treasurer_retries"] for each in proxy.llm_router.model_list]
            assert stamped == [shown, shown], (configured, stamped)
        finally:
            del sys.modules["litellm.proxy.proxy_server"]


async def check_i1_prices_are_compared_though_the_routers_retries_cannot_be_read() -> None:
    door = Door()
    sys.modules["litellm.proxy.proxy_server"] = proxy = a_proxy_with(house(1e-7))  # type: ignore[assignment]
    del proxy.llm_router.retry_policy
    try:
        content = body(model="house")
        stale = granted(content, model="house", prices="another version")
        await door.refused(409, "have changed", stale, content)
        stamped = proxy.llm_router.model_list[0]["model_info"]
        assert "treasurer_retries" not in stamped
        await door.ask(granted(content, model="house", prices=stamped["treasurer_prices"]), content)
    finally:
        del sys.modules["litellm.proxy.proxy_server"]


async def check_the_retries_are_shown_though_the_prices_cannot_be_read() -> None:
    door = Door()
    proxy = a_proxy_with(house(1e-7), num_retries=1)
    del proxy._get_proxy_model_info
    sys.modules["litellm.proxy.proxy_server"] = proxy  # type: ignore[assignment]
    try:
        await door.ask(granted(b"", "/model/info", model=None), b"", "/model/info", method="GET")
        assert proxy.llm_router.model_list[0]["model_info"]["treasurer_retries"] != []
    finally:
        del sys.modules["litellm.proxy.proxy_server"]


async def check_a_litellm_that_shows_its_prices_in_another_way_is_served_without_versions() -> None:
    door = Door()
    proxy = a_proxy_with(house(1e-7))
    del proxy._get_proxy_model_info
    sys.modules["litellm.proxy.proxy_server"] = proxy  # type: ignore[assignment]
    try:
        content = body(model="house")
        await door.ask(granted(content, model="house"), content)
        assert "treasurer_prices" not in proxy.llm_router.model_list[0]["model_info"]
    finally:
        del sys.modules["litellm.proxy.proxy_server"]


async def check_i1_a_proxy_that_asks_for_caches_on_its_own_account_says_so() -> None:
    import litellm

    points = [{"location": "message", "role": "system"}]
    marked = house(1e-7, "marked", "m")
    marked["litellm_params"]["cache_control_injection_points"] = points
    for given, everywhere, adds in (
        ({}, False, {"h1": False, "m": True}),
        ({}, True, {"h1": True, "m": True}),
        ({"default_litellm_params": {"cache_control_injection_points": points}}, False, {"h1": True, "m": True}),
    ):
        litellm.enable_anthropic_prompt_caching = everywhere
        sys.modules["litellm.proxy.proxy_server"] = proxy = a_proxy_with(house(1e-7), marked, **given)  # type: ignore[assignment]
        try:
            await Door().ask(granted(b"", "/model/info", model=None), b"", "/model/info", method="GET")
            stamped = {each["model_info"]["id"]: each["model_info"] for each in proxy.llm_router.model_list}
            assert {id_: info["treasurer_adds_caches"] for id_, info in stamped.items()} == adds, stamped
        finally:
            litellm.enable_anthropic_prompt_caching = False
            del sys.modules["litellm.proxy.proxy_server"]


async def check_i1_a_deployment_is_not_shown_with_the_settings_of_another_one() -> None:
    """LiteLLM writes what one deployment has set into its map, where all deployments of the model find it."""
    import litellm
    from litellm.proxy import proxy_server

    shipped = litellm.model_cost["claude-sonnet-5-5"]["provider_specific_entry"]
    changed = {"provider_specific_entry": {"us": 1.0}, "max_output_tokens": 7}
    first = {"model_name": "first", "litellm_params": {"model": "anthropic/claude-sonnet-5-5", "api_key": "k"}}
    second = {"model_name": "second", "litellm_params": {"model": "claude-sonnet-5-5", "api_key": "k"}}
    router = Router(model_list=[first | {"model_info": {"id": "d1"}}, second | {"model_info": {"id": "d2", **changed}}])
    proxy = SimpleNamespace(llm_router=router, _get_proxy_model_info=proxy_server._get_proxy_model_info)
    kept = sys.modules["litellm.proxy.proxy_server"]
    sys.modules["litellm.proxy.proxy_server"] = proxy  # type: ignore[assignment]
    try:
        await Door().ask(granted(b"", "/model/info", model=None), b"", "/model/info", method="GET")
        stamped = {each["model_info"]["id"]: each["model_info"] for each in router.model_list}
        page = proxy._get_proxy_model_info({**router.model_list[0]})["model_info"]
        assert page["max_output_tokens"] == 7, "LiteLLM shows it; if this fails, the stamp may not be needed any more"
        assert stamped["d1"]["treasurer_shared_prices"] == ["max_output_tokens", "provider_specific_entry"], stamped[
            "d1"
        ]
        assert stamped["d1"]["treasurer_price_entry"]["provider_specific_entry"] == shipped
        assert stamped["d1"]["treasurer_price_entry"]["max_output_tokens"] > 7
        assert "treasurer_shared_prices" not in stamped["d2"]
    finally:
        sys.modules["litellm.proxy.proxy_server"] = kept


async def check_i1_the_address_of_openais_models_is_shown_where_the_proxys_environment_names_it() -> None:
    import os

    for name, value, shown in (
        ("OPENAI_BASE_URL", "https://eu.api.openai.com/v1", "https://eu.api.openai.com/v1"),
        ("OPENAI_API_BASE", "https://us.api.openai.com/v1", "https://us.api.openai.com/v1"),
        ("OPENAI_BASE_URL", "", None),
    ):
        os.environ[name] = value
        sys.modules["litellm.proxy.proxy_server"] = proxy = a_proxy_with(house(1e-7))  # type: ignore[assignment]
        try:
            await Door().ask(granted(b"", "/model/info", model=None), b"", "/model/info", method="GET")
            assert proxy.llm_router.model_list[0]["model_info"].get("treasurer_price_base") == shown
        finally:
            del os.environ[name]
            del sys.modules["litellm.proxy.proxy_server"]
