"""Asks an HTTP server whether it is healthy, and which warnings it has."""

from __future__ import annotations

from typing import cast

import aiohttp
import orjson


async def http_ok(url: str, timeout_s: float = 3.0) -> bool:
    """Whether `url` answers with 200 in time."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.get(url) as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def warnings_of(url: str, timeout_s: float = 3.0) -> str:
    """The `warnings` of a page such as /readyz, as one text. It is empty if there are none, or no answer in time."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.get(url) as answer,
        ):
            content: object = orjson.loads(await answer.read())
    except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError):
        return ""
    given = cast("dict[str, object]", content).get("warnings") if isinstance(content, dict) else None
    return " ".join(map(str, cast("list[object]", given))) if isinstance(given, list) else ""
