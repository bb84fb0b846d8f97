"""Bad input on the OpenAI routes is a clear 4xx in OpenAI's shape that names the parameter. Nothing is written or sent.

What must hold: a refusal adds no row to a table that a call writes to, and no line to the provider's invoice. (Refusals
of known agents are counted in `refusals`.)
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said
from tests.llm_service.wire.media_files import data_url, wav

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Bad:
    """A request that must be refused: what is wrong with it, and what the answer must contain."""

    name: str
    body: Any
    status: int = 400
    param: str | None = None
    code: str = "invalid_request"
    path: str = CHAT
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def chat(name: str, *, status: int = 400, param: str | None = "", code: str = "invalid_request", **fields: Any) -> Bad:
    """A chat request that only `fields` make invalid. `param`: the field that the error must name (default: the
    first)."""
    wrong = next(iter(fields)) if param == "" else param
    return Bad(name, {"model": "gpt-4o-mini", "messages": HELLO, **fields}, status, wrong, code)


def given(name: str, fields: dict[str, Any], code: str = "invalid_request") -> Bad:
    """Like `chat`, for fields that are given as a dictionary."""
    return Bad(name, {"model": "gpt-4o-mini", "messages": HELLO, **fields}, param=next(iter(fields)), code=code)


def embed(name: str, *, param: str, code: str = "invalid_request", **fields: Any) -> Bad:
    body = {"model": "text-embedding-3-small", "input": "x", **fields}
    return Bad(name, body, 400, param, code, path=EMBEDDINGS)


def content(name: str, *parts: Any, code: str = "not_priced") -> Bad:
    return chat(name, messages=[{"role": "user", "content": list(parts)}], code=code)


UNKNOWN = "unknown_parameter"
RAW = [
    Bad("nothing", b"", code="invalid_json"),
    Bad("no JSON", b"{", code="invalid_json"),
    Bad("broken UTF-8", b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "\xff\xfe"}]}', code="invalid_json"),
    Bad("a lone surrogate", b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "\\ud800"}]}', code="invalid_json"),
    Bad("an array", b"[]", code="invalid_json"),
    Bad("a string", b'"gpt-4o-mini"', code="invalid_json"),
    Bad("null", b"null", code="invalid_json"),
    Bad("nested a thousand deep", b'{"model": "gpt-4o-mini", "messages": ' + b"[" * 1000 + b"]" * 1000 + b"}", code="invalid_json"),
    Bad("nested a million deep", b"[" * 1_000_000, code="invalid_json"),
    Bad("a million lists", b'{"model": "gpt-4o-mini", "messages": [], "metadata": {"a": [' + b"[]," * 1_000_000 + b"[]]}}", code="invalid_json"),
    Bad("NaN", b'{"model": "gpt-4o-mini", "messages": [], "temperature": NaN}', code="invalid_json"),
    Bad("a number of 400 digits", b'{"model": "gpt-4o-mini", "max_tokens": 1' + b"0" * 400 + b"}", code="invalid_json"),
    Bad("20 MB", b'{"model": "gpt-4o-mini", "x": "' + b"x" * 20_000_000 + b'"}', status=413, code="request_too_large"),
    Bad("a form", b"model=gpt-4o-mini", code="invalid_json"),
    Bad("a multipart form", b"--x\r\n", 415, code="unsupported_media_type", headers={"Content-Type": "multipart/form-data; boundary=x"}),
    Bad("UTF-16", json.dumps({"model": "gpt-4o-mini"}).encode("utf-16"), 415, code="unsupported_media_type"),
    Bad("Brotli", b"{}", 415, code="unsupported_media_type", headers={"Content-Encoding": "br"}),
    Bad("not gzip", b"{}", code="invalid_encoding", headers={"Content-Encoding": "gzip"}),
    Bad("a gzip bomb", gzip.compress(b" " * 20_000_000), 413, code="request_too_large", headers={"Content-Encoding": "gzip"}),
]  # fmt: skip
FIELDS = [
    Bad("no model", {"messages": HELLO}, param="model"),
    chat("a model that is a number", model=7),
    chat("an empty model", model=""),
    chat("a model with a newline", model="gpt-4o-mini\r\nx-evil: 1"),
    chat("a long model", model="x" * 300),
    chat("an unknown model", model="gpt-99", status=404, code="model_not_found"),
    chat("a model of LiteLLM's own syntax", model="openai/gpt-4o", status=404, code="model_not_found"),
    chat("a wildcard", model="*", status=404, code="model_not_found"),
    chat("an embedding model", model="text-embedding-3-small", status=404, code="model_not_found"),
    chat("no messages", messages=None),
    chat("empty messages", messages=[]),
    chat("messages that are text", messages="hello"),
    chat("a message that is text", messages=["hello"]),
    chat("a message without a role", messages=[{"content": "hello"}]),
    chat("a content that is a number", messages=[{"role": "user", "content": 5}]),
    chat("a part that is text", messages=[{"role": "user", "content": ["hello"]}]),
    *[
        given(f"{name} {value!r}", {name: value})
        for name in ("max_tokens", "max_completion_tokens")
        for value in (-1, 0, 10_000_001, 2**63, 1.5, "100", True, [1])
    ],
    *[chat(f"n {value!r}", n=value) for value in (0, -1, 129, 2**63, "3", 1.0)],
    chat("stream as text", stream="true"),
    chat("stream as a number", stream=1),
    chat("stream options that are none", stream=True, stream_options=[True], param="stream_options"),
    chat("a user that is a number", user=5),
    chat("a long user", user="x" * 300),
    chat("tools that are an object", tools={}),
    chat("a tool that is text", tools=["weather"]),
    chat("a function without its definition", tools=[{"type": "function", "name": "weather"}]),
]
STEERING = [
    *[
        given(f"steering by {name}", {name: value}, UNKNOWN)
        for name, value in {
            "api_base": "http://127.0.0.1:1", "base_url": "http://127.0.0.1:1", "api_key": "sk-x", "api_version": "1",
            "fallbacks": ["gpt-4o"], "context_window_fallbacks": [{}], "input_cost_per_token": 0, "output_cost_per_token": 0,
            "mock_response": "free", "num_retries": 5, "timeout": 1, "custom_llm_provider": "openai", "model_list": [],
            "extra_body": {"max_tokens": 9}, "extra_headers": {"x": "y"}, "drop_params": True, "caching": True,
            "no-log": True, "litellm_metadata": {}, "tags": ["x"], "guardrails": [], "max_output_tokens": 100_000,
            "generationConfig": {"candidateCount": 8}, "best_of": 20,
        }.items()
    ],
    chat("an absurdly long name", **{"x" * 5000: 1}, param="x" * 64, code=UNKNOWN),
]  # fmt: skip
UNPRICED = [
    *[
        chat(f"the hosted tool {kind}", tools=[{"type": kind}], code="not_priced")
        for kind in (
            "web_search",
            "web_search_preview",
            "code_interpreter",
            "file_search",
            "computer_use_preview",
            "mcp",
        )
    ],
    chat("a search of the web", web_search_options={}, code="not_priced"),
    chat("audio out", modalities=["text", "audio"], code="not_priced"),
    chat("audio settings", audio={"voice": "alloy", "format": "wav"}, code="not_priced"),
    chat("a service tier without a price", service_tier="scale", code="not_priced"),
    content("audio in", {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    content("audio as a file", {"type": "file", "file": {"file_data": data_url("audio/wav", wav(1))}}),
    content("audio as an image", {"type": "image_url", "image_url": {"url": data_url("audio/wav", wav(1))}}),
    content("audio that says it is an image", {"type": "image_url", "image_url": data_url("image/png", wav(1))}),
    content("an uploaded file", {"type": "file", "file": {"file_id": "file-123"}}),
    content("a file at Google", {"type": "file", "file": {"file_data": "gs://bucket/film.mp4"}}),
    content("a video", {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}),
    content("a document", {"type": "document", "source": {"type": "text", "data": "x"}}),
    content("a part of no type", {"text": "x"}),
    chat("an answer's audio again", messages=[{"role": "assistant", "audio": {"id": "a"}}, *HELLO], code="not_priced"),
]
EMBEDDED = [
    embed("no input", input=None, param="input"),
    embed("an empty text", input="", param="input"),
    embed("an empty list", input=[], param="input"),
    embed("an empty text among others", input=["x", ""], param="input"),
    embed("a number", input=5, param="input"),
    embed("mixed", input=["x", 5], param="input"),
    embed("fractions", input=[1.5], param="input"),
    embed("objects", input=[{"text": "x"}], param="input"),
    embed("too many", input=["x"] * 2049, param="input"),
    embed("no dimensions", dimensions=0, param="dimensions"),
    embed("an unknown encoding", encoding_format="hex", param="encoding_format"),
    embed("steering", api_base="http://127.0.0.1:1", param="api_base", code=UNKNOWN),
    embed("a stream", stream=True, param="stream", code=UNKNOWN),
    Bad("a chat model", {"model": "gpt-4o-mini", "input": "x"}, 404, "model", "model_not_found", path=EMBEDDINGS),
    Bad("no JSON for embeddings", b"[", code="invalid_json", path=EMBEDDINGS),
]
GOOD = {"model": "gpt-4o-mini", "messages": HELLO, "max_tokens": 5}


def headed(name: str, headers: dict[str, str], param: str) -> Bad:
    return Bad(name, GOOD, 400, param, headers=headers)


HEADERS = [
    headed("too many tags", {"x-treasurer-tags": ",".join(f"t{n}" for n in range(33))}, "x-treasurer-tags"),
    headed("a long run", {"x-treasurer-run": "x" * 129}, "x-treasurer-run"),
    headed("a tab in a user", {"x-treasurer-user": "a\tb"}, "x-treasurer-user"),
    headed("a long idempotency key", {"idempotency-key": "x" * 256}, "idempotency-key"),
]


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


async def refused(caller: Caller, bad: Bad, secret: str | None = None) -> dict[str, Any]:
    """Send the request and return the error of the answer, whose shape is checked."""
    data = io.BytesIO(bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode())
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret or caller.secret}", **bad.headers}
    async with caller.http.post(caller.stack.gateway_url + bad.path, data=data, headers=headers) as response:
        assert response.headers["content-type"] == "application/json", bad.name
        answer = await response.json()
        assert response.status == bad.status, (bad.name, answer)
    assert set(answer) == {"error"}
    error: dict[str, Any] = answer["error"]
    assert {"message", "type", "param", "code"} <= set(error) <= {"message", "type", "param", "code", "treasurer"}
    assert (error["param"], error["code"]) == (bad.param, bad.code), (bad.name, error)
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 500
    return error


@pytest.mark.parametrize(
    "group",
    [RAW, FIELDS, STEERING, UNPRICED, EMBEDDED, HEADERS],
    ids=["raw", "fields", "steering", "unpriced", "embeddings", "headers"],
)
async def test_bad_input_is_a_named_4xx_and_nothing_is_written(caller: Caller, group: list[Bad]) -> None:
    before = await caller.counts()
    for bad in group:
        await refused(caller, bad)
    assert await caller.counts() == before
    assert await caller.faults() == []


async def test_every_bad_stream_is_refused_before_it_begins(caller: Caller) -> None:
    before = await caller.counts()
    for bad in (*FIELDS, *STEERING, *UNPRICED):
        if "stream" not in bad.body:
            await refused(caller, Bad(bad.name, {**bad.body, "stream": True}, bad.status, bad.param, bad.code))
    assert await caller.counts() == before


async def test_the_sdk_raises_its_own_errors(caller: Caller) -> None:
    client = caller.client(max_retries=2)
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="gpt-99", messages=said())
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="gpt-4o-mini", messages=said(), max_tokens=0)
    assert wrong.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as steering:
        await client.chat.completions.create(model="gpt-4o-mini", messages=said(), extra_body={"api_base": "http://x"})
    assert steering.value.code == UNKNOWN
    assert len(caller.responses) == 3  # no request was retried


async def unauthorised(caller: Caller, headers: Mapping[str, str], path: str = CHAT) -> tuple[int, dict[str, Any], str]:
    async with caller.http.post(caller.stack.gateway_url + path, json=GOOD, headers=headers) as response:
        text = await response.text()
        return response.status, json.loads(text)["error"], text + str(response.headers)


async def test_keys_that_open_nothing(caller: Caller) -> None:
    short = await caller.admin("POST", "keys", {"agent": caller.agent, "name": "short", "expires": "1s"})
    gone = await caller.admin("POST", "keys", {"agent": caller.agent, "name": "gone"})
    await caller.admin("DELETE", f"keys/{gone['id']}")
    await asyncio.sleep(1.1)
    before = await caller.counts()
    for name, value in {
        "none": None,
        "empty": "",
        "only a scheme": "Bearer",
        "another scheme": f"Basic {caller.secret}",
        "not a key": "Bearer x",
        "wrong": "Bearer sk-tr-" + "x" * 43,
        "cut short": f"Bearer {caller.secret[:-1]}",
        "too long": f"Bearer {caller.secret}x",
        "two keys": f"Bearer {caller.secret} {caller.secret}",
        "expired": f"Bearer {short['secret']}",
        "revoked": f"Bearer {gone['secret']}",
        "LiteLLM's": f"Bearer {caller.stack.proxy_master_key}",
        "the grants' secret": f"Bearer {caller.stack.grant_secret}",
        "endless": "Bearer " + "x" * 30_000,
    }.items():
        for path in (CHAT, EMBEDDINGS):
            status, error, text = await unauthorised(caller, {} if value is None else {"Authorization": value}, path)
            assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key"), name
            assert "Bearer" in text, name  # www-authenticate
            assert "sk-tr-x" not in text, name
            assert caller.secret not in text, name
    for secret, reason in ((short["secret"], "expired"), (gone["secret"], "revoked")):
        _, error, _ = await unauthorised(caller, {"Authorization": f"Bearer {secret}"})
        assert error["treasurer"] == {"reason": reason}
        assert reason in error["message"]
    with pytest.raises(openai.AuthenticationError):
        await caller.client(secret="sk-tr-" + "x" * 43).models.list()
    assert await caller.counts() == before


async def test_a_key_opens_only_its_own_side(caller: Caller) -> None:
    before = await caller.counts()
    with pytest.raises(openai.PermissionDeniedError):
        await caller.client(secret=caller.stack.admin_key).chat.completions.create(model="gpt-4o-mini", messages=said())
    with pytest.raises(openai.PermissionDeniedError):
        await caller.client(secret=caller.stack.admin_key).embeddings.create(model="text-embedding-3-small", input="x")
    headers = {"Authorization": f"Bearer {caller.secret}"}
    for method, path in (
        ("GET", "agents"),
        ("POST", "agents"),
        ("POST", "keys"),
        ("PATCH", "budgets/x"),
        ("DELETE", "keys/1"),
    ):
        address = f"{caller.stack.gateway_url}/admin/v1/{path}"
        async with caller.http.request(method, address, headers=headers, json={"name": "x"}) as response:
            assert response.status == 403, path
            assert (await response.json())["error"]["code"] == "not_permitted"
    assert await caller.counts() == before


async def test_a_paused_agent_is_refused_as_paused(caller: Caller) -> None:
    await caller.admin("POST", f"agents/{caller.agent}/pause")
    before = await caller.counts()
    client = caller.client(max_retries=2)
    with pytest.raises(openai.PermissionDeniedError) as raised:
        await client.chat.completions.create(model="gpt-4o-mini", messages=said())
    assert raised.value.code == "paused"
    assert caller.agent in raised.value.message
    with pytest.raises(openai.PermissionDeniedError):
        await client.chat.completions.create(model="gpt-4o-mini", messages=said(), stream=True)
    with pytest.raises(openai.PermissionDeniedError):
        await client.embeddings.create(model="text-embedding-3-small", input="x")
    assert await caller.counts() == before


async def raw(caller: Caller, request: bytes) -> bytes:
    """The gateway's answer to bytes that no client library would send."""
    address = urlsplit(caller.stack.gateway_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request)
        await writer.drain()
        return await asyncio.wait_for(reader.read(65536), 20)
    finally:
        writer.close()
        # The gateway may close the connection before it has read everything.
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


