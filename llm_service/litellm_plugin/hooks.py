"""What LiteLLM Proxy loads of Treasurer, configured by environment variables: the check of grants, and the witnesses.

What must hold:
  LiteLLM serves no call without a valid grant, used once (I3): `custom_auth`, see auth.py.
  Each attempt at a deployment leaves a witness (I2): `witness_logger`, see witness_logger.py.
  One attempt is one request to a provider (I1): see no_retries.py.
  A stream ends where its provider ends it (I1): see whole_streams.py.
  One caller's mistake does not take a model away from other callers: see cooldowns.py.
  Only the check of grants may refuse a request; no other fault of the plugin may cost a caller its answer.

`config/litellm.yaml` names `custom_auth` and `witness_logger`. The plugin runs in LiteLLM's environment, so it imports
only the standard library, LiteLLM, asyncpg, PyJWT, and modules of ours that need no more than these.
Environment: TREASURER_GRANT_SECRET, TREASURER_GRANT_DIR, TREASURER_SPOOL_DIR, TREASURER_DATABASE_URL,
TREASURER_STREAMS_PER_WORKER.
"""
# LiteLLM is in another environment than the type checker's, so its types are unknown here.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from litellm.proxy._types import UserAPIKeyAuth

from llm_service import process
from llm_service.grants import UsedGrants
from llm_service.litellm_plugin.auth import GrantAuth
from llm_service.litellm_plugin.cooldowns import cool_down_only_after_failures
from llm_service.litellm_plugin.events import grant_name
from llm_service.litellm_plugin.log_redaction import LogRedaction
from llm_service.litellm_plugin.memory_release import freeze_loaded_objects
from llm_service.litellm_plugin.no_retries import send_once
from llm_service.litellm_plugin.open_requests import OpenRequests
from llm_service.litellm_plugin.price_book import PriceBook
from llm_service.litellm_plugin.shortcuts import take_shortcuts
from llm_service.litellm_plugin.whole_streams import read_streams_to_their_end
from llm_service.litellm_plugin.witness_logger import WitnessLogger
from llm_service.litellm_plugin.witness_writer import WitnessWriter
from llm_service.litellm_plugin.worker_streams import WorkerStreams
from llm_service.used_grants import SharedUses


def _folder(name: str, default: str) -> Path:
    return Path(os.environ.get(name) or default)


_database_url = os.environ.get("TREASURER_DATABASE_URL") or None
_log_redaction = LogRedaction()
_streams = WorkerStreams(int(os.environ.get("TREASURER_STREAMS_PER_WORKER") or 0))
_requests = OpenRequests()
_auth = GrantAuth(
    os.environ.get("TREASURER_GRANT_SECRET", ""),
    UsedGrants(_folder("TREASURER_GRANT_DIR", ".treasurer/grants")),
    SharedUses(_database_url) if _database_url else None,
    PriceBook(registers=_database_url is not None),
    _streams,
)
_writer = WitnessWriter(_database_url, _folder("TREASURER_SPOOL_DIR", ".treasurer/spool"))

witness_logger = WitnessLogger(_writer, _streams, _requests)


async def custom_auth(request: Any, api_key: str) -> UserAPIKeyAuth:
    """Admit a request, once, if it carries a grant for exactly this request. Raises ProxyException: see `GrantAuth.admit`."""
    _log_redaction.begin()  # not before: while LiteLLM starts, the operator needs its full log
    identity = await _auth.admit(request, api_key)
    _requests.begin(grant_name(identity.metadata))
    return identity


process.forbid_core_dumps()
send_once()
read_streams_to_their_end()
cool_down_only_after_failures()
take_shortcuts()
freeze_loaded_objects()
with contextlib.suppress(RuntimeError):
    # LiteLLM loads this module inside the worker's event loop, so the writer can at once replay the witnesses that an
    # earlier process left in the spool. Without a loop (in a test) the writer starts with its first witness.
    process.collect_between_callbacks()
    _writer.start()
