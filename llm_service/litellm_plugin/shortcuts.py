"""Skips useless work that LiteLLM does for every request. Loaded by the plugin in LiteLLM's environment.

What must hold:
  LiteLLM's answers, decisions and records stay the same.
  A version of LiteLLM that does this work in another way is left as it is.

Each piece of work was found in a profile of LiteLLM 1.106 under load. Skipping all of it saves more than the plugin
itself costs (0.8 ms of the 20 ms that a call takes):
- To send traces to a team's own collector, LiteLLM imports OpenTelemetry's SDK. If that is not installed, the import
  fails again for every request, and each time the importing module is read and run up to that line (1.1 ms).
- To count a deployment's use against its limits, LiteLLM collects all data about the deployment, twice, before it finds
  that there are no limits (1.1 ms).
- For a team's own callbacks LiteLLM copies its whole configuration, and then reads one entry of the copy (0.2 ms).
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
    """Skip this work in this process from now on. Calling it again has no effect."""
    _fail_at_once("litellm.integrations.otel.logger")
    _replace("litellm.router", "Router", "_increment_deployment_usage", _counting_where_limited)
    _replace("litellm.proxy.proxy_server", "ProxyConfig", "load_team_config", _reading_where_there_are_teams)


def _fail_at_once(module: str) -> None:
    """If a module cannot be imported, have each further import of it fail at once."""
    try:
        importlib.import_module(module)
    except ImportError:
        sys.modules[module] = None  # pyright: ignore[reportArgumentType]  # how Python marks a module that cannot be imported
    except Exception as fault:  # noqa: BLE001  # LiteLLM serves without this module, so the plugin does, too
        _log.warning("%s cannot be imported (%s)", module, type(fault).__name__)


def _replace(module: str, owner: str, name: str, shortcut: Callable[[Any], Any]) -> None:
    """Replace a method by its shortcut, if the module is loaded and has the method."""
    found = getattr(sys.modules.get(module), owner, None)
    method = getattr(found, name, None)
    if method is not None and not hasattr(method, "__wrapped__"):
        setattr(found, name, functools.wraps(method)(shortcut(method)))


def _counting_where_limited(count: Any) -> Any:
    #: Deployments for which the router found nothing to count. The router makes a new object when a deployment changes.
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
        if counted is None and use.get("rpm_increment"):  # None can also mean that there was nothing to add
            unlimited[deployment_id] = deployment
        return counted

    return increment


def _reading_where_there_are_teams(load: Any) -> Any:
    def load_team_config(self: Any, *arguments: Any, **named: Any) -> Any:
        settings = (getattr(self, "config", None) or {}).get("litellm_settings") or {}
        return load(self, *arguments, **named) if settings.get("default_team_settings") is not None else {}

    return load_team_config
