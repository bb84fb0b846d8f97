"""LiteLLM sends a request to a provider once, or not at all. Loaded by the plugin in LiteLLM's environment.

What must hold:
  A request reaches a provider at most once, because a hold covers one answer that the provider may bill (I1).

`num_retries: 0` in LiteLLM's configuration keeps its router from sending a request again. But two layers below the
router silently do so, although the provider may have served and billed the first request (both seen with 1.106):
- OpenAI's SDK sends embeddings up to three times after a time-out, a broken connection or a 5xx, even if a deployment
  sets `max_retries` to 0 (`max_retries or DEFAULT_MAX_RETRIES`).
- LiteLLM's HTTP client sends a request again on a new connection after its connection was reset.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import litellm
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler


async def _do_not_send_again(_self: Any, *_arguments: Any, **_named: Any) -> Any:
    """Replaces the method with which LiteLLM, while it handles an error, would send the request a second time."""
    raise  # re-raises the error that LiteLLM is handling


def send_once() -> None:
    """Remove both kinds of silent retries from this process.

    Raises:
        RuntimeError: this version of LiteLLM sends again in a way that the plugin does not know.
    """
    litellm.DEFAULT_MAX_RETRIES = 0
    if not hasattr(AsyncHTTPHandler, "single_connection_post_request"):
        raise RuntimeError("LiteLLM sends requests again in another way than Treasurer knows of; see no_retries.py")
    AsyncHTTPHandler.single_connection_post_request = _do_not_send_again
