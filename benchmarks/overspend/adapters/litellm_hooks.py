"""What LiteLLM Proxy loads for the overspend test: its own budgets, without its database.

`custom_auth` gives each key the budget that its name contains (`sk-overspend-<nano-dollars>-<random>`). LiteLLM's own
checks and its own cost logger do the rest, as the documentation of `custom_auth_run_common_checks` describes. A thread
writes LiteLLM's counters to a file for the adapter.

What must hold: nothing of Treasurer's is loaded, and LiteLLM's decisions are not changed. This runs in LiteLLM's
environment: the standard library and LiteLLM only.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# pyright: reportPrivateUsage=false

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyException, UserAPIKeyAuth
from litellm.proxy.hooks.proxy_track_cost_callback import _ProxyDBLogger

_PREFIX = "sk-overspend-"
_EVERY_S = 0.1


async def custom_auth(request: object, api_key: str) -> UserAPIKeyAuth:
    """LiteLLM's check of a key: the key is valid, and has the budget that its name contains."""
    limit, _, name = api_key.removeprefix("Bearer ").removeprefix(_PREFIX).partition("-")
    if not limit.isdecimal() or not name:
        raise ProxyException(message="unknown key", type="auth_error", param="key", code=401)
    token = hashlib.sha256(api_key.encode()).hexdigest()
    return UserAPIKeyAuth(api_key=token, token=token, key_alias=name, max_budget=int(limit) / 1_000_000_000)


class _Paid(CustomLogger):
    """Counts the calls to which LiteLLM gave a cost, by key."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
        if (kwargs.get("response_cost") or 0) > 0:
            self.calls[str(metadata.get("user_api_key"))] += 1


cost_logger = _ProxyDBLogger()
paid = _Paid()


def _write_for_ever(folder: Path) -> None:
    from litellm.proxy import proxy_server

    file = folder / f"{os.getpid()}.json"
    while True:
        time.sleep(_EVERY_S)
        counters = dict(proxy_server.spend_counter_cache.in_memory_cache.cache_dict)
        prefix = "spend:key:"
        spent = {key.removeprefix(prefix): value for key, value in counters.items() if key.startswith(prefix)}
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({"spent": spent, "paid": dict(paid.calls)}))
        fresh.replace(file)


threading.Thread(target=_write_for_ever, args=(Path(os.environ["OVERSPEND_BOOKS"]),), daemon=True).start()
