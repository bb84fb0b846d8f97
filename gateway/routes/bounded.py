"""Routes of FastAPI that read a body only from a caller with a valid key, and only up to a limit.

What must hold:
A body is read only after its sender's key was checked, and only so much of it as its limit allows.
The body that the route sees is the one that was checked here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from gateway.asgi import CallerLeft, read_body

_BODY_S = 60.0


def bounded_route(
    authenticate: Callable[[Request], Awaitable[object]],
    *,
    most_bytes: int,
    too_large: str,
    check: Callable[[Request, bytes], None] = lambda _request, _body: None,
) -> type[APIRoute]:
    """Make the class of such routes. `authenticate` and `check` raise an error if they refuse the caller or the
    request."""

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                await authenticate(request)
                try:
                    body = await read_body(
                        request.receive,
                        request.headers,
                        most_bytes=most_bytes,
                        within_s=_BODY_S,
                        too_large=too_large,
                    )
                except CallerLeft:
                    return Response(status_code=400)  # nobody reads this answer
                check(request, body)
                messages = [{"type": "http.request", "body": body, "more_body": False}]

                async def receive() -> Any:
                    return messages.pop() if messages else await request.receive()

                try:
                    return await handle(Request(request.scope, receive))
                except CallerLeft:
                    return Response(status_code=400)  # as above

            return bounded

    return BoundedRoute
