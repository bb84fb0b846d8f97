"""One HTTP exchange over bare ASGI: body in, headers and bytes out, and noticing that the client has left.

What must hold:
If the client leaves during a wait or a stream, `ClientLeft` is raised at once, and not only after the wait.
For an answer that is sent at once, nothing watches the client, so that it costs no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from gateway.stack.simulated_provider.ask import BadRequest, Json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
#: The key under which the server puts the connection in the scope: ASGI itself has no way to drop one.
TRANSPORT = "simulated_provider.transport"


class ClientLeft(Exception):
    """The client closed its connection before the answer was whole."""


class Exchange:
    """A request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.started = False
        self.received: Any = None  # the request's body as JSON, once it is read
        self._transport: asyncio.Transport | None = scope.get(TRANSPORT)
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None

    async def body(self) -> bytes:
        """The whole request body.

        Raises:
            ClientLeft: the client left before it had sent the whole body.
        """
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def object(self) -> Json:
        """The request body, which must be a JSON object.

        Raises:
            BadRequest: the body is not a JSON object.
        """
        given = await self.any_json()
        if not isinstance(given, dict):
            raise BadRequest("The body must be a JSON object.")
        return given  # pyright: ignore[reportUnknownVariableType]  # JSON from outside

    async def any_json(self) -> Any:
        """The request body as JSON.

        Raises:
            BadRequest: it is not JSON in UTF-8.
        """
        try:
            self.received = orjson.loads(await self.body())
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"We could not parse the JSON body of your request: {error}") from None
        return self.received

    async def json(self, status: int, payload: Any, headers: Headers | None = None) -> None:
        """Send a whole JSON response at once."""
        await self.whole(status, orjson.dumps(payload), headers or [])

    async def whole(self, status: int, body: bytes, headers: Headers) -> None:
        """Send a whole response at once; the body is JSON already."""
        await self.start(status, [_JSON, (b"content-length", str(len(body)).encode()), *headers])
        await self._send({"type": "http.response.body", "body": body})

    async def start(self, status: int, headers: Headers) -> None:
        """Send the response's head."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send a part of the body.

        Raises:
            ClientLeft: the client has left.
        """
        if self._watcher is not None and self._watcher.done():
            raise ClientLeft
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    def watch(self) -> asyncio.Task[None]:
        """Begin to notice a client that leaves."""
        if self._watcher is None:
            self._watcher = asyncio.ensure_future(self._until_left())
        return self._watcher

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def pause(self, seconds: float) -> None:
        """Wait, or merely let others run when `seconds` is 0.

        Raises:
            ClientLeft: the client left meanwhile.
        """
        watcher = self.watch()
        if seconds > 0:
            await asyncio.wait({watcher}, timeout=seconds)
        else:
            await asyncio.sleep(0)
        if watcher.done():
            raise ClientLeft

    async def drop(self) -> None:
        """Close the connection at once, even if the response is not complete."""
        watcher = self.watch()
        if self._transport is not None:
            self._transport.close()
        await watcher

    def done(self) -> None:
        """The exchange is over: stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
