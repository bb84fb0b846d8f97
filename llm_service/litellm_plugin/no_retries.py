"""LiteLLM sends a request to a provider once, or not at all. Loaded by the plugin in LiteLLM's environment.

What must hold:
  A request reaches a provider at most once, because a hold covers one answer that the provider may bill (I1).

`num_retries: 0` in LiteLLM's configuration keeps its router from sending again, but two layers below the router do so
without a word, after the provider may have served and billed the first sending (both seen with 1.106):
- OpenAI's SDK sends embeddings up to three times after a time-out, a broken connection or a 5xx, whatever `max_retries` a
  deployment names (`max_retries or DEFAULT_MAX_RETRIES`).
- LiteLLM's HTTP client sends a request again on a new connection after its connection was reset.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import litellm
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler


async def _do_not_send_again(_self: Any, *_arguments: Any, **_named: Any) -> Any:
    """Replaces LiteLLM's second sending, which LiteLLM makes while it handles the error of the first one."""
    raise  # the error that the calling frame handles


def send_once() -> None:
    """Remove both kinds of silent retries from this process.

    Raises:
        RuntimeError: this version of LiteLLM sends again in another way, which has to be examined first.
    """
    litellm.DEFAULT_MAX_RETRIES = 0
    if not hasattr(AsyncHTTPHandler, "single_connection_post_request"):
        raise RuntimeError("LiteLLM sends requests again in another way than Treasurer knows of; see no_retries.py")
    AsyncHTTPHandler.single_connection_post_request = _do_not_send_again
