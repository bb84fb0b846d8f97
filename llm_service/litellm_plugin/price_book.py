"""The version of each model's prices, as this worker of LiteLLM Proxy has them. Runs in LiteLLM's environment.

What must hold:
  A call is served only at the prices that its hold was computed with (I1).
  A model whose version cannot be computed (another LiteLLM) has none, and is served without this check.
  A pattern (`openai/*`) has no version. LiteLLM's page shows an entry for each model that fits it; these entries name
      the pattern, and the service serves none of them.

  A deployment's prices come from LiteLLM's map and from the deployment's own configuration. LiteLLM's router writes
      some settings of a deployment into the map's entry for its model, and then shows them for the model's other
      deployments, too. So the map is copied before there is a router, and each entry of the page names the settings
      that belong to another deployment.

LiteLLM reads its prices once, when it starts. So each worker computes a digest of the prices and bounds that its page
`/model/info` shows for a model, and adds the digest to that page as the model's version. The service reads the version
together with the prices, and names it in the grant. A worker that has another version refuses the call.
"""
# LiteLLM is in another environment than the type checker's, so its types are unknown here.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import litellm

from llm_service.grants import (
    BASE_STAMP,
    CACHES_STAMP,
    ENTRY_STAMP,
    PATTERN_STAMP,
    PRICES_STAMP,
    RETRIES_STAMP,
    SHARED_STAMP,
    USES_STAMP,
)
from llm_service.litellm_plugin.router_retries import retried_statuses

_log = logging.getLogger("treasurer.litellm_plugin")

#: Facts of a model, besides its costs, that change the amount that the service holds or posts for a call.
_DECIDING = frozenset({"id", "mode", "litellm_provider", "treasurer_free", USES_STAMP, CACHES_STAMP})

#: Fields of a model's entry whose names begin like this are facts about the model, and neither prices nor limits.
_NO_PRICES = ("supports_", "source", "metadata", "comment", "token_count_", "supported_endpoints")

#: Settings that LiteLLM keeps separately for each deployment.
_NOT_SHARED = frozenset({"id", "db_model"})

#: LiteLLM's price map as it was before a router changed it: LiteLLM loads the plugin before it makes its router.
_MAP = copy.deepcopy(litellm.model_cost)


def version_of(entries: Iterable[Mapping[str, Any]]) -> str:
    """The version of a model's prices, from its entries in `/model/info`: one for each deployment, in any order."""
    deployments = sorted(json.dumps(_deciding(entry), sort_keys=True, default=str) for entry in entries)
    return sha256("\n".join(deployments).encode()).hexdigest()[:16]


def _deciding(entry: Mapping[str, Any]) -> dict[str, Any]:
    information: Mapping[str, Any] = entry.get("model_info") or {}
    chosen = {
        name: value
        for name, value in information.items()
        if name in _DECIDING or name.startswith("max_") or "cost" in name or "pric" in name
        if name != PRICES_STAMP and value is not None
    }
    return {"model": (entry.get("litellm_params") or {}).get("model"), "info": chosen}


class PriceBook:
    """The versions of one worker's prices, computed at the first request and whenever LiteLLM has a new router.

    `registers`: this proxy writes each grant's use to the database before it asks a provider. Each model's entry says
    so.
    """

    def __init__(self, *, registers: bool = False) -> None:
        self._registers = registers
        self._router: object | None = None
        self._versions: dict[str, str] = {}

    def refuses(self, model: str | None, version: str | None) -> bool:
        """Whether a grant names another version than this worker's. A grant without a version is not refused here."""
        self.stamp()
        return version is not None and self._versions.get(model or "") != version

    def stamp(self) -> None:
        """Compute the versions, and put them where `/model/info` shows them. Has no effect until there is a new router."""
        proxy_server = sys.modules.get("litellm.proxy.proxy_server")  # none yet while LiteLLM loads the plugin
        router = getattr(proxy_server, "llm_router", None)
        if proxy_server is None or router is None or router is self._router:
            return
        self._router = router
        self._versions = {}
        try:
            for deployment in router.model_list:
                if "*" in str(deployment["model_name"]):
                    deployment["model_info"][PATTERN_STAMP] = str(deployment["model_name"])
                deployment["model_info"][CACHES_STAMP] = _adds_caches(router, deployment)
                if base := _openai_base():
                    deployment["model_info"][BASE_STAMP] = base
                if self._registers:
                    deployment["model_info"][USES_STAMP] = True
            self._versions = _stamp_versions(router, proxy_server._get_proxy_model_info, _MAP)
        except Exception as fault:  # noqa: BLE001  # another version of LiteLLM: calls are served without this check
            _log.exception("The versions of prices cannot be computed: %s", type(fault).__name__)
        try:
            _stamp_retries(router)
        except Exception as fault:  # noqa: BLE001  # another LiteLLM: the service assumes that it does not retry
            _log.exception("The statuses that the router retries cannot be read: %s", type(fault).__name__)


