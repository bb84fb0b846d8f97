"""Makes LiteLLM take a deployment out of use only after errors that are about the deployment itself.

What must hold:
  One caller's mistake does not take a model away from other callers: after a 404 the deployment stays in use.
  It also stays in use after a provider refuses the key (401, 402, 403). Only the operator can correct that, and every
  call shows it. A deployment in cooldown would answer with a 429, which hides the cause. Such answers are not billed.
  Other errors (429, 408, 5xx) take a deployment out of use as LiteLLM's configuration says.

Loaded by the plugin in LiteLLM's environment; checked with LiteLLM 1.106, which takes even a model's only deployment
out of use after one 401 or 404.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
from typing import Any

from litellm.router_utils import cooldown_handlers

#: Statuses of a provider after which its deployment may still work for other callers.
_NOT_THE_DEPLOYMENTS = frozenset({401, 402, 403, 404})


def cool_down_only_after_failures() -> None:
    """Change LiteLLM's decision in this process from now on. Calling it again has no effect.

    Raises:
        RuntimeError: this version of LiteLLM decides in a way that the plugin does not know.
    """
    decide = getattr(cooldown_handlers, "_is_cooldown_required", None)
    if decide is None:
        raise RuntimeError("LiteLLM decides about cooldowns in another way than Treasurer knows of; see cooldowns.py")
    if hasattr(decide, "__wrapped__"):
        return

    @functools.wraps(decide)
    def is_cooldown_required(*arguments: Any, **named: Any) -> bool:
        status = named.get("exception_status", arguments[2] if len(arguments) > 2 else None)
        if str(status).isdecimal() and int(str(status)) in _NOT_THE_DEPLOYMENTS:
            return False
        return bool(decide(*arguments, **named))

    cooldown_handlers._is_cooldown_required = is_cooldown_required