def http(caller: Caller, *headers: bytes, body: bytes = b"", path: bytes = CHAT.encode()) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Connection: close", *headers]
    if not any(header.lower().startswith((b"content-length", b"transfer-encoding")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_requests_that_no_library_would_send(caller: Caller) -> None:
    body, key = json.dumps(GOOD).encode(), b"Authorization: Bearer " + caller.secret.encode()
    before = await caller.counts()
    for name, request, status in (
        ("a control character in a header", http(caller, key, b"x-treasurer-run: a\x00b", body=body), b"400"),
        ("a header folded into two lines", http(caller, key, b"x-treasurer-run: a\r\n x-evil: 1", body=body), b"400"),
        ("two keys", http(caller, key, b"Authorization: Bearer sk-tr-" + b"x" * 43, body=body), b"401"),
        ("a header of no UTF-8", http(caller, key, b"x-treasurer-user: \xff\xfe", body=body), b"400"),
        ("a line of no HTTP", b"GARBAGE\r\n\r\n", b"400"),
        ("two lengths", http(caller, key, b"Content-Length: 5", b"Content-Length: 6", body=body), b"400"),
        ("a length and chunks", http(caller, key, b"Content-Length: 5", b"Transfer-Encoding: chunked", body=body), b"400"),
        ("a negative length", http(caller, key, b"Content-Length: -5", body=body), b"400"),
        ("a length that promises 20 MB", http(caller, key, b"Content-Length: 20000000"), b"413"),
        ("chunks without end", http(caller, key, b"Transfer-Encoding: chunked", body=(b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 17), b"413"),
    ):  # fmt: skip
        answer = await raw(caller, request)
        assert answer.startswith(b"HTTP/1.1 " + status), (name, answer[:300])
        assert b"x-evil" not in answer.lower()
    assert await caller.counts() == before


async def test_a_value_of_a_caller_s_never_becomes_a_header(caller: Caller) -> None:
    """Names of models and budgets are put into headers. Line breaks that a caller sends must not get into a header."""
    sneaky = "a\r\nx-evil: 1"
    before = await caller.counts()
    await refused(caller, chat("a model", model=sneaky))
    body = {"limit": "1", "agent": caller.agent, "name": sneaky}
    headers = {"Authorization": f"Bearer {caller.stack.admin_key}"}
    async with caller.http.post(f"{caller.stack.gateway_url}/admin/v1/budgets", json=body, headers=headers) as response:
        assert response.status == 400
    assert await caller.counts() == before


async def test_a_packed_body_is_a_call_like_any_other(caller: Caller) -> None:
    """A body may be compressed. An idempotency key belongs to the uncompressed text."""
    text = json.dumps({"model": "gpt-4.1-mini", "messages": said(), "max_tokens": 5}).encode()
    calls: list[str] = []
    for body, coding in ((gzip.compress(text), "gzip"), (zlib.compress(text), "deflate"), (text, "identity")):
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {caller.secret}",
            "Content-Encoding": coding,
            "Idempotency-Key": "k",
        }
        async with caller.http.post(caller.stack.gateway_url + CHAT, data=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            calls.append(response.headers["x-treasurer-call-id"])
    assert len(set(calls)) == 1
    await caller.agrees(1)