def _adds_caches(router: Any, deployment: Mapping[str, Any]) -> bool:
    """Whether LiteLLM may write parts of a request to a provider's cache although the request does not ask for it.

    https://docs.litellm.ai/docs/tutorials/prompt_caching (`cache_control_injection_points`); `enable_anthropic_prompt_caching`
    """
    settings = (deployment.get("litellm_params"), getattr(router, "default_litellm_params", None))
    named = (name for each in settings for name, value in dict(each or {}).items() if value)
    return bool(litellm.enable_anthropic_prompt_caching) or any(
        name.startswith("cache_control") or "prompt_caching" in name for name in named
    )


def _openai_base() -> str | None:
    """The address that LiteLLM uses for OpenAI's models if a deployment names none. None: OpenAI's usual one.

    The order in which settings are tried is that of `completion` in LiteLLM's main.py.
    """
    return litellm.api_base or os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_BASE") or None


def _shared(deployment: Mapping[str, Any], named: set[str]) -> list[str]:
    """The settings in a deployment's entry of LiteLLM's map that come from other deployments."""
    own = _set(deployment, "model_info") | _set(deployment, "litellm_params")
    return sorted(name for name in named - own if name not in _NOT_SHARED and not name.startswith("treasurer_"))


def _set(deployment: Mapping[str, Any], part: str) -> set[str]:
    return {name for name, value in dict(deployment.get(part) or {}).items() if value is not None}


def _stamp_retries(router: Any) -> None:
    for deployment in router.model_list:
        deployment["model_info"][RETRIES_STAMP] = retried_statuses(router, str(deployment["model_name"]))


def _listed(entry: Mapping[str, Any], price_map: Mapping[str, Any]) -> dict[str, Any]:
    """A deployment's prices in LiteLLM's map, because LiteLLM's page leaves out prices that its code does not know."""
    found: Mapping[str, Any] = price_map.get((entry.get("model_info") or {}).get("key") or "") or {}
    return {name: value for name, value in found.items() if not name.startswith(_NO_PRICES)}


def _key(entry: Mapping[str, Any]) -> object:
    """The name of a deployment's entry in LiteLLM's map, as LiteLLM's page reports it."""
    return (entry.get("model_info") or {}).get("key") or (entry.get("litellm_params") or {}).get("model")


def _stamp_versions(router: Any, shown: Any, price_map: Mapping[str, Any]) -> dict[str, str]:
    by_name: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}  # each deployment with its entry of the page
    named: dict[object, set[str]] = {}  # entry of LiteLLM's map → settings that any of its deployments has
    for deployment in router.model_list:
        entry = shown(model=copy.deepcopy(deployment))
        by_name.setdefault(str(deployment["model_name"]), []).append((deployment, entry))
        named.setdefault(_key(entry), set()).update(_set(deployment, "model_info"))
    versions: dict[str, str] = {}
    for name, deployments in by_name.items():
        if "*" in name:  # a pattern: the models that fit it are not known in advance
            continue
        for deployment, entry in deployments:
            stamps: dict[str, object] = {ENTRY_STAMP: _listed(entry, price_map)}
            if names := _shared(deployment, named[_key(entry)]):
                stamps[SHARED_STAMP] = names
            deployment["model_info"].update(stamps)
            entry["model_info"].update(stamps)
        versions[name] = version_of(entry for _, entry in deployments)
    for name, version in versions.items():
        for deployment, _ in by_name[name]:
            deployment["model_info"][PRICES_STAMP] = version
    for alias, target in (getattr(router, "model_group_alias", None) or {}).items():
        name = target.get("model") if isinstance(target, dict) else target
        if name in versions:
            versions[alias] = versions[name]
    return versions
