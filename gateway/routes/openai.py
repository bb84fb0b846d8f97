"""The door for OpenAI's API: chat completions and embeddings, as a bare ASGI layer before FastAPI, because they are the
busiest routes.

What must hold, besides what `gateway/asgi.py` promises:
A body is parsed once.
Every error has OpenAI's shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from gateway.asgi import (
    App,
    EventStream,
    Receive,
    Scope,
    Send,
    answer_errors,
    read_body,
    request_headers,
    send_error,
    send_stream,
    send_whole,
    unless_caller_leaves,
)
from gateway.auth import bearer_secret
from llm_service.errors import InvalidRequest, TreasurerError
from llm_service.runs.remote import cost_comment
from llm_service.runs.tokens import looks_like_token, read_run_token
from llm_service.telemetry.record import SpanPlace
from llm_service.types import NO_CONTEXT, Answer, CallContext, Principal
from llm_service.wire.openai_errors import openai_error_body, openai_error_event
from llm_service.wire.requests import MAX_ATTRIBUTION, MAX_TAGS, ParsedRequest, attribution, parse_chat


class CallStream(EventStream, Protocol):
    """A call's answer as server-sent events."""

    call_id: UUID
    cost_nano: int | None

    async def settled(self) -> None: ...


class Agents(Protocol):
    """The part that answers for an agent as a model (`gateway/routes/agent_model.py`)."""

    async def __call__(
        self, request: ParsedRequest, principal: Principal, context: CallContext, /
    ) -> Answer | CallStream: ...


class Calls(Protocol):
    """The part that makes the calls (`LLMService` is one)."""

    async def complete(
        self,
        body: bytes,
        principal: Principal,
        context: CallContext,
        parent: SpanPlace | None,
        /,
        *,
        request: ParsedRequest,
    ) -> Answer: ...
    async def stream(
        self,
        body: bytes,
        principal: Principal,
        context: CallContext,
        parent: SpanPlace | None,
        /,
        *,
        request: ParsedRequest,
    ) -> CallStream: ...
    async def embed(
        self, body: bytes, principal: Principal, context: CallContext, parent: SpanPlace | None, /
    ) -> Answer: ...


class Keys(Protocol):
    """The part that finds the owner of a key (`Principals` is one)."""

    async def by_secret(self, secret: str) -> Principal: ...
    async def by_agent(self, name: str) -> Principal: ...


class Traces(Protocol):
    """The part that finds the caller's trace, which a call continues (`Telemetry` is one)."""

    def parent(self, traceparent: str | None) -> SpanPlace | None: ...


class DoorSettings(Protocol):
    """The limits on what a caller sends, and on how slowly it reads (part of `Settings`)."""

    @property
    def max_body_bytes(self) -> int: ...
    @property
    def body_timeout_s(self) -> float: ...
    @property
    def stalled_timeout_s(self) -> float: ...


class DoorRuntime(Protocol):
    """The parts of a gateway that this door needs (`GatewayRuntime` has them)."""

    @property
    def service(self) -> Calls: ...
    @property
    def principals(self) -> Keys: ...
    @property
    def telemetry(self) -> Traces: ...
    @property
    def settings(self) -> DoorSettings: ...


class _OpenAIErrors:
    def body(self, error: TreasurerError) -> bytes:
        return openai_error_body(error)

    def event(self, error: TreasurerError) -> bytes:
        return openai_error_event(error)


_ERRORS = _OpenAIErrors()
#: What the name of a model begins with that is an agent.
AGENT = "agent/"


