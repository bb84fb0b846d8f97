"""The governed call over HTTP: run tokens, errors that keep their class, and requests that are sent again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llm_service.call.response_headers import CALL_ID, COST, REPLAYED
from llm_service.errors import (
    BudgetExhausted,
    IdempotencyConflict,
    InvalidRequest,
    NotAuthenticated,
    RateLimited,
    TreasurerError,
    Unavailable,
    UpstreamError,
)
from llm_service.grants import for_service, sign
from llm_service.runs.remote import GatewayUnavailable, RemoteService, error_of
from llm_service.runs.tokens import RunToken, looks_like_token, read_run_token, sign_run_token
from llm_service.types import CallContext, Principal
from llm_service.wire.openai_errors import openai_error_body

SECRET = "s" * 40
PRINCIPAL = Principal(1, "o", 1, "t", 7, "digest", None, None, epoch=1)
CONTEXT = CallContext("r1", "ann", "s", ("a", "b"), "r1/1", uuid4(), 5000.5)


# -- tokens


def test_a_token_has_all_but_the_idempotency_key() -> None:
    text = sign_run_token(SECRET, RunToken("digest", CONTEXT))
    assert looks_like_token(text)
    assert not looks_like_token("sk-tr-" + "x" * 43)
    read = read_run_token(SECRET, text)
    assert read.agent == "digest"
    assert read.context == CallContext("r1", "ann", "s", ("a", "b"), None, CONTEXT.envelope, 5000.5)


def tokens_that_are_not_ours() -> Iterator[tuple[str, str]]:
    good = {"iss": "treasurer-run", "sub": "digest", "run": "r", "iat": int(time.time()), "exp": int(time.time()) + 60}

    def made(secret: str = SECRET, algorithm: str = "HS256", **changes: object) -> str:
        return jwt.encode({**good, **changes}, secret, algorithm=algorithm)

    yield "another secret", made("x" * 40)
    yield "no signature", made("", "none")
    yield "expired", made(exp=int(time.time()) - 60)
    yield "a grant", sign(SECRET, for_service("/model/info"))
    yield "no run", made(run=None)
    yield "tags that are none", made(tags="a")
    yield "tags of numbers", made(tags=[1])
    yield "an envelope that is none", made(envelope="x")
    yield "a time that is none", made(keep="long")
    yield "nothing", "eyJ.."


@pytest.mark.parametrize(("name", "text"), list(tokens_that_are_not_ours()), ids=lambda value: str(value)[:24])
def test_no_other_token_is_taken(name: str, text: str) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        read_run_token(SECRET, text)
    assert text not in caught.value.message


# -- errors


def every_class() -> list[type[TreasurerError]]:
    found, left = list[type[TreasurerError]](), [TreasurerError]
    while left:
        kind = left.pop()
        found.append(kind)
        left.extend(each for each in kind.__subclasses__() if each.__module__ == "llm_service.errors")
    return found


@pytest.mark.parametrize("kind", every_class())
def test_an_error_comes_back_as_what_it_was(kind: type[TreasurerError]) -> None:
    error = kind("what happened")
    error.retry_after, error.details = 7, {"cost_nano": 5}
    back = error_of(error.status, error.headers(), openai_error_body(error))
    assert isinstance(back, kind)
    assert (back.message, back.code, back.status, back.details) == (
        "what happened",
        error.code,
        error.status,
        {"cost_nano": 5},
    )
    assert (back.retry_after, back.should_retry, back.headers()) == (7, error.should_retry, error.headers())


def test_errors_with_other_codes_are_told_apart() -> None:
    for error, kind in (
        (IdempotencyConflict("lost", code="idempotency_answer_lost"), IdempotencyConflict),
        (UpstreamError("too long", code="context_length_exceeded", status=400), InvalidRequest),
        (UpstreamError("down", code="server_error", status=502), UpstreamError),
        (UpstreamError("slow", code="provider_rate_limit", status=429), UpstreamError),
        (Unavailable("x", code="something_new"), Unavailable),
    ):
        back = error_of(error.status, error.headers(), openai_error_body(error))
        assert (type(back), back.code) == (kind, error.code)
    assert isinstance(error_of(502, {}, b"<html>"), GatewayUnavailable)
    assert isinstance(error_of(502, {}, b"[]"), GatewayUnavailable)


# -- requests


class Gateway:
    """Gives the next of `answers`: bytes, an error, or (None) a closed connection."""

    def __init__(self) -> None:
        self.answers: list[bytes | TreasurerError | None] = []
        self.headers: dict[str, str] = {CALL_ID: str(uuid4()), COST: "0.25"}
        self.asked: list[tuple[bytes, Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((await request.read(), request.headers.copy()))
        answer = self.answers.pop(0)
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(answer, TreasurerError):
            return web.Response(status=answer.status, body=openai_error_body(answer), headers=answer.headers())
        return web.Response(body=answer, headers=self.headers)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
async def service(gateway: Gateway) -> AsyncIterator[RemoteService]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", gateway.answer)
    async with TestServer(app) as server, RemoteService(str(server.make_url("/")), SECRET) as service:
        yield service


async def test_a_call_is_the_same_bytes_with_a_token_and_its_key(gateway: Gateway, service: RemoteService) -> None:
    gateway.answers = [b'{"a":1}']
    answer = await service.complete(b'{"model":"m"}', PRINCIPAL, CONTEXT)
    assert (answer.status, answer.body, answer.cost_nano) == (200, b'{"a":1}', 250_000_000)
    assert str(answer.call_id) == gateway.headers[CALL_ID]
    ((body, headers),) = gateway.asked
    assert body == b'{"model":"m"}'
    assert headers["Idempotency-Key"] == "r1/1"
    assert read_run_token(SECRET, headers["Authorization"].removeprefix("Bearer ")).agent == "digest"


async def test_a_replayed_answer_costs_nothing_again(gateway: Gateway, service: RemoteService) -> None:
    gateway.headers[REPLAYED] = "true"
    gateway.answers = [b"{}"]
    answer = await service.complete(b"{}", PRINCIPAL, CONTEXT)
    assert (answer.cost_nano, answer.headers[COST]) == (0, "0.25")


async def test_a_call_without_an_answer_is_sent_again_only_with_a_key(gateway: Gateway, service: RemoteService) -> None:
    gateway.answers = [None, None, b"{}"]
    assert (await service.complete(b"{}", PRINCIPAL, CONTEXT)).status == 200
    assert [headers["Idempotency-Key"] for _, headers in gateway.asked] == ["r1/1"] * 3
    gateway.answers = [None]
    with pytest.raises(GatewayUnavailable):
        await service.complete(b"{}", PRINCIPAL, CallContext(run="r1"))
    assert len(gateway.asked) == 4


async def test_a_refusal_is_raised_as_in_the_gateway(gateway: Gateway, service: RemoteService) -> None:
    gateway.answers = [BudgetExhausted("spent"), RateLimited("slow", retry_after=3)]
    with pytest.raises(BudgetExhausted, match="spent"):
        await service.complete(b"{}", PRINCIPAL, CONTEXT)
    with pytest.raises(RateLimited) as caught:
        await service.stream(b"{}", PRINCIPAL, CONTEXT)
    assert caught.value.retry_after == 3
    assert len(gateway.asked) == 2


async def test_a_stream_arrives_as_it_is_sent(gateway: Gateway, service: RemoteService) -> None:
    gateway.answers = [b"data: 1\n\ndata: [DONE]\n\n"]
    stream = await service.stream(b"{}", PRINCIPAL, CONTEXT)
    assert b"".join([chunk async for chunk in stream]) == b"data: 1\n\ndata: [DONE]\n\n"
    assert (stream.status, stream.headers[COST]) == (200, "0.25")
    await stream.aclose()
