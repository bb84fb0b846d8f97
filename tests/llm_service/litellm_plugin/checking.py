"""Helpers for the checks of this folder. They run in LiteLLM Proxy's own Python (see run_checks.py), without pytest."""
# ruff: noqa: PT017 (pytest is not installed in LiteLLM's environment)
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from litellm.proxy._types import ProxyException
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices
from starlette.requests import Request

from llm_service.grants import Grant, UsedGrants, digest_of, sign
from llm_service.litellm_plugin.auth import GrantAuth, SharedGrants
from llm_service.litellm_plugin.price_book import PriceBook
from llm_service.litellm_plugin.worker_streams import WorkerStreams
from llm_service.witness import Witness

SECRET = "a-secret-of-the-tests-that-has-32-characters"
CHAT = "/v1/chat/completions"


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def granted(content: bytes, path: str = CHAT, **changes: Any) -> str:
    now = int(time.time())
    fields: dict[str, Any] = {
        "call_id": uuid4(), "attempt": 3, "agent_id": 7, "agent": "digest", "team": "research",
        "organisation": "default", "key_id": 1, "model": "gpt-4o", "path": path, "digest": digest_of(content),
        "issued_at": now, "expires_at": now + 60, "tags": ("news",), "user": "bob",
        **changes,
    }  # fmt: skip
    return sign(SECRET, Grant(**fields))


def request(content: bytes, path: str = CHAT, method: str = "POST", query: bytes = b"", **headers: str) -> Request:
    """A request as LiteLLM handles it: the body can be read from the wire once, and is kept in parsed form."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        assert not sent, "the body was read from the wire twice"
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    encoded = [(name.encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": encoded}
    return Request(scope, receive)


class Door:
    """One worker's check of grants, with the worker's streams and a folder of used grants."""

    def __init__(
        self,
        *,
        secret: str = SECRET,
        folder: Path | None = None,
        shared: SharedGrants | None = None,
        streams: WorkerStreams | None = None,
    ) -> None:
        used = UsedGrants(folder or Path(tempfile.mkdtemp(prefix="treasurer-grants-")))
        self.streams = streams or WorkerStreams()
        self._auth = GrantAuth(secret, used, shared, PriceBook(), self.streams)

    async def ask(self, token: str, content: bytes, path: str = CHAT, **more: Any) -> Any:
        return await self._auth.admit(request(content, path, **more), token)

    async def refused(
        self, status: int, words: str, token: str, content: bytes, path: str = CHAT, **more: Any
    ) -> dict[str, str]:
        """Check that the request is refused in this way, and return the headers of the refusal."""
        try:
            await self.ask(token, content, path, **more)
        except ProxyException as error:
            assert error.code == str(status), error.code
            assert words in error.message, error.message
            assert not token or token not in error.message, "the message repeats the token"
            return error.headers
        raise AssertionError("it was let in")


class Kept:
    """A sink that keeps its witnesses."""

    def __init__(self) -> None:
        self.witnesses: list[Witness] = []

    def add(self, witness: Witness) -> None:
        self.witnesses.append(witness)


def chunk(**delta: Any) -> ModelResponseStream:
    more = {name: delta.pop(name) for name in ("finish_reason", "index") if name in delta}
    usage = delta.pop("usage", None)
    made = ModelResponseStream(
        id="c", created=1, model="gpt-4o", choices=[StreamingChoices(delta=Delta(**delta), **more)]
    )
    if usage is not None:
        made.usage = usage
    return made


def words(count: int) -> list[ModelResponseStream]:
    return [chunk(content=f" word{number}") for number in range(count)]
