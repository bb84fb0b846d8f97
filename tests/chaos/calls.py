"""The calls that are made while disturbances happen. Each has a separate mark, by which both books know it:

- in the ledger, the mark is the caller's session;
- on the invoice, it comes from the simulated provider's script.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aiohttp

MODELS = ("gpt-4.1-mini", "gpt-4o-mini", "claude-haiku-5-5", "gemini-2.5-flash")
EMBEDDING = "text-embedding-3-small"
KINDS = ("whole", "whole", "stream", "stream", "left", "embeddings", "keyed", "keyed stream")
#: For so long a failed call with an idempotency key is repeated, while its hold may still exist.
IMPATIENT_S = 3.0
#: The answer to a caller whose call is still under way for another caller with its key: it is to ask again later.
IN_PROGRESS = "409 idempotency_in_progress"
#: How often a caller asks who is answered so. Each time it waits for as long as a call may take.
TIMES = 5
#: The answers that a caller may get when it repeats a call.
AGAIN = (IN_PROGRESS, "409 idempotency_answer_lost", f"no answer within {IMPATIENT_S:g} s")
#: The errors of a caller whose gateway dies.
DIED = ("ServerDisconnectedError", "ClientOSError", "ClientPayloadError", "ClientConnectorError", "cut")


@dataclass
class Asked:
    """One call, which may be sent several times under one key. `outcome` is how the last of them ended."""

    mark: str
    kind: str
    key: str
    body: dict[str, Any]
    outcome: str = "failed"
    served: bool = False  # at least one caller got the whole answer
    answers: set[bytes] = field(default_factory=set[bytes])
    troubles: list[str] = field(default_factory=list[str])

    @property
    def path(self) -> str:
        return "/v1/embeddings" if self.kind == "embeddings" else "/v1/chat/completions"

    @property
    def keyed(self) -> bool:
        return self.kind.startswith("keyed")

    @property
    def headers(self) -> dict[str, str]:
        known = {"Idempotency-Key": self.mark} if self.keyed else {}
        return {"Authorization": f"Bearer {self.key}", "x-treasurer-session": self.mark, **known}

    def has(self, outcome: str, trouble: str = "") -> str:
        self.outcome = outcome
        if trouble:
            self.troubles.append(trouble)
        return outcome


def make(chance: random.Random, key: str, kind: str = "", model: str = "", output_tokens: int = 0) -> Asked:
    """Make a call of some kind, whose answer has this number of tokens (0: chosen at random). Two kinds are not part of
    the load: "hanging" (it waits for its answer) and "slow" (a stream).
    """
    kind = kind or chance.choice(KINDS)
    mark = UUID(int=chance.getrandbits(128)).hex
    script: dict[str, Any] = {
        "output_tokens": output_tokens or chance.randint(5, 60), "first_token_s": chance.choice((0, 0, 0.1)), "mark": mark,
    }  # fmt: skip
    if kind == "hanging":
        script["first_token_s"] = 5
    if kind in ("stream", "left", "slow", "keyed stream"):
        script["tokens_per_s"] = 20 if kind == "slow" else chance.choice((100, 300))
    content = f"Tell me of chance. [[sim: {json.dumps(script)}]]"
    if kind == "embeddings":
        return Asked(mark, kind, key, {"model": EMBEDDING, "input": content})
    body: dict[str, Any] = {
        "model": model or chance.choice(MODELS), "max_tokens": 80, "messages": [{"role": "user", "content": content}],
    }  # fmt: skip
    if kind in ("stream", "left", "slow", "keyed stream"):
        body["stream"] = True
    return Asked(mark, kind, key, body)


async def patiently(asked: Asked, once: Callable[[], Awaitable[str]]) -> str:
    """Send a call with an idempotency key (`once`), and send it again while it is under way for another caller.

    On a slow machine that answer may come in any disturbance, so it is a trouble only if it comes to the last.
    """
    outcome = await once()
    for _ in range(TIMES - 1):
        if outcome != "failed" or IN_PROGRESS not in asked.troubles:
            break
        asked.troubles.remove(IN_PROGRESS)
        outcome = await once()
    return outcome


async def send(http: aiohttp.ClientSession, asked: Asked, url: str, within_s: float = 30) -> str:
    """Send the call once. The outcome is ok, refused (429), failed (with the reason in `troubles`), or left."""
    patience = aiohttp.ClientTimeout(total=within_s)
    try:
        async with http.post(url + asked.path, json=asked.body, headers=asked.headers, timeout=patience) as response:
            if response.status == 429:
                return asked.has("refused")
            if response.status != 200:
                return asked.has("failed", f"{response.status} {_code(await response.read())}")
            if asked.kind == "left":
                await response.content.readany()
                return asked.has("left")
            return _heard(asked, await response.read())
    except TimeoutError:
        return asked.has("failed", f"no answer within {within_s:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return asked.has("failed", type(error).__name__)


def _heard(asked: Asked, content: bytes) -> str:
    if asked.body.get("stream") and not content.rstrip().endswith(b"data: [DONE]"):
        last = content.rstrip().rpartition(b"data: ")[2]
        code = _code(last)
        return asked.has("failed", f"stream {code}" if code else "cut")
    asked.served = True
    if asked.keyed:
        asked.answers.add(content)
    return asked.has("ok")


def _code(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""
