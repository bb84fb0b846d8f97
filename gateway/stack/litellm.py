"""How the stack runs LiteLLM Proxy: its effective configuration and its command line. Pure.

What must hold:
A real provider is called only with keys that the operator set.
A model without any keys is served by the simulated provider alone; no model is partly real and partly simulated.
LiteLLM listens on the loopback interface only.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

_REFERENCE = "os.environ/"
#: The paths of the simulated provider, by the provider whose wire format it serves there. A deployment with its own
#: `api_base` is served in OpenAI's format, under `_OWN_SERVER`.
_BASES = {
    "openai": "/openai/v1",
    "anthropic": "/anthropic",
    "gemini": "/google",
    "perplexity": "/perplexity",
    "openrouter": "/openrouter/v1",
    "xai": "/xai/v1",
    "deepseek": "/deepseek",
}
_OWN_SERVER = "/local/v1"
_NO_KEY = "simulated-no-key-needed"

#: Variables of our environment that LiteLLM must not get: with these it would connect to its own database, or run slower.
NOT_INHERITED = (
    "DATABASE_URL",
    "DIRECT_URL",
    "DATABASE_HOST",
    "DATABASE_NAME",
    "DATABASE_USERNAME",
    "DATABASE_PASSWORD",
    "PYTHONDONTWRITEBYTECODE",
    "CONFIG_FILE_PATH",
    "WORKER_CONFIG",
    "LITELLM_LICENSE",
)


class ConfigError(Exception):
    """`config/litellm.yaml` cannot be used as it stands. The message names the entry."""


@dataclass(frozen=True, slots=True)
class EffectiveConfig:
    """The configuration that LiteLLM is started with, and the names of the models, grouped by who serves them."""

    config: dict[str, Any]
    real: list[str]
    own: list[str]  # the models of `real` that only servers on this machine serve
    simulated: list[str]
    left_out: list[str]  # models without keys, if there is no simulated provider
    variables: frozenset[str]  # the environment variables that the deployments name: keys and addresses of providers


def effective_config(config: dict[str, Any], environ: Mapping[str, str], provider_url: str | None) -> EffectiveConfig:
    """Decide for each model who serves it. `provider_url` is the simulated provider's root; None: there is none.

    Raises:
        ConfigError: an entry of `model_list` lacks what LiteLLM needs, or cannot be simulated.
    """
    deployments = cast("list[dict[str, Any]]", copy.deepcopy(config.get("model_list") or []))
    names = list(dict.fromkeys(_name(deployment) for deployment in deployments))
    has_keys = {name: [d for d in deployments if _name(d) == name and _keys_present(d, environ)] for name in names}
    effective: list[dict[str, Any]] = []
    for deployment in deployments:
        real = has_keys[_name(deployment)]
        if real:
            effective.extend([deployment] if deployment in real else [])
        elif provider_url is not None:
            effective.append(_simulated(deployment, provider_url.rstrip("/")))
    rest = copy.deepcopy({key: value for key, value in config.items() if key != "model_list"})
    unserved = [name for name in names if not has_keys[name]]
    return EffectiveConfig(
        config={**_without_idle_retries(rest, effective), "model_list": effective},
        real=[name for name in names if has_keys[name]],
        own=[name for name in names if has_keys[name] and all(_is_local(d, environ) for d in has_keys[name])],
        simulated=unserved if provider_url is not None else [],
        left_out=unserved if provider_url is None else [],
        variables=frozenset(name for d in deployments for name in _references(d["litellm_params"])),
    )


def own_prices(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The prices in the configuration of simulated deployments, by the provider's name of the model.

    For the simulated provider's `--own-prices`: it bills what an operator says that a model costs there, and can bill
    models that its price list lacks.
    """
    prices: dict[str, dict[str, Any]] = {}
    for deployment in cast("list[dict[str, Any]]", config.get("model_list") or []):
        parameters = cast("dict[str, Any]", deployment["litellm_params"])
        information = cast("dict[str, Any]", deployment.get("model_info") or {})
        named = {
            key: value
            for key, value in {**information, **parameters}.items()
            if "_cost_per_" in key or "_token_cost" in key
        }
        if named and information.get("treasurer_simulated") is True:
            prices[str(parameters["model"]).partition("/")[2]] = named
    return prices


