"""GovernedModel: the PydanticAI model whose every request is a governed call, in the same process.

What must hold: an agent's request takes the same path as an HTTP client's (invariant I5). PydanticAI's
own OpenAI chat model writes the body in OpenAI's format, an in-process transport hands that body to
`LLMService`, and the service's answer becomes the response. There is no second mapping of
messages, tools or usage, and nothing here knows a price: `usage.cost` is what the treasury posted, so
that `UsageLimits(cost_limit=…)` enforces Treasurer's own figure.

Refusals reach the agent as they are (`BudgetExhausted`, `RateLimited`, `Paused` …): catch them by type.
They are deliberately not `ModelAPIError`s, so that nothing in PydanticAI retries them and no `FallbackModel` catches
them. Another model would draw on the same budget, and the service already chooses the chain of models. An
agent that needs a fallback sets `FallbackModel(…, fallback_on=(ModelAPIError, UpstreamError))`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol, Self, cast
from uuid import UUID, uuid4

import httpx2
from openai import AsyncOpenAI
from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIStreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.profiles import ModelProfile, merge_profile
from pydantic_ai.profiles.openai import OpenAIModelProfile, openai_model_profile
from pydantic_ai.providers import Provider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from llm_service.call.response_headers import CALL_ID, COST, REPLAYED
from llm_service.errors import NotPermitted
from llm_service.money import format_decimal, parse_dollars
from llm_service.types import Answer, CallContext, Principal

#: This name is never looked up, because the transport answers without a network (RFC 2606).
_BASE_URL = "http://treasurer.invalid/v1"
_OPENAI_FAMILIES = ("gpt-", "chatgpt-", "o1", "o3", "o4")


class StreamedAnswer(Protocol):
    """A streamed answer in OpenAI's wire format: bytes of server-sent events, and a cost once it has ended."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def cost_nano(self) -> int | None: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class GovernedService(Protocol):
    """The part of `LLMService` that a model needs. Both methods raise `TreasurerError`s."""

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer: ...
    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer: ...


@dataclass(slots=True)
class Tally:
    """The calls through one `GovernedModel` and their cost in nano-dollars, even if the run failed."""

    calls: int = 0
    cost_nano: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """The call that answered a request, and what it cost in nano-dollars.

    `replayed`: the answer was kept from an earlier request with the same key. Then the cost is the earlier request's, and
    nothing was spent now.
    """

    call_id: UUID | None
    cost_nano: int
    replayed: bool = False


@dataclass(slots=True)
class _Call:
    """One request on its way through PydanticAI and the OpenAI client, to the transport and back."""

    principal: Principal
    context: CallContext
    stream: bool
    tally: Tally
    paid: Callable[[Receipt], None] | None = None
    answer: Answer | StreamedAnswer | None = None
    counted: bool = False

    @property
    def cost(self) -> Decimal | None:
        """The posted cost in dollars, exact; None while a stream is under way."""
        cost_nano = self.answer.cost_nano if self.answer is not None else None
        return None if cost_nano is None else Decimal(format_decimal(cost_nano))

    def count(self) -> None:
        """Add the call to its tally, once."""
        if self.counted or self.answer is None:
            return
        self.counted = True
        self.tally.calls += 1
        self.tally.cost_nano += self.answer.cost_nano or 0
        if self.paid is not None:
            self.paid(_receipt(self.answer))


def _receipt(answer: Answer | StreamedAnswer) -> Receipt:
    headers, call_id = answer.headers, answer.headers.get(CALL_ID)
    replayed = headers.get(REPLAYED) == "true"
    cost_nano = parse_dollars(headers.get(COST, "0")) if replayed else answer.cost_nano or 0
    return Receipt(UUID(call_id) if call_id else None, cost_nano, replayed)


#: The request that is being made. The OpenAI client cannot pass it on to its transport; a context variable can.
_current: ContextVar[_Call] = ContextVar("treasurer_model_call")