class OpenAIDoor:
    """Serves POST /v1/chat/completions and /v1/embeddings, and passes every other request on to the app behind it."""

    def __init__(
        self,
        app: App,
        runtime: Callable[[], DoorRuntime],
        grant_secret: Callable[[], str | None] = lambda: None,
        agents: Agents | None = None,
    ) -> None:
        """`grant_secret` returns the secret by which the stack's own workers sign; None: there are no such workers. `agents`
        answers requests for the model `agent/NAME`; None: agents are not models."""
        self._app = app
        self._runtime = runtime
        self._grant_secret = grant_secret
        self._agents = agents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in _CALLS:
            await self._app(scope, receive, send)
        elif scope["method"] != "POST":
            error = InvalidRequest(f"{scope['path']} takes POST, with a JSON object as its body.", status=405)
            await send_error(send, error, _ERRORS, allow="POST")
        else:
            await answer_errors(self._serve(scope, receive, send), send, _ERRORS, scope["path"])

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = self._runtime()
        settings = runtime.settings
        headers = request_headers(scope)
        principal, context, is_worker = await self._caller(runtime, headers)
        body = await read_body(
            receive,
            headers,
            most_bytes=settings.max_body_bytes,
            within_s=settings.body_timeout_s,
            too_large=f"The body is larger than {settings.max_body_bytes} bytes, the most that this gateway takes.",
        )
        parent = runtime.telemetry.parent(headers.get("traceparent"))
        work = _CALLS[scope["path"]](runtime, self._agents, body, principal, context, parent)
        answer = await unless_caller_leaves(work, receive)
        if isinstance(answer, Answer):
            await send_whole(send, answer.status, answer.headers, answer.body)
        else:
            name, stalled_s = f"call {answer.call_id}", settings.stalled_timeout_s
            events = _WithCost(answer) if is_worker else answer
            sending = send_stream(events, send, scope, _ERRORS, stalled_s=stalled_s, name=name)
            await unless_caller_leaves(sending, receive)

    async def _caller(self, runtime: DoorRuntime, headers: Mapping[str, str]) -> tuple[Principal, CallContext, bool]:
        """Who pays, what the call is attributed to, and whether a worker makes it: by an agent's key and the call's headers, or
        by a run's token.

        A token has the whole attribution, so the headers of such a call add its idempotency key only.
        """
        secret, grant_secret = bearer_secret(headers.get("authorization")), self._grant_secret()
        if grant_secret is None or not looks_like_token(secret):
            return await runtime.principals.by_secret(secret), read_context(headers), False
        token = read_run_token(grant_secret, secret)
        key = read_context(headers).idempotency_key
        return await runtime.principals.by_agent(token.agent), replace(token.context, idempotency_key=key), True


class _WithCost:
    """A stream for a worker, which records what its steps cost: the cost comes after the last event, if it is known."""

    def __init__(self, answer: CallStream) -> None:
        self.status, self.headers, self._answer = answer.status, answer.headers, answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for events in self._answer:
            yield events
        await self._answer.settled()
        if self._answer.cost_nano is not None:
            yield cost_comment(self._answer.cost_nano)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._answer.aclose()


async def _chat(
    runtime: DoorRuntime,
    agents: Agents | None,
    body: bytes,
    principal: Principal,
    context: CallContext,
    parent: SpanPlace | None,
) -> Answer | CallStream:
    request = parse_chat(body)
    if agents is not None and request.model.startswith(AGENT):
        return await agents(request, principal, context)
    if request.stream:
        return await runtime.service.stream(body, principal, context, parent, request=request)
    return await runtime.service.complete(body, principal, context, parent, request=request)


async def _embed(
    runtime: DoorRuntime,
    _agents: Agents | None,
    body: bytes,
    principal: Principal,
    context: CallContext,
    parent: SpanPlace | None,
) -> Answer | CallStream:
    return await runtime.service.embed(body, principal, context, parent)


_CALLS = {"/v1/chat/completions": _chat, "/v1/embeddings": _embed}


def read_context(headers: Mapping[str, str]) -> CallContext:
    """The run, user, session and tags that a call names in its x-treasurer-… headers, its Idempotency-Key, and the run
    whose envelope pays for it.

    Raises:
        InvalidRequest: a value is too long or not printable, there are too many tags, or an envelope's id is not a UUID.
    """
    given = {name: _value(headers, f"x-treasurer-{name}") for name in ("run", "user", "session", "tags")}
    key = _value(headers, "idempotency-key", most=255)
    envelope = _run(headers)
    if key is None and envelope is None and not any(given.values()):
        return NO_CONTEXT
    tags = tuple(dict.fromkeys(tag for part in (given["tags"] or "").split(",") if (tag := part.strip())))
    if len(tags) > MAX_TAGS or any(len(tag) > MAX_ATTRIBUTION for tag in tags):
        raise InvalidRequest(
            f"x-treasurer-tags takes at most {MAX_TAGS} tags of at most {MAX_ATTRIBUTION} characters.",
            param="x-treasurer-tags",
        )
    return CallContext(given["run"], given["user"], given["session"], tags, key, envelope)


def _run(headers: Mapping[str, str]) -> UUID | None:
    """The run whose envelope pays for the call."""
    text = headers.get("x-treasurer-envelope")
    if text is None:
        return None
    try:
        if len(text) != 36:  # `UUID` also reads other forms, with braces or without hyphens
            raise ValueError
        return UUID(text)
    except ValueError:
        raise InvalidRequest(
            "The header x-treasurer-envelope takes the id of a run: a UUID such as 0191d7a0-4c5e-7c3f-9d0b-5a1f3c2e4d6b.",
            param="x-treasurer-envelope",
        ) from None


def _value(headers: Mapping[str, str], name: str, most: int = MAX_ATTRIBUTION) -> str | None:
    if name == "x-treasurer-tags":
        most *= MAX_TAGS
    return attribution(headers.get(name), f"The header {name}", name, most)
