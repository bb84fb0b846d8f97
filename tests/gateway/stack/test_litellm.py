"""LiteLLM Proxy's configuration: who serves each model, and that no real provider is called by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.stack.litellm import NOT_INHERITED, ConfigError, effective_config, own_prices, proxy_command

PROVIDER = "http://127.0.0.1:9"
SHIPPED: dict[str, Any] = yaml.safe_load(
    (Path(__file__).resolve().parents[3] / "config" / "litellm.yaml").read_text(encoding="utf-8")
)
KEYS = {
    "OPENAI_API_KEY": "sk-1",
    "OPENAI_API_KEY_2": "sk-2",
    "ANTHROPIC_API_KEY": "sk-3",
    "GEMINI_API_KEY": "sk-4",
    "LOCAL_LLM_API_BASE": "http://127.0.0.1:8000/v1",
}


def deployments(config: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [deployment for deployment in config["model_list"] if deployment["model_name"] == name]


def parameters(config: dict[str, Any], name: str) -> dict[str, Any]:
    return deployments(config, name)[0]["litellm_params"]


def test_without_keys_everything_is_simulated() -> None:
    effective = effective_config(SHIPPED, {}, PROVIDER)
    names = list(dict.fromkeys(d["model_name"] for d in SHIPPED["model_list"]))
    assert (effective.real, effective.simulated, effective.left_out) == ([], names, [])
    assert len(effective.config["model_list"]) == len(SHIPPED["model_list"])
    for deployment in effective.config["model_list"]:
        assert deployment["litellm_params"]["api_base"].startswith(PROVIDER)
        assert "os.environ" not in deployment["litellm_params"]["api_key"]
        assert deployment["model_info"]["treasurer_simulated"] is True


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("gpt-4o", "/openai/v1"),
        ("text-embedding-3-small", "/openai/v1"),
        ("claude-haiku-5-5", "/anthropic"),
        ("gemini-2.5-flash", "/google"),
        ("local/llama-3.3-70b", "/local/v1"),
    ],
)
def test_each_provider_is_simulated_in_its_own_wire_and_keeps_its_model(name: str, base: str) -> None:
    effective = effective_config(SHIPPED, {}, PROVIDER + "/").config
    assert parameters(effective, name)["api_base"] == PROVIDER + base
    assert parameters(effective, name)["model"] == parameters(SHIPPED, name)["model"]


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("perplexity/sonar", "/perplexity"),
        ("openrouter/openai/gpt-4o-mini", "/openrouter/v1"),
        ("xai/grok-4.20", "/xai/v1"),
        ("deepseek/deepseek-flash", "/deepseek"),
    ],
)
def test_providers_that_are_not_shipped_are_simulated_too(model: str, base: str) -> None:
    config = {"model_list": [{"model_name": "one", "litellm_params": {"model": model, "api_key": "os.environ/A_KEY"}}]}
    assert parameters(effective_config(config, {}, PROVIDER).config, "one")["api_base"] == PROVIDER + base


def test_with_all_keys_everything_is_real_and_untouched() -> None:
    effective = effective_config(SHIPPED, KEYS, PROVIDER)
    assert effective.simulated == effective.left_out == []
    assert effective.config == SHIPPED


def test_one_provider_s_key_makes_its_models_real_alone() -> None:
    effective = effective_config(SHIPPED, {"ANTHROPIC_API_KEY": "sk"}, PROVIDER)
    assert effective.real == ["claude-haiku-5-5", "claude-haiku-4-5", "claude-sonnet-5-5"]
    assert "api_base" not in parameters(effective.config, "claude-haiku-5-5")
    assert parameters(effective.config, "claude-haiku-5-5")["api_key"] == "os.environ/ANTHROPIC_API_KEY"


@pytest.mark.parametrize(
    ("base", "environ", "own"),
    [
        ("http://127.0.0.1:8000/v1", {}, True),
        ("http://127.9.9.9/v1", {}, True),
        ("http://localhost:11434", {}, True),
        ("http://[::1]:8000/v1", {}, True),
        ("os.environ/BASE", {"BASE": "http://localhost:8000/v1"}, True),
        ("os.environ/BASE", {"BASE": "https://llm.example.com/v1"}, False),
        ("https://localhost.example.com/v1", {}, False),
        ("http://10.0.0.7:8000/v1", {}, False),
        ("http://[::1", {}, False),
        ("http://0x7f.1.evil", {}, False),
        (None, {}, False),
        (7, {}, False),
    ],
)
def test_a_model_with_a_literal_key_and_an_address_on_this_machine_is_the_operators_own(
    base: object, environ: dict[str, str], own: bool
) -> None:
    deployment = {"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "not-needed", "api_base": base}}
    effective = effective_config({"model_list": [deployment]}, environ, PROVIDER)
    assert (effective.real, effective.own, effective.simulated) == (["m"], ["m"] if own else [], [])


def test_a_model_that_is_only_partly_on_this_machine_is_real() -> None:
    here = {"model_name": "m", "litellm_params": {"model": "openai/m", "api_base": "http://127.0.0.1:1"}}
    there = {"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "sk-1"}}
    assert effective_config({"model_list": [here, there]}, {}, PROVIDER).own == []


def test_the_simulated_provider_is_nobodys_own_server() -> None:
    assert effective_config(SHIPPED, {}, PROVIDER).own == []
    assert effective_config(SHIPPED, KEYS, PROVIDER).own == ["local/llama-3.3-70b", "local/qwen3-8b"]


def test_an_empty_key_is_no_key() -> None:
    assert effective_config(SHIPPED, {"ANTHROPIC_API_KEY": ""}, PROVIDER).real == []


def test_a_model_is_never_half_real_and_half_simulated() -> None:
    effective = effective_config(SHIPPED, {"OPENAI_API_KEY": "sk"}, PROVIDER)
    (only,) = deployments(effective.config, "gpt-4o-mini")
    assert only["model_info"]["id"] == "openai-gpt-4o-mini-a"
    assert "treasurer_simulated" not in only["model_info"]


def test_without_a_simulated_provider_what_has_no_key_is_left_out() -> None:
    effective = effective_config(SHIPPED, {"GEMINI_API_KEY": "sk"}, None)
    assert effective.simulated == []
    assert effective.real == ["gemini-2.5-flash", "gemini-2.5-pro"]
    assert "gpt-4o" in effective.left_out
    assert {d["model_name"] for d in effective.config["model_list"]} == set(effective.real)


def test_the_router_retries_only_where_another_deployment_is_left() -> None:
    def policy(environ: dict[str, str]) -> dict[str, Any]:
        return effective_config(SHIPPED, environ, PROVIDER).config["router_settings"]["model_group_retry_policy"]

    assert list(policy({})) == ["gpt-4o-mini"]
    assert policy({"OPENAI_API_KEY": "sk"}) == {}


def test_the_given_configuration_is_not_changed() -> None:
    before = yaml.safe_dump(SHIPPED)
    effective_config(SHIPPED, {"OPENAI_API_KEY": "sk"}, PROVIDER)
    assert yaml.safe_dump(SHIPPED) == before


def test_the_simulated_provider_learns_the_prices_that_no_map_has() -> None:
    prices = own_prices(effective_config(SHIPPED, {}, PROVIDER).config)
    assert prices["llama-3.3-70b"] == {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7}
    assert set(prices) == {"llama-3.3-70b", "qwen3-8b"}
    assert own_prices(effective_config(SHIPPED, KEYS, PROVIDER).config) == {}


@pytest.mark.parametrize(
    ("deployment", "reason"),
    [
        ({"litellm_params": {"model": "openai/x"}}, "lacks model_name"),
        ({"model_name": "x"}, "lacks model_name"),
        ({"model_name": "x", "litellm_params": {"model": "bedrock/y", "api_key": "os.environ/AWS"}}, "set AWS"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(deployment: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        effective_config({"model_list": [deployment]}, {}, PROVIDER)


def test_an_empty_configuration_serves_nothing() -> None:
    assert effective_config({}, {}, PROVIDER).config == {"model_list": []}


def test_the_proxy_listens_on_the_loopback_interface_only() -> None:
    command, environ = proxy_command(python=Path("python"), config_path=Path("c.yaml"), port=4001, workers=3)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "4001"
    assert command[command.index("--num_workers") + 1] == "3"
    assert environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True", "it must not wait for the network"
    assert not environ.keys() & set(NOT_INHERITED)


def test_the_shipped_configuration_says_what_governance_needs() -> None:
    assert SHIPPED["litellm_settings"]["include_cost_in_streaming_usage"] is True
    assert SHIPPED["litellm_settings"]["drop_params"] is False
    assert SHIPPED["litellm_settings"]["global_disable_no_log_param"] is True
    assert SHIPPED["general_settings"]["custom_auth"] == "llm_service.litellm_plugin.hooks.custom_auth"
    assert SHIPPED["general_settings"]["master_key"].startswith("os.environ/")
    assert SHIPPED["router_settings"]["num_retries"] == 0
    assert "fallbacks" not in SHIPPED["router_settings"] | SHIPPED["litellm_settings"]
    ids = [deployment["model_info"]["id"] for deployment in SHIPPED["model_list"]]
    assert len(set(ids)) == len(ids), "a witness names a deployment by its id"