class GovernedModel(WrapperModel):
    """A PydanticAI model over `LLMService`.

    `principal` pays: it is a value, or an async function that is called before each request, so that a
    pause or a new limit takes effect during a long run. Every request carries `context`; if that names no run,
    PydanticAI's run id is used. `key` is called before each request for its idempotency key, and `paid` with the receipt
    of each answer, so that a run that is repeated can repeat its requests without buying them again.
    """

    def __init__(
        self,
        model_name: str,
        *,
        service: GovernedService,
        principal: Principal | Callable[[], Awaitable[Principal]],
        context: CallContext | None = None,
        settings: ModelSettings | None = None,
        key: Callable[[], str | None] = lambda: None,
        paid: Callable[[Receipt], None] | None = None,
    ) -> None:
        """Raises `ValueError` for a context with an idempotency key: a key names one call, and a model makes many."""
        super().__init__(_ChatModel(model_name, provider=_InProcessProvider(service), settings=settings))
        self._principal = principal
        self._context = _checked(context or CallContext())
        self._key = key
        self._paid = paid
        self.tally = Tally()

    def with_context(self, context: CallContext) -> Self:
        """The same model for another run, user, session or tags, with its own tally."""
        other = copy(self)
        other._context = _checked(context)
        other.tally = Tally()
        return other

    def for_run(
        self,
        context: CallContext,
        *,
        principal: Callable[[], Awaitable[Principal]],
        key: Callable[[], str | None],
        paid: Callable[[Receipt], None],
    ) -> Self:
        """The same model for a recorded run, with the run's `principal`, `key` and `paid` (see the class)."""
        other = self.with_context(context)
        other._principal, other._key, other._paid = principal, key, paid
        return other

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        call = await self._begin(messages, stream=False)
        token = _current.set(call)
        try:
            response = await super().request(messages, model_settings, model_request_parameters)
        finally:
            _current.reset(token)
        response.usage.cost = call.cost
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        call = await self._begin(messages, stream=True)
        async with AsyncExitStack() as stack:
            # The request is sent on entry. The variable is reset before the yield, because the code after
            # it may run in another task's context, where a reset raises ValueError.
            token = _current.set(call)
            try:
                response = await stack.enter_async_context(
                    self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context)
                )
            finally:
                _current.reset(token)
            yield response

    async def _begin(self, messages: list[ModelMessage], *, stream: bool) -> _Call:
        principal = self._principal if isinstance(self._principal, Principal) else await self._principal()
        context = self._context
        if context.run is None:
            run = messages[-1].run_id if messages else None
            context = replace(context, run=run or str(uuid4()))
        key = self._key()
        if key is not None:
            context = replace(context, idempotency_key=key)
        return _Call(principal, context, stream, self.tally, self._paid)


def governed_profile(model_name: str) -> ModelProfile:
    """PydanticAI's profile for any model behind LiteLLM, in OpenAI's chat format. `name` may have a prefix.

    Parameters that only some providers accept are not sent: strict schemas and `max_completion_tokens` go to
    OpenAI's own models only. Tools that run at the provider are off, because they are billed by use, which no hold can
    bound.
    """
    name = model_name.rsplit("/", 1)[-1]
    is_openai = name.startswith(_OPENAI_FAMILIES)
    ours = OpenAIModelProfile(
        supported_native_tools=frozenset(),
        openai_chat_supports_web_search=False,
        openai_chat_supports_multiple_system_messages=is_openai,
        openai_supports_strict_tool_definition=is_openai,
        openai_chat_supports_max_completion_tokens=is_openai,
        openai_chat_streaming_requires_finish_reason=True,  # LiteLLM always sends one, so a stream without it was cut
    )
    return merge_profile(openai_model_profile(name), ours)


def _checked(context: CallContext) -> CallContext:
    if context.idempotency_key is not None:
        raise ValueError("an idempotency key names one call; a GovernedModel's context is for all of its calls")
    return context


