"""LiteLLM takes a deployment out of use for a while only after errors that say something about the deployment.

What must hold:
  One caller's mistake takes a model away from nobody else: after a 404 the deployment stays in use.
  Nor does a key that a provider refuses (401, 402, 403): that is the operator's to mend, and every call says so, while a
  deployment in cooldown would answer with a 429 that hides it. Nothing is billed for such an answer.
  Other errors (429, 408, 5xx) take a deployment out of use as LiteLLM's configuration says.

Loaded by the plugin in LiteLLM's environment; seen with LiteLLM 1.106, which takes even a model's only deployment out of
use after one 401 or 404.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
from typing import Any

from litellm.router_utils import cooldown_handlers

#: Statuses of a provider that say nothing about whether its deployment works for others.
_NOT_THE_DEPLOYMENTS = frozenset({401, 402, 403, 404})


def cool_down_only_after_failures() -> None:
    """Do this in this process from now on. Calling it again has no effect.

    Raises:
        RuntimeError: this version of LiteLLM decides in another way, which has to be examined first.
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
