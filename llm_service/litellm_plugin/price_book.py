"""The version of each model's prices, as this worker of LiteLLM Proxy has them. Runs in LiteLLM's environment.

What must hold: a call is served only at the prices that it was held for (I1). LiteLLM reads its prices once, at its
start; so each worker takes a digest of what its page `/model/info` shows of a model's prices and bounds, and stamps
that on the model. The service reads the stamp with the prices, and names it in the grant; a worker that has another
refuses. Where no stamp can be made (a wildcard, another LiteLLM) there is none, and the service names none.
"""
# LiteLLM is in another environment than the type checker's, and its objects are what they are at run time.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from llm_service.grants import PRICES_STAMP, RETRIES_STAMP, USES_STAMP
from llm_service.litellm_plugin.router_retries import retried_statuses

_log = logging.getLogger("treasurer.litellm_plugin")

#: What else than its costs changes what the service holds for a call, and what it posts.
_DECIDING = frozenset({"id", "mode", "litellm_provider", "treasurer_free", USES_STAMP})


def version_of(entries: Iterable[Mapping[str, Any]]) -> str:
    """The version of a model's prices, of its entries in `/model/info` (one for each deployment), in any order."""
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
    """The versions of one worker. Made at the first request, and again where LiteLLM has made a new router.

    `registers`: models also say that this proxy writes each grant's use to the database before it asks a provider.
    """

    def __init__(self, *, registers: bool = False) -> None:
        self._registers = registers
        self._router: object | None = None
        self._versions: dict[str, str] = {}

    def refuses(self, model: str | None, version: str | None) -> bool:
        """Whether a grant names a version that is not this worker's. One that names none is served, as it always was."""
        self.stamp()
        return version is not None and self._versions.get(model or "") != version

    def stamp(self) -> None:
        """Take the versions, and put them where `/model/info` shows them. Nothing happens the next times."""
        proxy_server = sys.modules.get("litellm.proxy.proxy_server")  # it loads the plugin before it is whole itself
        router = getattr(proxy_server, "llm_router", None)
        if proxy_server is None or router is None or router is self._router:
            return
        self._router = router
        try:
            for deployment in router.model_list:
                if self._registers:
                    deployment["model_info"][USES_STAMP] = True
                deployment["model_info"][RETRIES_STAMP] = retried_statuses(router, str(deployment["model_name"]))
            self._versions = _stamp(router, proxy_server._get_proxy_model_info)
        except Exception as fault:  # noqa: BLE001  # of another LiteLLM: calls are served without versions
            self._versions = {}
            _log.exception("The prices' versions cannot be taken: %s", type(fault).__name__)


def _stamp(router: Any, shown: Any) -> dict[str, str]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for deployment in router.model_list:
        by_name.setdefault(str(deployment["model_name"]), []).append(deployment)
    versions: dict[str, str] = {}
    for name, deployments in by_name.items():
        if "*" in name:  # stands for models whose prices are not known before one is asked for
            continue
        versions[name] = version_of([shown(model=copy.deepcopy(deployment)) for deployment in deployments])
    for name, version in versions.items():
        for deployment in by_name[name]:
            deployment["model_info"][PRICES_STAMP] = version
    for alias, target in (getattr(router, "model_group_alias", None) or {}).items():
        name = target.get("model") if isinstance(target, dict) else target
        if name in versions:
            versions[alias] = versions[name]
    return versions