class _InProcessProvider(Provider[AsyncOpenAI]):
    """An OpenAI client that never opens a socket and never retries: the service decides on retries."""

    def __init__(self, service: GovernedService) -> None:
        self._client = AsyncOpenAI(
            api_key="in-process",
            base_url=_BASE_URL,
            organization="",
            project="",
            max_retries=0,
            timeout=None,
            http_client=httpx2.AsyncClient(transport=_InProcessTransport(service), trust_env=False, timeout=None),
        )

    @property
    def name(self) -> str:
        return "treasurer"

    @property
    def base_url(self) -> str:
        return _BASE_URL

    @property
    def client(self) -> AsyncOpenAI:
        return self._client

    @staticmethod
    def model_profile(model_name: str) -> ModelProfile | None:
        return governed_profile(model_name)


class _InProcessTransport(httpx2.AsyncBaseTransport):
    """Hands a request's body to the service and its answer back. A `TreasurerError` passes through untouched,
    because the OpenAI client wraps and retries only httpx2's own errors."""

    def __init__(self, service: GovernedService) -> None:
        self._service = service

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        call = _current.get(None)
        if call is None or request.url.path != "/v1/chat/completions":
            raise NotPermitted(
                f"{request.method} {request.url.path} does not come from GovernedModel's request or request_stream; "
                "nothing else may use its client, or it would not be governed"
            )
        timeout = asyncio.timeout(_read_timeout_s(request))
        try:
            async with timeout:
                return await self._answer(await request.aread(), call)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise httpx2.ReadTimeout("the agent's own timeout for a request passed", request=request) from error

    async def _answer(self, body: bytes, call: _Call) -> httpx2.Response:
        if call.stream:
            streamed = call.answer = await self._service.stream(body, call.principal, call.context)
            headers = {"content-type": "text/event-stream", **streamed.headers}
            return httpx2.Response(streamed.status, headers=headers, stream=_Events(streamed, call))
        answer = call.answer = await self._service.complete(body, call.principal, call.context)
        call.count()
        headers = {"content-type": "application/json", **answer.headers}
        return httpx2.Response(answer.status, headers=headers, content=answer.body)


class _Events(httpx2.AsyncByteStream):
    """A streamed answer's bytes. Closing it, which cancellation and an early break do too, closes the upstream.

    PydanticAI may close a stream from one task while another waits for its next event. An async
    generator cannot be closed while it runs, so that wait is interrupted first, as `asyncio.timeout` does.
    """

    def __init__(self, answer: StreamedAnswer, call: _Call) -> None:
        self._answer = answer
        self._call = call
        self._reader: asyncio.Task[Any] | None = None
        self._interrupted: asyncio.Future[None] | None = None
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._answer)
        while True:
            self._reader = reader = asyncio.current_task()
            try:
                chunk = await anext(chunks)
            except StopAsyncIteration:
                if self._closed:
                    raise httpx2.StreamClosed from None  # like a broken socket, so that PydanticAI sees a cut
                return
            except asyncio.CancelledError:
                if self._interrupted is not None and reader is not None and reader.uncancel() == 0:
                    raise httpx2.StreamClosed from None
                raise
            finally:
                self._reader = None
                if self._interrupted is not None and not self._interrupted.done():
                    self._interrupted.set_result(None)
            yield chunk

    async def aclose(self) -> None:
        self._closed = True
        if self._reader is not None and self._interrupted is None:
            self._interrupted = asyncio.get_running_loop().create_future()
            self._reader.cancel()
            await self._interrupted
        try:
            await self._answer.aclose()
        finally:
            self._call.count()


def _read_timeout_s(request: httpx2.Request) -> float | None:
    """The agent's `ModelSettings(timeout=…)`, if it sets one. The service's own timeouts apply as well."""
    timeouts = cast(Mapping[str, float | None], request.extensions.get("timeout", {}))
    return timeouts.get("read")


class _ChatModel(OpenAIChatModel):
    """OpenAI's chat model, whose streams know their posted cost."""

    @property
    def _streamed_response_cls(self) -> type[OpenAIStreamedResponse]:
        return _PricedStream


@dataclass
class _PricedStream(OpenAIStreamedResponse):
    """A stream whose usage carries the posted cost as soon as the answer has ended or was closed."""

    _call: _Call = field(default_factory=_current.get)

    @property
    def usage(self) -> RequestUsage:
        usage = super().usage
        usage.cost = self._call.cost
        return usage
