"""Counts tokens with LiteLLM's tokenizer for a model, through the proxy, when the bound by bytes does not fit a budget.

What must hold:
  Only text is sent to LiteLLM, which would otherwise fetch a caller's images and files from their addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import orjson

from llm_service.errors import UpstreamError
from llm_service.grants import for_service, sign
from llm_service.pricing.bounds import TextCount
from llm_service.pricing.models import Model
from llm_service.wire.requests import ParsedRequest

_PATH = "/utils/token_counter"
_MEDIA_PARTS = frozenset({"image_url", "input_image", "file", "input_file", "input_audio", "audio"})


class Asks(Protocol):
    """Sends requests to the proxy that are not calls of a model (`ProxyUpstream`)."""

    async def ask(self, path: str, body: bytes, grant: str) -> object: ...


class TokenCounter:
    """Counts the tokens of texts, by asking the proxy."""

    def __init__(self, proxy: Asks, grant_secret: str) -> None:
        self._proxy = proxy
        self._grant_secret = grant_secret

    async def request(self, model: Model, request: ParsedRequest) -> TextCount:
        """Count a request's text. Raises ProxyUnavailable or UpstreamError."""
        return await self.text(model, "\n".join(texts(request.data)))

    async def text(self, model: Model, text: str) -> TextCount:
        """Count the tokens of a text's ASCII part, and the bytes of the rest. Raises ProxyUnavailable or UpstreamError."""
        plain = text.encode("ascii", "ignore").decode()
        other_bytes = len(text.encode()) - len(plain)
        body = orjson.dumps({"model": model.name, "prompt": plain})
        grant = sign(self._grant_secret, for_service(_PATH, model=model.name, body=body))
        answer = await self._proxy.ask(_PATH, body, grant)
        count: object = cast("dict[str, Any]", answer).get("total_tokens") if isinstance(answer, dict) else None
        if type(count) is not int or count < 0:
            raise UpstreamError("The proxy's token counter gave no count.")
        return TextCount(count, other_bytes)


def texts(data: dict[str, Any]) -> Iterator[str]:
    """Every text of a request that a model reads: in its messages or input, its tools and its schema."""
    for name in ("messages", "input", "tools", "functions", "response_format"):
        yield from _texts(data.get(name))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        items = cast("list[object]", value)
        if items and all(type(item) is int for item in items):
            yield " ".join("x" for _ in items)  # an array of token ids: one word for each token
        else:
            for item in items:
                yield from _texts(item)
    elif isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        if fields.get("type") not in _MEDIA_PARTS:
            for key, item in fields.items():
                yield key
                yield from _texts(item)
    elif value is not None:
        yield str(value)