def proxy_command(
    *, python: Path, config_path: Path, port: int, workers: int, host: str = "127.0.0.1"
) -> tuple[list[str], dict[str, str]]:
    """The command that starts LiteLLM Proxy, and the variables that make it fast.

    `config_path` is the file of the effective configuration, alone in its folder, because LiteLLM looks for plugins in
    that folder first. The caller removes `NOT_INHERITED` from the environment and adds LITELLM_MASTER_KEY, the
    providers' keys, TREASURER_… and PYTHONPATH.
    """
    command = [
        str(python),
        *("-c", "from litellm.proxy.proxy_cli import run_server; run_server()"),
        *("--config", str(config_path)),
        *("--host", host),
        *("--port", str(port)),
        *("--num_workers", str(workers)),
        # Longer than any client keeps an idle connection, so that the client closes it and no request is lost.
        *("--keepalive_timeout", "75"),
        # A worker takes ten to thirty seconds to import LiteLLM; uvicorn would kill it after five.
        *("--timeout_worker_healthcheck", "120"),
    ]
    return command, dict(_FASTEST)


#: Each of these was measured to save time for a call or for the start, or turns off something that the stack does not use.
_FASTEST = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "true",
    "PYTHON_GC_THRESHOLD": "5000,20,20",
    "PYTHONUNBUFFERED": "1",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "true",
    "DISABLE_ADMIN_UI": "true",
    "NO_DOCS": "true",
    "NO_REDOC": "true",
}


def _without_idle_retries(config: dict[str, Any], effective: list[dict[str, Any]]) -> dict[str, Any]:
    """Leave out the retries of models with only one deployment: LiteLLM would pause, then call the same one again."""
    router = cast("dict[str, Any]", config.get("router_settings") or {})
    policies = cast("dict[str, Any] | None", router.get("model_group_retry_policy"))
    if policies is not None:
        served = Counter(_name(deployment) for deployment in effective)
        router["model_group_retry_policy"] = {name: policy for name, policy in policies.items() if served[name] > 1}
    return config


def _name(deployment: Mapping[str, Any]) -> str:
    name = deployment.get("model_name")
    if not isinstance(name, str) or not isinstance(deployment.get("litellm_params"), dict):
        raise ConfigError(f"an entry of model_list lacks model_name or litellm_params; it has {sorted(deployment)}")
    return name


def _keys_present(deployment: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    return all(environ.get(variable) for variable in _references(deployment["litellm_params"]))


def _is_local(deployment: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether a deployment's address is on this machine: no provider is paid for it, unless that server asks one."""
    base = deployment["litellm_params"].get("api_base")
    if not isinstance(base, str):
        return False
    try:
        host = urlsplit(
            environ.get(base.removeprefix(_REFERENCE), "") if base.startswith(_REFERENCE) else base
        ).hostname
    except ValueError:
        return False
    try:
        return host == "localhost" or (host is not None and ip_address(host).is_loopback)
    except ValueError:  # a name, and not an IP address
        return False


def _references(value: object) -> Iterator[str]:
    """The environment variables that a value names, at any depth."""
    if isinstance(value, str) and value.startswith(_REFERENCE):
        yield value.removeprefix(_REFERENCE)
    elif isinstance(value, dict):
        for item in cast("dict[str, object]", value).values():
            yield from _references(item)


def _simulated(deployment: dict[str, Any], provider_url: str) -> dict[str, Any]:
    """The same deployment, but at the simulated provider. The model stays the same, and so does its price in LiteLLM."""
    parameters = cast("dict[str, Any]", deployment["litellm_params"])
    provider = str(parameters.get("model", "")).partition("/")[0]
    if provider not in _BASES:
        raise ConfigError(
            f"{_name(deployment)}: the simulated provider does not speak {provider or 'an unnamed provider'!r}; "
            f"set {', '.join(_references(parameters)) or 'its key'}, or take it out of config/litellm.yaml"
        )
    base = _OWN_SERVER if "api_base" in parameters else _BASES[provider]
    information = cast("dict[str, Any]", deployment.get("model_info") or {})
    return {
        **deployment,
        "litellm_params": {**parameters, "api_base": f"{provider_url}{base}", "api_key": _NO_KEY},
        "model_info": {**information, "treasurer_simulated": True},
    }
