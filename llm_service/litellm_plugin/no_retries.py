"""LiteLLM sends a request to a provider once, or not at all. Loaded by the plugin, in LiteLLM's environment.

What must hold (I1): a hold covers one answer that a provider may bill. LiteLLM's router is told not to
send again (`num_retries: 0`), but two layers below it do so in silence, after the provider may have
served and billed the first sending (both seen with 1.106):
- OpenAI's SDK sends embeddings up to three times after a time-out, a broken connection or a 5xx,
  whatever `max_retries` a deployment names (`max_retries or DEFAULT_MAX_RETRIES`);
- LiteLLM's HTTP client sends a request again on a new connection after its connection was reset.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import litellm
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler


async def _do_not_send_again(_self: Any, *_arguments: Any, **_named: Any) -> Any:
    """In place of LiteLLM's second sending, which it makes while it handles the first one's error."""
    raise  # what is being handled is in the frame that called


def send_once() -> None:
    """Take the silent retries out of this process.

    Raises:
        RuntimeError: this version of LiteLLM does it in another way, which nobody has looked at.
    """
    litellm.DEFAULT_MAX_RETRIES = 0
    if not hasattr(AsyncHTTPHandler, "single_connection_post_request"):
        raise RuntimeError("LiteLLM sends requests again in another way than Treasurer knows of; see no_retries.py")
    AsyncHTTPHandler.single_connection_post_request = _do_not_send_again
