"""The busiest routes as bare ASGI: what is read, what is refused, and what is cancelled when a caller leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import asgi
from gateway.routes import openai
from gateway.routes.openai import OpenAIDoor, read_context
from gateway.settings import Settings
from llm_service.call.streaming import StreamingAnswer
from llm_service.errors import (
    BudgetBusy,
    BudgetExhausted,
    InvalidRequest,
    NotAuthenticated,
    TreasurerError,
    UpstreamError,
)
from llm_service.ids import new_call_id
from llm_service.runs.tokens import RunToken, sign_run_token
from llm_service.telemetry.record import SpanPlace
from llm_service.types import NO_CONTEXT, Answer, CallContext, Principal
from llm_service.wire.openai_errors import openai_error
from llm_service.wire.requests import ParsedRequest, parse_chat, parse_embeddings
from tests.examples import examples

PRINCIPAL = Principal(1, "o", 1, "t", 7, "a", 1, "k", 1)
SECRET = "s" * 40
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
KEY = (b"authorization", b"Bearer sk-tr-good")
WHOLE = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = WHOLE[:-1] + b',"stream":true}'


def of_size(size: int) -> bytes:
    """A request of so many bytes."""
    return WHOLE[:-1] + b" " * (size - len(WHOLE)) + b"}"


class Stream(StreamingAnswer):
    """A stream with the test's own events, which records that it was closed."""

    def __init__(self, *parts: bytes | Exception, gate: asyncio.Event | None = None) -> None:
        self.status, self.call_id, self.cost_nano = 200, new_call_id(), None
        self.headers = {"content-type": "text/event-stream", "x-treasurer-call-id": "c"}
        self.parts, self.gate, self.closed = parts, gate, 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._said()

    async def _said(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part
        if self.gate is not None:
            await self.gate.wait()

    async def __anext__(self) -> bytes:
        raise AssertionError("it is read by its own iterator")

    async def settled(self) -> None:
        return

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


class Service:
    """A fake service, which records its calls and answers, raises an error, or waits until its gate is opened."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, CallContext, object]] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.cancelled = 0
        self.stream_answer = Stream(b"data: 1\n\n", b"data: [DONE]\n\n")

    async def _call(self, kind: str, body: bytes, principal: Principal, context: CallContext, parent: object) -> Answer:
        assert principal is PRINCIPAL
        self.calls.append((kind, body, context, parent))
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return Answer(
            200, b'{"ok":1}', {"content-type": "application/json", "x-treasurer-cost": "0.1"}, new_call_id(), 1
        )

    async def complete(self, body: bytes, *rest: Any, request: ParsedRequest) -> Answer:
        assert request == parse_chat(body)
        return await self._call("complete", body, *rest)

    async def embed(self, body: bytes, *rest: Any) -> Answer:
        return await self._call("embed", body, *rest)

    async def stream(self, body: bytes, *rest: Any, request: ParsedRequest) -> StreamingAnswer:
        assert request == parse_chat(body)
        await self._call("stream", body, *rest)
        return self.stream_answer


class Client:
    """One ASGI request, with the messages that it receives and those that the app sends."""

    def __init__(self, *messages: dict[str, Any], stay: bool = True) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in messages:
            self.incoming.put_nowait(message)
        if not stay:
            self.leave()
        self.sent: list[dict[str, Any]] = []

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> dict[str, Any]:
        message = await self.incoming.get()
        if message["type"] == "http.disconnect":
            self.leave()  # a server repeats this message as often as it is asked
        return message

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        self.sent.append(message)

    @property
    def status(self) -> int:
        (start,) = [message for message in self.sent if message["type"] == "http.response.start"]
        return start["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


def body(content: bytes = WHOLE, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


class Keys:
    """Knows one key."""

    async def by_secret(self, secret: str) -> Principal:
        if secret != "sk-tr-good":
            raise NotAuthenticated("This key is unknown.")
        return PRINCIPAL

    async def by_agent(self, name: str) -> Principal:
        assert name == PRINCIPAL.agent
        return PRINCIPAL


class Traces:
    """Fake traces. The header `traceparent` names the parent by the number of its span, in trace 1."""

    def parent(self, traceparent: str | None) -> SpanPlace | None:
        return None if traceparent is None else SpanPlace(1, int(traceparent))


@dataclass
class Runtime:
    service: Service
    principals: Keys
    telemetry: Traces
    settings: Settings


class Gateway:
    def __init__(self) -> None:
        self.service, self.behind = Service(), list[str]()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.behind.append(scope.get("path", scope["type"]))

        self.settings = Settings(max_body_bytes=100, body_timeout_s=10, stalled_timeout_s=10)
        runtime = Runtime(self.service, Keys(), Traces(), self.settings)
        self.routes = OpenAIDoor(app, lambda: runtime)

    async def ask(
        self,
        client: Client,
        path: str = CHAT,
        headers: Sequence[tuple[bytes, bytes]] = (KEY,),
        method: str = "POST",
        cut: Callable[[bytes], None] = lambda _last: None,
    ) -> Client:
        scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "treasurer.cut": cut}
        await asyncio.wait_for(self.routes(scope, client.receive, client.send), 5)
        return client


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


async def until(true: Callable[[], object]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


# -- answers


@pytest.mark.parametrize(("path", "kind"), [(CHAT, "complete"), (EMBEDDINGS, "embed")])
async def test_a_whole_answer(gateway: Gateway, path: str, kind: str) -> None:
    headers = [KEY, (b"traceparent", b"7"), (b"X-Treasurer-Run", b"r1")]
    client = await gateway.ask(Client(body()), path, headers)
    assert gateway.service.calls == [(kind, WHOLE, CallContext(run="r1"), SpanPlace(1, 7))]
    assert (client.status, client.body) == (200, b'{"ok":1}')
    assert client.headers == {"content-type": "application/json", "x-treasurer-cost": "0.1", "content-length": "8"}


async def test_a_run_s_token_names_the_agent_and_all_that_its_call_is_attributed_to(gateway: Gateway) -> None:
    gateway.routes = OpenAIDoor(gateway.routes._app, gateway.routes._runtime, lambda: SECRET)
    context = CallContext("r1", "ann", "s", ("a",), None, new_call_id(), 99.5)
    token = sign_run_token(SECRET, RunToken("a", context)).encode()
    headers = [
        (b"authorization", b"Bearer " + token), (b"idempotency-key", b"k"), (b"x-treasurer-run", b"other"),
        (b"x-treasurer-tags", b"b"),
    ]  # fmt: skip
    client = await gateway.ask(Client(body()), headers=headers)
    assert client.status == 200
    assert gateway.service.calls == [("complete", WHOLE, replace(context, idempotency_key="k"), None)]
    for secret in ("x" * 40, SECRET):
        other = sign_run_token(secret, RunToken("a", context)) + ("x" if secret == SECRET else "")
        client = await gateway.ask(Client(body()), headers=[(b"authorization", b"Bearer " + other.encode())])
        assert (client.status, client.error["code"]) == (401, "invalid_api_key")
    assert (await gateway.ask(Client(body()))).status == 200  # keys are served as before


async def test_a_worker_s_stream_ends_with_its_cost(gateway: Gateway) -> None:
    gateway.routes = OpenAIDoor(gateway.routes._app, gateway.routes._runtime, lambda: SECRET)
    token = sign_run_token(SECRET, RunToken("a", CallContext("r1"))).encode()
    headers = [(b"authorization", b"Bearer " + token)]
    assert b"cost" not in (await gateway.ask(Client(body(STREAM)), headers=headers)).body  # nobody knows it yet
    gateway.service.stream_answer.cost_nano = 1_500
    client = await gateway.ask(Client(body(STREAM)), headers=headers)
    assert client.body == b"data: 1\n\ndata: [DONE]\n\n: x-treasurer-cost 0.000001500\n\n"
    assert b"cost" not in (await gateway.ask(Client(body(STREAM)))).body
    assert gateway.service.stream_answer.closed == 3


async def test_a_token_is_no_key_where_there_are_no_workers(gateway: Gateway) -> None:
    token = sign_run_token(SECRET, RunToken("digest", CallContext("r1"))).encode()
    client = await gateway.ask(Client(body()), headers=[(b"authorization", b"Bearer " + token)])
    assert (client.status, gateway.service.calls) == (401, [])


async def test_a_stream(gateway: Gateway) -> None:
    client = await gateway.ask(Client(body(STREAM)))
    assert [call[0] for call in gateway.service.calls] == ["stream"]
    assert client.headers == gateway.service.stream_answer.headers
    assert [message["body"] for message in client.sent[1:]] == [b"data: 1\n\n", b"data: [DONE]\n\n", b""]
    assert [message["more_body"] for message in client.sent[1:]] == [True, True, False]
    assert gateway.service.stream_answer.closed == 1


async def test_a_body_in_pieces_is_read_whole(gateway: Gateway) -> None:
    await gateway.ask(Client(body(WHOLE[:9], more=True), body(WHOLE[9:20], more=True), body(WHOLE[20:])))
    assert gateway.service.calls[0][1] == WHOLE


@pytest.mark.parametrize(
    ("path", "method"),
    [("/v1/models", "POST"), (CHAT + "/", "POST"), ("/", "GET"), ("/v1", "OPTIONS")],
)
async def test_everything_else_is_the_apps(gateway: Gateway, path: str, method: str) -> None:
    await gateway.ask(Client(), path, method=method)
    assert gateway.behind == [path]
    assert gateway.service.calls == []


@pytest.mark.parametrize(
    ("path", "method"), [(CHAT, "GET"), (CHAT, "PUT"), (EMBEDDINGS, "OPTIONS"), (EMBEDDINGS, "HEAD")]
)
async def test_another_method_is_refused_with_the_one_that_is_allowed(gateway: Gateway, path: str, method: str) -> None:
    client = await gateway.ask(Client(), path, method=method)
    assert (client.status, client.headers["allow"]) == (405, "POST")
    assert client.error["type"] == "invalid_request_error"
    assert f"{path} takes POST" in client.error["message"]
    assert (gateway.behind, gateway.service.calls) == ([], [])


async def test_what_is_no_request_is_the_apps(gateway: Gateway) -> None:
    client = Client()
    await gateway.routes({"type": "lifespan"}, client.receive, client.send)
    assert gateway.behind == ["lifespan"]


# -- callers who are not allowed


@pytest.mark.parametrize(
    "headers",
    [[], [(b"authorization", b"")], [(b"authorization", b"Bearer ")], [(b"authorization", b"Basic sk-tr-good")],
     [(b"authorization", b"sk-tr-good")], [(b"authorization", b"Bearer sk-tr-bad")], [(b"authorization", b"Bearer \xff\xfe")],
     [KEY, KEY], [KEY, (b"Authorization", b"Bearer sk-tr-bad")], [(b"x-api-key", b"sk-tr-good")]],
)  # fmt: skip
async def test_without_one_good_key_nobody_is_served(gateway: Gateway, headers: list[tuple[bytes, bytes]]) -> None:
    client = await gateway.ask(Client(body()), headers=headers)
    assert client.status == 401
    assert client.headers["www-authenticate"] == "Bearer"
    assert client.headers["content-type"] == "application/json"
    assert client.error["type"] == "authentication_error"
    assert b"sk-tr-" not in client.body.replace("sk-tr-…".encode(), b"")
    assert gateway.service.calls == []


# -- requests that are too large or too slow


@pytest.mark.parametrize(
    ("length", "messages"),
    [
        (b"101", [body(b"x")]),
        (b"99999999999999999999", [body(b"x")]),
        (None, [body(b"x" * 101)]),
        (None, [body(b"x" * 60, more=True), body(b"x" * 60)]),
        (None, [body(b"x" * 101, more=True), body(b"")]),
        (b"5", [body(b"x" * 101)]),
    ],
)
async def test_a_body_that_is_too_large(
    gateway: Gateway, length: bytes | None, messages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "_DRAIN_PAUSE_S", 0.05)  # the rest of the body never comes
    headers = [KEY] if length is None else [KEY, (b"content-length", length)]
    client = await gateway.ask(Client(*messages), headers=headers)
    assert (client.status, client.error["code"]) == (413, "request_too_large")
    assert "100 bytes" in client.error["message"]
    assert gateway.service.calls == []


async def test_a_body_as_large_as_may_be(gateway: Gateway) -> None:
    largest = of_size(100)
    for messages in ([body(largest)], [body(largest[:50], more=True), body(largest[50:])]):
        await gateway.ask(Client(*messages), headers=[KEY, (b"content-length", b"100")])
    assert [len(call[1]) for call in gateway.service.calls] == [100, 100]


@pytest.mark.parametrize("length", [b"", b"abc", b"-5", b"\xc2\xb2", b"1e9"])
async def test_a_content_length_that_is_none_is_not_trusted(gateway: Gateway, length: bytes) -> None:
    client = await gateway.ask(Client(body()), headers=[KEY, (b"content-length", length)])
    assert client.status == 200


# -- errors


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (InvalidRequest("m", param="n"), 400, {}),
        (BudgetExhausted("m"), 429, {"x-should-retry": "false"}),
        (BudgetBusy("m", retry_after=2), 429, {"x-should-retry": "true", "retry-after": "2"}),
        (UpstreamError("m", status=418), 418, {}),
    ],
)
@pytest.mark.parametrize("sent", [WHOLE, STREAM])
async def test_an_error_has_openais_shape(
    gateway: Gateway, error: TreasurerError, status: int, headers: dict[str, str], sent: bytes
) -> None:
    gateway.service.error = error
    client = await gateway.ask(Client(body(sent)))
    assert client.status == status
    assert json.loads(client.body) == openai_error(error)
    shown = client.headers
    assert shown.pop("content-length") == str(len(client.body))
    assert shown == {"content-type": "application/json"} | headers


async def test_a_bug_is_a_500_without_its_text(gateway: Gateway) -> None:
    gateway.service.error = RuntimeError("secret detail")
    client = await gateway.ask(Client(body()))
    assert (client.status, client.error["code"]) == (500, "internal_error")
    assert b"secret" not in client.body


@pytest.mark.parametrize("sent", [b"", b"{", b'{"stream": tru', b'"stream"', b"\xff", b"[]"])
async def test_bad_json_is_a_400_that_says_so(gateway: Gateway, sent: bytes) -> None:
    client = await gateway.ask(Client(body(sent)))
    assert (client.status, client.error["code"]) == (400, "invalid_json")
    assert gateway.service.calls == []


@pytest.mark.parametrize("stream", [b"1", b'"true"', b"[]"])
async def test_a_stream_is_true_or_false(gateway: Gateway, stream: bytes) -> None:
    client = await gateway.ask(Client(body(WHOLE[:-1] + b',"stream":' + stream + b"}")))
    assert (client.status, client.error["param"]) == (400, "stream")
    assert gateway.service.calls == []


@pytest.mark.parametrize(
    ("field", "kind"),
    [(b'"stream":false', "complete"), (b'"stream":null', "complete"), (b'"stream":true', "stream"),
     (b'"metadata":{"stream":"true"}', "complete"), (b'"stop":"\\"stream\\":true"', "complete")],
)  # fmt: skip
async def test_whether_a_stream_is_asked_for(gateway: Gateway, field: bytes, kind: str) -> None:
    await gateway.ask(Client(body(WHOLE[:-1] + b"," + field + b"}")))
    assert [call[0] for call in gateway.service.calls] == [kind]


async def test_a_body_is_parsed_once(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def parse(sent: bytes) -> ParsedRequest:
        parsed.append(sent)
        return parse_chat(sent)

    monkeypatch.setattr(openai, "parse_chat", parse)
    await gateway.ask(Client(body(STREAM)))
    assert parsed == [STREAM]


async def test_an_error_in_mid_stream_is_an_event(gateway: Gateway) -> None:
    error = UpstreamError("The connection broke.")
    gateway.service.stream_answer = Stream(b"data: 1\n\n", error)
    client = await gateway.ask(Client(body(STREAM)))
    assert client.status == 200
    event = b"data: " + json.dumps(openai_error(error), separators=(",", ":")).encode() + b"\n\n"
    assert client.body == b"data: 1\n\n" + event
    assert client.sent[-1]["more_body"] is False
    assert gateway.service.stream_answer.closed == 1


async def test_a_bug_in_mid_stream_is_an_event_without_its_text(gateway: Gateway) -> None:
    gateway.service.stream_answer = Stream(b"data: 1\n\n", RuntimeError("secret detail"))
    client = await gateway.ask(Client(body(STREAM)))
    assert client.status == 200
    assert b'"internal_error"' in client.body
    assert b"secret" not in client.body
    assert gateway.service.stream_answer.closed == 1


# -- callers who leave


async def test_a_caller_who_leaves_cancels_the_call(gateway: Gateway) -> None:
    gateway.service.gate = asyncio.Event()
    client = Client(body())
    asking = asyncio.create_task(gateway.ask(client))
    await until(lambda: gateway.service.calls)
    client.leave()
    await asking
    assert gateway.service.cancelled == 1
    assert client.sent == []


async def test_a_caller_who_leaves_a_stream_closes_it(gateway: Gateway) -> None:
    gateway.service.stream_answer = Stream(b"data: 1\n\n", gate=asyncio.Event())
    client = Client(body(STREAM))
    asking = asyncio.create_task(gateway.ask(client))
    await until(lambda: len(client.sent) == 2)
    client.leave()
    await asking
    assert gateway.service.stream_answer.closed == 1
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]


async def test_a_caller_who_is_gone_as_the_stream_opens_closes_it(gateway: Gateway) -> None:
    gateway.service.stream_answer = Stream(b"data: 1\n\n", gate=asyncio.Event())
    client = Client(body(STREAM), stay=False)
    await gateway.ask(client)
    assert gateway.service.stream_answer.closed == len(gateway.service.calls) - gateway.service.cancelled


@pytest.mark.parametrize("messages", [[], [body(b'{"a"', more=True)]])
async def test_a_caller_who_leaves_before_the_body_was_whole(gateway: Gateway, messages: list[dict[str, Any]]) -> None:
    client = await gateway.ask(Client(*messages, stay=False))
    assert client.sent == []
    assert gateway.service.calls == []


async def test_a_connection_that_breaks_while_sending_closes_the_stream(gateway: Gateway) -> None:
    client = Client(body(STREAM))

    async def broken(message: Any) -> None:
        raise OSError("gone")

    client.send = broken
    with pytest.raises(OSError, match="gone"):
        await gateway.ask(client)
    assert gateway.service.stream_answer.closed == 1


async def test_a_caller_who_takes_nothing_for_long_gets_an_error_and_its_stream_is_closed(gateway: Gateway) -> None:
    told: list[bytes] = []

    class Stalled(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body"):
                await asyncio.sleep(3600)

    client = Stalled(body(STREAM))
    gateway.settings.stalled_timeout_s = 0.05
    await gateway.ask(client, cut=told.append)
    assert gateway.service.stream_answer.closed == 1
    (event,) = told
    error = json.loads(event.removeprefix(b"data: "))["error"]
    assert (error["code"], error["message"]) == (
        "request_timeout", "You took nothing of this answer for 0.05 s, so it was ended.",
    )  # fmt: skip


async def test_a_server_that_stops_closes_the_stream(gateway: Gateway) -> None:
    gateway.service.stream_answer = Stream(b"data: 1\n\n", gate=asyncio.Event())
    client = Client(body(STREAM))
    asking = asyncio.create_task(gateway.ask(client))
    await until(lambda: len(client.sent) == 2)
    asking.cancel()
    await asyncio.wait([asking])
    await until(lambda: gateway.service.stream_answer.closed)


# -- the context that a request names


def test_a_request_that_says_nothing() -> None:
    assert read_context({}) is NO_CONTEXT
    assert read_context({"x-treasurer-run": " ", "x-treasurer-tags": "", "idempotency-key": ""}) is NO_CONTEXT


def test_a_request_that_says_everything() -> None:
    headers = {"x-treasurer-run": " r1 ", "x-treasurer-user": "Änne 文", "x-treasurer-session": "s",
               "x-treasurer-tags": "b, a,,b ,c", "idempotency-key": "k" * 255}  # fmt: skip
    assert read_context(headers) == CallContext("r1", "Änne 文", "s", ("b", "a", "c"), "k" * 255)
    assert read_context({"x-treasurer-tags": " , ,"}).tags == ()


@pytest.mark.parametrize(
    "headers",
    [{"x-treasurer-run": "r" * 129}, {"x-treasurer-user": "a\tb"}, {"x-treasurer-session": "a\0"}, {"idempotency-key": "k" * 256},
     {"x-treasurer-tags": ",".join(str(n) for n in range(33))}, {"x-treasurer-tags": "t" * 129},
     {"x-treasurer-tags": "ok," + "t" * 129}, {"x-treasurer-user": "\ufffd"}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_a_header_that_says_too_much_is_named(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_context(headers)
    assert (refused.value.status, refused.value.param) == (400, next(iter(headers)))


@given(
    st.dictionaries(
        st.sampled_from(["x-treasurer-run", "x-treasurer-user", "x-treasurer-tags", "idempotency-key"]),
        st.text(max_size=200),
    )
)
@settings(max_examples=examples(100), deadline=None)
def test_any_headers_are_a_context_or_a_400(headers: dict[str, str]) -> None:
    with contextlib.suppress(InvalidRequest):
        context = read_context(headers)
        values = [context.run, context.user, context.session, *context.tags]
        assert all(value is None or 0 < len(value) <= 128 for value in values)


_USERS = ["ann", " Änne 文 ", "u" * 128, "u" * 129, "", " ", "a\tb", "a\0", "a\nb", "\ufffd", "\u202eann", "\u00a0ann"]
_CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def _read(read: Callable[[], str | None]) -> tuple[str | None, int]:
    """The user that was read, and the status of a refusal."""
    try:
        return read(), 200
    except InvalidRequest as error:
        return error.message.partition(" must ")[2], error.status


@given(st.one_of(st.sampled_from(_USERS), st.text(max_size=200)))
@settings(max_examples=examples(200), deadline=None)
def test_the_bodys_user_obeys_what_the_headers_obeys(user: str) -> None:
    """A name that is too long or not printable must not evade a budget for each user."""
    header = _read(lambda: read_context({"x-treasurer-user": user}).user)
    assert _read(lambda: parse_chat(orjson.dumps(_CHAT | {"user": user})).user) == header
    embeddings = orjson.dumps({"model": "m", "input": "hi", "user": user})
    assert _read(lambda: parse_embeddings(embeddings).user) == header
