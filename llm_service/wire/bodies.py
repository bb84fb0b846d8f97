"""Reads the body of a request, for every route that takes JSON. Pure.

What must hold: a body that was read can also be written again, and is not so large in lists and objects that the next
reader is busy with it for seconds.
"""

from __future__ import annotations

import gc
from typing import Any, cast

import orjson

from llm_service.errors import InvalidRequest

#: The deepest nesting of a body. orjson reads deeper bodies than the 254 levels that it can write, and a body has to be
#: written again.
_MAX_DEPTH = 200
#: The most lists and objects of a body. LiteLLM walks through all of them several times, and serves no other request
#: meanwhile: a million would take ten seconds.
_MAX_PARTS = 250_000
_LARGE_BYTES = 1 << 20


def parse_body(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidRequest: not UTF-8, not JSON, or not an object.
    """
    try:
        data = _read(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    if body.count(b"[") + body.count(b"{") > _MAX_DEPTH:
        _check_shape(cast("object", data))
    return cast("dict[str, Any]", data)


def _read(body: bytes) -> object:
    if len(body) < _LARGE_BYTES:
        return orjson.loads(body)
    enabled = gc.isenabled()
    gc.disable()  # otherwise the collector would search the growing body again and again
    try:
        return orjson.loads(body)
    finally:
        if enabled:
            gc.enable()


def _check_shape(value: object) -> None:
    """Refuse a body that is nested too deeply or has too many lists and objects. Works level by level, without recursion."""
    depth, total, level = 0, 0, [value]
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise InvalidRequest("The body is nested too deeply.", code="invalid_json")
        inner: list[object] = []
        for item in level:
            values = cast("dict[str, object]", item).values() if isinstance(item, dict) else cast("list[object]", item)
            inner.extend(cast("object", each) for each in values if isinstance(each, dict | list))
        total += len(inner)
        if total > _MAX_PARTS:
            raise InvalidRequest(f"The body has more than {_MAX_PARTS} lists and objects.", code="invalid_json")
        level = inner
