"""A call as a caller makes it, and how it ended. The client is the official OpenAI SDK.

What must hold:
- The length of a call's input, in tokens, is different from that of every other call of its scenario. So its lines on
  the provider's invoice are known without trusting the gateway.
- Each call is bounded in time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

_TIMEOUT_S = 30.0
#: The statuses of refusals because of a budget or a rate limit. Some gateways use 400 or 422; then the message decides.
_REFUSALS = frozenset({402, 403, 429})
#: How the simulated provider's own refusals begin; a gateway passes them on.
_PROVIDER_SAID = "simulated error"

End = Literal["answered", "refused", "failed", "left"]


@dataclass(frozen=True, slots=True)
class Leave:
    """When a caller leaves its stream: after this many chunks with text, or this long after its request."""

    chunks: int | None = None
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One call. `tokens` is the length of its input as the provider counts it; no other call has the same length."""

    model: str
    text: str
    tokens: int
    body: Mapping[str, Any]
    cost_nano: int  # the provider's bill for the whole answer
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    embeddings: bool = False
    leave: Leave | None = None
    timeout_s: float = _TIMEOUT_S
    fails: bool = False  # the provider's script makes the call fail, so no answer is expected
    media: tuple[Mapping[str, Any], ...] = ()  # parts of the message beside its text

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True)
class Made:
    """A call that was made, how it ended, and when (seconds since the epoch)."""

    ask: Ask
    end: End
    sent_at: float
    ended_at: float
    detail: str = ""
    retry_after_s: float | None = None  # how long the gateway asked the caller to wait
    final: bool = False  # the gateway answered that a retry is of no use


class Caller:
    """One agent's client for one address of a gateway."""

    def __init__(self, url: str, key: str) -> None:
        self._client = AsyncOpenAI(
            api_key=key,
            base_url=url,
            max_retries=0,
            # Loopback only, so no certificates need to be loaded.
            http_client=DefaultAsyncHttpxClient(verify=False),
        )

    async def close(self) -> None:
        await self._client.close()

    async def make(self, ask: Ask) -> Made:
        """Make the call once, and return how it ended. Never raises because of what a gateway does."""
        sent = time.time()
        leave_s = ask.leave.after_s if ask.leave is not None else None
        try:
            async with asyncio.timeout(leave_s if leave_s is not None else ask.timeout_s):
                end: End = await self._make(ask)
            return Made(ask, end, sent, time.time())
        except TimeoutError:
            return Made(ask, "left", sent, time.time(), "the caller waited no longer")
        except openai.APIStatusError as error:
            return _refused(ask, error, sent)
        except openai.APIError as error:  # the connection broke, or the stream contained an error
            return Made(ask, "failed", sent, time.time(), f"{type(error).__name__}: {error}"[:300])
        except _Broken as error:
            return Made(ask, "failed", sent, time.time(), str(error))

    async def _make(self, ask: Ask) -> End:
        headers = dict(ask.headers)
        if ask.embeddings:
            await self._client.embeddings.create(
                model=ask.model, input=ask.text, encoding_format="base64", extra_headers=headers
            )
            return "answered"
        create: Any = self._client.chat.completions.create
        content = [{"type": "text", "text": ask.text}, *ask.media] if ask.media else ask.text
        messages = [{"role": "user", "content": content}]
        answer = await create(model=ask.model, messages=messages, extra_headers=headers, **ask.body)
        if not ask.stream:
            return "answered"
        return await self._read(answer, ask)

    @staticmethod
    async def _read(stream: Any, ask: Ask) -> End:
        seen, finished = 0, False
        try:
            async for chunk in stream:
                seen += any(choice.delta.content for choice in chunk.choices)
                finished = finished or any(choice.finish_reason for choice in chunk.choices)
                if ask.leave is not None and ask.leave.chunks is not None and seen >= ask.leave.chunks:
                    return "left"
        except httpx2.HTTPError as error:
            raise _Broken(f"the stream broke: {type(error).__name__}") from None
        except json.JSONDecodeError as error:
            raise _Broken(f"an event of the stream is not JSON: {error}") from None
        finally:
            await stream.close()
        if not finished:
            raise _Broken("the stream ended without its end")
        return "answered"


class _Broken(Exception):
    """A stream that ended before its answer was complete."""


def _refused(ask: Ask, error: openai.APIStatusError, sent: float) -> Made:
    headers = error.response.headers
    try:
        after = float(headers.get("retry-after", ""))
    except ValueError:
        after = None
    words = error.message.lower()
    of_money = error.status_code < 500 and ("budget" in words or "quota" in words)
    refused = of_money or (error.status_code in _REFUSALS and _PROVIDER_SAID not in words)
    return Made(
        ask,
        "refused" if refused else "failed",
        sent,
        time.time(),
        f"{error.status_code} {error.message}"[:300],
        retry_after_s=after,
        final=headers.get("x-should-retry") == "false",
    )
