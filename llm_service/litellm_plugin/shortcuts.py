"""What LiteLLM does for every request and in vain, left out. Loaded by the plugin, in LiteLLM's environment.

What must hold: nothing that LiteLLM tells or decides changes; a version that does it in another way is left as it is.
Each was found in a profile of LiteLLM 1.106 under load. Together they pay for what the plugin itself costs (0.8 ms of
20 a call):
- to send traces to a team's own collector it imports OpenTelemetry's SDK. Where that is not installed the import fails,
  at every request anew, and each time the module is read and run up to there (1.1 ms);
- to count a deployment's use against its limits it puts together all that it knows of the deployment, twice, before it
  sees that there are no limits (1.1 ms);
- for a team's own callbacks it copies its whole configuration, of which it then reads one entry (0.2 ms).
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("treasurer.litellm_plugin")


def take_shortcuts() -> None:
    """For this process, from now on. Again: nothing more."""
    _fail_at_once("litellm.integrations.otel.logger")
    _replace("litellm.router", "Router", "_increment_deployment_usage", _counting_where_limited)
    _replace("litellm.proxy.proxy_server", "ProxyConfig", "load_team_config", _reading_where_there_are_teams)


def _fail_at_once(module: str) -> None:
    """Where a module cannot be imported, the next attempt says so without trying."""
    try:
        importlib.import_module(module)
    except ImportError:
        sys.modules[module] = None  # pyright: ignore[reportArgumentType]  # the import system's own sign for this
    except Exception as fault:  # noqa: BLE001  # LiteLLM serves without it, and so must the plugin
        _log.warning("%s cannot be imported (%s)", module, type(fault).__name__)


def _replace(module: str, owner: str, name: str, shortcut: Callable[[Any], Any]) -> None:
    """Put a method's shortcut in its place, if the module is loaded and has it."""
    found = getattr(sys.modules.get(module), owner, None)
    method = getattr(found, name, None)
    if method is not None and not hasattr(method, "__wrapped__"):
        setattr(found, name, functools.wraps(method)(shortcut(method)))


def _counting_where_limited(count: Any) -> Any:
    #: Deployments as the router had them when it found nothing to count. It makes a new one for each change.
    unlimited: dict[str, object] = {}

    async def increment(self: Any, *arguments: Any, **use: Any) -> Any:
        deployment_id = str(use.get("deployment_id"))
        try:
            deployment = self.model_list[self.model_id_to_deployment_index_map[deployment_id]]
        except (AttributeError, LookupError):
            return await count(self, *arguments, **use)
        if unlimited.get(deployment_id) is deployment:
            return None
        counted = await count(self, *arguments, **use)
        if counted is None and use.get("rpm_increment"):  # with nothing to add, nothing is counted either
            unlimited[deployment_id] = deployment
        return counted

    return increment


def _reading_where_there_are_teams(load: Any) -> Any:
    def load_team_config(self: Any, *arguments: Any, **named: Any) -> Any:
        settings = (getattr(self, "config", None) or {}).get("litellm_settings") or {}
        return load(self, *arguments, **named) if settings.get("default_team_settings") is not None else {}

    return load_team_config
