"""Whether an HTTP server says that it is well."""

from __future__ import annotations

import aiohttp


async def http_ok(url: str, timeout_s: float = 3.0) -> bool:
    """Whether `url` answers 200 in time."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.get(url) as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
