"""The governed call over fakes: real admission and settlement, no Postgres, no Redis, no proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.errors import (
    BudgetTooSmall,
    InvalidRequest,
    PricesChanged,
    ProxyBusy,
    ProxyUnavailable,
    TreasurerError,
    TreasuryUnavailable,
    UnknownModel,
    UpstreamError,
    UpstreamTimeout,
)
from llm_service.grants import verify
from llm_service.pricing.models import Model
from llm_service.telemetry.record import TRACEPARENT, SpanPlace
from llm_service.treasury.denial import Denial
from llm_service.types import (
    NO_CONTEXT,
    NO_TIMEOUTS,
    CallContext,
    Fallback,
    Hold,
    HoldRequest,
    LedgerState,
    OnLeave,
    Principal,
    Route,
    Settlement,
    Timeouts,
    UsageSource,
)
from llm_service.upstream.upstream import Refusal, Unanswered, UpstreamAnswer, UpstreamStream
from llm_service.usage import IN_FLIGHT_TOKENS
from tests.examples import examples
from tests.llm_service.fakes import (
    COUNTED,
    ENTRIES,
    PRINCIPAL,
    FakeStream,
    FakeTreasury,
    FakeUpstream,
    HttpAnswer,
    chat_body,
)
from tests.llm_service.serving import (
    ANSWER,
    BODY,
    COST,
    DONE,
    EVENTS,
    KEYED,
    PARENT,
    REPORT,
    SECRET,
    Parts,
    collect,
    data,
    said,
    until,
)

FINISHING = replace(PRINCIPAL, routes=(Route(on_leave=OnLeave.FINISH),))


@pytest.fixture
def parts() -> Parts:
    return Parts()


# -- whole answers


async def test_a_governed_call(parts: Parts) -> None:
    answer = await parts.service.complete(chat_body(max_tokens=50, temperature=0.5), PRINCIPAL, NO_CONTEXT)
    assert (answer.status, answer.body, answer.cost_nano) == (200, BODY, COST)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-treasurer-call-id"] == str(answer.call_id) == str(parts.settled.call_id)
    assert answer.headers["x-treasurer-cost"] == "0.000033000"
    assert answer.headers["x-treasurer-budget-left"] == f"{(10**9 - COST) / 10**9:.9f}"
    assert answer.headers["x-treasurer-budget"] == "daily"
    assert "x-treasurer-max-tokens" not in answer.headers
    assert parts.sent == json.loads(chat_body(max_tokens=50, temperature=0.5))
    assert (parts.settled.state, parts.settled.usage_source) == (LedgerState.POSTED, UsageSource.PROVIDER)
    assert parts.settled.proxy_cost_nano == 33_000
    assert parts.records[0].parent == PARENT
    parts.nothing_is_held()


async def test_each_attempt_is_sent_under_its_own_span(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str | None] = []
    send = parts.upstream.send

    async def noting(path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> UpstreamAnswer | Refusal:
        found.append(TRACEPARENT.get())
        return await send(path, body, grant, timeouts)

    monkeypatch.setattr(parts.upstream, "send", noting)
    parent = SpanPlace(5, 6)
    answer = await parts.service.complete(chat_body(), PRINCIPAL, NO_CONTEXT, parent)
    assert found == [parent.of_attempt(answer.call_id, 0).traceparent]
    assert TRACEPARENT.get() is None


async def test_i3_what_is_sent_carries_a_grant_for_exactly_itself(parts: Parts) -> None:
    context = CallContext("r1", "ann", "s1", ("a", "b"))
    answer = await parts.service.complete(chat_body(), PRINCIPAL, context)
    ((path, body, token),) = parts.upstream.sent
    grant = verify(SECRET, token, path=path, model="m", body=body)
    assert (grant.call_id, grant.attempt, grant.agent_id, grant.key_id) == (answer.call_id, 0, 7, 9)
    assert (grant.agent, grant.team, grant.organisation) == ("digest", "research", "acme")
    assert (grant.run, grant.user, grant.session, grant.tags) == ("r1", "ann", "s1", ("a", "b"))
    assert 0 < grant.expires_at - grant.issued_at <= 60


async def test_an_answer_without_max_tokens_gets_the_agents_default_and_a_header_says_so(parts: Parts) -> None:
    answer = await parts.service.complete(chat_body(), PRINCIPAL, NO_CONTEXT)
    assert parts.sent["max_tokens"] == 4096
    assert answer.headers["x-treasurer-max-tokens"] == "default:4096"


async def test_i1_an_answer_is_clamped_to_what_the_budget_affords() -> None:
    parts = Parts(limit_nano=400_000)
    answer = await parts.service.complete(chat_body(max_completion_tokens=4000), PRINCIPAL, NO_CONTEXT)
    most = parts.sent["max_completion_tokens"]
    assert 16 <= most <= 200
    assert "max_tokens" not in parts.sent
    assert answer.headers["x-treasurer-max-tokens"] == f"clamped:{most}"


@given(
    st.integers(1, 2_000_000), st.integers(1, 4),
    st.sampled_from([{}, {"max_tokens": 300}, {"max_completion_tokens": 300}, {"max_tokens": 900, "max_completion_tokens": 300}]),
)  # fmt: skip
@settings(max_examples=examples(60), deadline=None)
async def test_i1_the_dearest_answer_to_what_is_sent_is_within_the_hold(
    limit_nano: int, n: int, most: dict[str, int]
) -> None:
    parts = Parts(limit_nano)
    body = chat_body(n=n, **most)
    try:
        await parts.service.complete(body, PRINCIPAL, NO_CONTEXT)
    except BudgetTooSmall:
        assert parts.upstream.sent == []
        return
    allowed = [parts.sent[name] for name in ("max_tokens", "max_completion_tokens") if parts.sent.get(name) is not None]
    assert allowed
    text = len("Hello there") + len("user")
    assert text * 1_000 + max(allowed) * n * 2_000 <= min(limit_nano, parts.records[0].held_nano)


async def test_an_embedding(parts: Parts) -> None:
    parts.upstream.answer = HttpAnswer(200, {}, b'{"data": [], "usage": {"prompt_tokens": 2, "total_tokens": 2}}')
    answer = await parts.service.embed(b'{"model": "e", "input": "Hi"}', PRINCIPAL, NO_CONTEXT)
    assert answer.cost_nano == 2_000
    assert parts.sent == {"model": "e", "input": "Hi"}
    assert parts.upstream.sent[0][0] == "/v1/embeddings"
    assert "x-treasurer-max-tokens" not in answer.headers


async def test_the_user_of_the_body_is_the_calls_unless_a_header_names_one(parts: Parts) -> None:
    await parts.service.complete(chat_body(user="ann"), PRINCIPAL, NO_CONTEXT)
    await parts.service.complete(chat_body(user="ann"), PRINCIPAL, CallContext(user="bob"))
    assert [asked.context.user for asked in parts.treasury.asked] == ["ann", "bob"]


@pytest.mark.parametrize("body", [b"{", b"{}", chat_body(n=0), chat_body(stream=True), chat_body(api_base="x")])
async def test_a_bad_request_costs_and_sends_nothing(parts: Parts, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await parts.service.complete(body, PRINCIPAL, KEYED)
    assert parts.upstream.sent == []
    assert parts.treasury.asked == []
    assert parts.idempotency.rows == {}


async def test_a_stream_has_to_be_asked_for(parts: Parts) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await parts.service.stream(chat_body(), PRINCIPAL, NO_CONTEXT)
    assert refused.value.param == "stream"


async def test_i1_a_refused_call_sends_nothing_and_gives_its_key_back() -> None:
    parts = Parts(limit_nano=10)
    for ask in (parts.service.complete(chat_body(), PRINCIPAL, KEYED), parts.stream(*EVENTS, context=KEYED)):
        with pytest.raises(BudgetTooSmall):
            await ask
    assert parts.upstream.sent == []
    assert parts.treasury.settled == []
    assert parts.idempotency.released == ["k1", "k1"]
    parts.nothing_is_held()


# -- what goes wrong on the way


async def test_i2_what_was_not_sent_is_voided(parts: Parts) -> None:
    parts.upstream.answer = ProxyUnavailable("away", retry_after=2)
    with pytest.raises(ProxyUnavailable):
        await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    assert (parts.settled.state, parts.settled.cost_nano) == (LedgerState.VOIDED, 0)
    assert parts.idempotency.released == ["k1"]
    parts.nothing_is_held()


async def test_i2_what_may_have_been_served_keeps_its_hold_and_its_key(parts: Parts) -> None:
    parts.upstream.answer = Unanswered(UpstreamTimeout("no answer in time"))
    with pytest.raises(UpstreamTimeout):
        await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    assert parts.treasury.settled == []
    assert len(parts.treasury.pending) == 1
    ((call_id, attempt, lifetime_s, answered),) = parts.sweeper.watched
    assert ({call_id}, attempt, lifetime_s, answered) == (set(parts.treasury.pending), 0, 330, False)
    assert parts.idempotency.released == []
    assert parts.limiter.released == [None]


REFUSED = json.dumps({"error": {"message": "Too many", "type": "rate_limit_error", "code": "slow"}}).encode()


async def test_a_providers_refusal_is_passed_on_and_voided(parts: Parts) -> None:
    parts.upstream.answer = HttpAnswer(429, {"Retry-After": "7"}, REFUSED)
    with pytest.raises(UpstreamError) as refused:
        await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    error = refused.value
    assert (error.status, error.code, error.type, error.retry_after) == (429, "slow", "rate_limit_error", 7)
    assert (parts.settled.state, parts.settled.status, parts.settled.error_code) == (LedgerState.VOIDED, 429, "slow")
    assert parts.idempotency.released == ["k1"]
    parts.nothing_is_held()


@pytest.mark.parametrize("bills_errors", [False, True])
async def test_i2_a_stream_too_many_costs_nothing_and_no_other_model_is_asked(bills_errors: bool) -> None:
    """Another model would meet the same full proxy. No provider was asked, so none can bill an error."""
    gate = Gate()
    parts = Parts(breakers=gate)
    route = Route(fallbacks=(Fallback("other"),), retries=3, errors_are_billed=bills_errors)
    body = REFUSED.replace(b"slow", b"proxy_busy")
    parts.upstream.answer = HttpAnswer(503, {"x-treasurer-refused": "proxy_busy"}, body)
    with pytest.raises(ProxyBusy) as busy:
        await parts.service.complete(chat_body(), replace(PRINCIPAL, routes=(route,)), KEYED)
    assert (busy.value.status, busy.value.code, busy.value.retry_after) == (503, "proxy_busy", 1)
    assert (parts.settled.state, parts.settled.cost_nano) == (LedgerState.VOIDED, 0)
    assert gate.told == ["release"]
    assert len(parts.upstream.sent) == 1
    assert parts.idempotency.released == ["k1"]
    parts.nothing_is_held()


class Gate:
    """A breaker that lets every call pass, and records the outcomes that are reported to it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def blocked(self, model: Model) -> None:
        return

    async def acquire(self, model: Model) -> Gate:
        return self

    def succeeded(self) -> None:
        self.told.append("succeeded")

    def failed(self, part: str = "model") -> None:
        self.told.append(f"{part} failed")

    def release(self) -> None:
        self.told.append("release")


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (200, {}, "succeeded"),
        (500, {}, "model failed"),
        (401, {}, "release"),  # the operator's key is wrong, which is not the model's fault
        (403, {"llm_provider-x": "1"}, "release"),
        (404, {}, "release"),
        (429, {}, "release"),
        (401, {"x-treasurer-refused": "invalid_grant"}, "release"),
        (401, {"x-treasurer-refused": "clock", "x-treasurer-time": "1.0"}, "release"),
        (503, {"x-treasurer-refused": "grants_unavailable"}, "release"),
    ],
)
async def test_a_models_breaker_counts_what_the_model_answered(status: int, headers: dict[str, str], told: str) -> None:
    gate = Gate()
    parts = Parts(breakers=gate)
    parts.upstream.answer = HttpAnswer(status, headers, BODY if status == 200 else b"{}")
    with contextlib.suppress(UpstreamError, ProxyUnavailable):
        await parts.service.complete(chat_body(), PRINCIPAL, NO_CONTEXT)
    assert gate.told == [told]
    if "x-treasurer-refused" in headers:
        parts.nothing_is_held()


async def test_i1_an_error_that_may_have_been_billed_is_left_to_the_witness(parts: Parts) -> None:
    parts.upstream.answer = HttpAnswer(500, {}, b"{}")
    with pytest.raises(UpstreamError):
        await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    assert parts.treasury.settled == []
    assert [watch[3] for watch in parts.sweeper.watched] == [True]
    assert parts.idempotency.released == []


async def test_a_caller_who_leaves_pays_for_the_answer_that_was_under_way(parts: Parts) -> None:
    parts.upstream.gate = asyncio.Event()
    task = asyncio.create_task(parts.service.complete(chat_body(), PRINCIPAL, KEYED))
    await until(lambda: parts.upstream.sent)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert parts.treasury.settled == []
    assert parts.idempotency.released == []
    closing = asyncio.create_task(parts.service.close())
    await asyncio.sleep(0)
    assert not closing.done()
    parts.upstream.gate.set()
    await closing
    assert parts.settled.cost_nano == COST
    repeated = await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    assert (repeated.body, repeated.cost_nano) == (BODY, 0)
    parts.nothing_is_held()


async def test_a_caller_who_leaves_before_anything_was_sent_pays_nothing(parts: Parts) -> None:
    hold = asyncio.Event()
    admit = parts.treasury.admit

    async def slow(request: Any) -> Any:
        await hold.wait()
        return await admit(request)

    parts.treasury.admit = slow
    task = asyncio.create_task(parts.service.complete(chat_body(), PRINCIPAL, KEYED))
    await until(lambda: parts.limiter.taken)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert parts.upstream.sent == []
    assert parts.idempotency.released == ["k1"]
    parts.nothing_is_held()


async def test_the_first_of_two_calls_with_one_key_is_the_call(parts: Parts) -> None:
    first = await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    second = await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    assert (second.body, second.call_id, second.status) == (first.body, first.call_id, 200)
    assert second.headers == first.headers | {"x-treasurer-replayed": "true"}
    assert second.cost_nano == 0
    assert len(parts.upstream.sent) == len(parts.treasury.settled) == 1


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same(parts: Parts) -> None:
    """The answer is paid for, so its caller must get it even if Postgres is unavailable now."""
    parts.idempotency.error = TreasuryUnavailable("away")
    answer = await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    assert answer.body == BODY
    stream = await parts.stream(*EVENTS, context=CallContext(idempotency_key="k2"))
    assert (await collect(stream)).endswith(DONE)
    assert stream.cost_nano == COST


async def test_the_reason_of_a_refusal_is_answered_though_its_key_cannot_be_released() -> None:
    parts = Parts(limit_nano=10)
    parts.idempotency.error = TreasuryUnavailable("away")
    with pytest.raises(BudgetTooSmall):
        await parts.service.complete(chat_body(), PRINCIPAL, KEYED)


async def test_where_errors_are_billed_the_whole_hold_is_posted(parts: Parts) -> None:
    parts.upstream.answer = HttpAnswer(500, {"x-treasurer-free": "1"}, b"{}")
    principal = replace(PRINCIPAL, routes=(Route(errors_are_billed=True),))
    with pytest.raises(UpstreamError):
        await parts.service.complete(chat_body(), principal, KEYED)
    assert (parts.settled.state, parts.settled.usage_source) == (LedgerState.POSTED, UsageSource.HOLD)
    assert parts.settled.cost_nano == parts.records[0].held_nano > 0
    assert parts.idempotency.released == []
    parts.nothing_is_held()


# -- streams


async def test_a_stream_is_forwarded_and_its_usage_posted(parts: Parts) -> None:
    answer = await parts.stream(*EVENTS, max_tokens=50)
    assert (answer.status, answer.cost_nano) == (200, None)
    assert answer.headers["content-type"] == "text/event-stream"
    assert "x-treasurer-cost" not in answer.headers
    assert answer.headers["x-treasurer-call-id"] == str(answer.call_id)
    assert await collect(answer) == b"".join([said("Hi"), said(" there"), DONE])
    assert answer.cost_nano == parts.settled.cost_nano == COST
    assert (parts.settled.status, parts.settled.error_code) == (200, None)
    assert parts.settled.first_token_ms is not None
    assert parts.sent["stream_options"] == {"include_usage": True}
    assert parts.records[0].stream
    await answer.aclose()
    assert len(parts.treasury.settled) == 1
    assert parts.upstream_stream.closed >= 1
    parts.nothing_is_held()


async def test_a_caller_that_asks_for_the_usage_gets_it_and_keeps_other_options(parts: Parts) -> None:
    answer = await parts.stream(*EVENTS, stream_options={"include_usage": True, "x": 1})
    shown = (await collect(answer)).split(b"\n\n")
    sent = b"".join(EVENTS).split(b"\n\n")
    assert [event.replace(b" ", b"") for event in shown] == [event.replace(b" ", b"") for event in sent]
    assert parts.sent["stream_options"] == {"include_usage": True, "x": 1}


@given(st.lists(st.integers(1, 300), max_size=8))
@settings(max_examples=examples(40), deadline=None)
async def test_however_it_is_chunked(cuts: list[int]) -> None:
    parts, whole = Parts(), b"".join(EVENTS)
    edges = [0, *sorted(cut % len(whole) for cut in cuts), len(whole)]
    answer = await parts.stream(*[whole[edges[i] : edges[i + 1]] for i in range(len(edges) - 1)])
    assert await collect(answer) == whole.replace(REPORT, b"")
    assert answer.cost_nano == COST


async def test_where_the_route_says_finish_a_stream_that_is_left_is_read_to_its_end(parts: Parts) -> None:
    parts.upstream.stream = FakeStream(EVENTS)
    answer = await parts.service.stream(chat_body(stream=True), FINISHING, NO_CONTEXT)
    assert await anext(answer) == said("Hi")
    await answer.aclose()
    assert parts.upstream_stream.closed >= 1
    assert (parts.settled.state, parts.settled.error_code, parts.settled.status) == (
        LedgerState.POSTED,
        "client_left",
        499,
    )
    assert parts.settled.usage_source is UsageSource.PROVIDER
    assert answer.cost_nano == parts.settled.cost_nano == COST
    parts.nothing_is_held()


async def test_a_stream_that_its_caller_leaves_is_given_up_and_estimated(parts: Parts) -> None:
    parts.sweeper.witness = COUNTED
    answer = await parts.stream(*EVENTS)
    await answer.aclose()
    assert parts.upstream_stream.closed >= 1
    assert parts.settled.usage_source is UsageSource.ESTIMATED
    assert answer.cost_nano is not None
    assert 0 < answer.cost_nano == parts.settled.cost_nano
    parts.nothing_is_held()


async def test_i2_a_stream_that_was_left_and_that_the_proxy_says_nothing_of_keeps_its_hold(parts: Parts) -> None:
    answer = await parts.stream(*EVENTS)
    await answer.aclose()
    assert parts.treasury.settled == []
    assert len(parts.sweeper.watched) == 1
    assert answer.cost_nano is None


async def test_a_stream_that_is_never_read_is_settled_when_it_is_closed(parts: Parts) -> None:
    parts.sweeper.witness = COUNTED
    answer = await parts.stream(*EVENTS)
    await answer.aclose()
    assert parts.settled.error_code == "client_left"
    assert answer.cost_nano is not None
    parts.nothing_is_held()


async def test_a_reader_that_is_cancelled_settles_the_stream(parts: Parts) -> None:
    parts.sweeper.witness = COUNTED
    answer = await parts.stream(said("Hi"), *[said("x")] * 10_000)
    got: list[bytes] = []

    async def read() -> None:
        try:
            async for events in answer:
                got.append(events)  # a loop, because a comprehension would lose the events before the cancellation
        finally:
            await asyncio.shield(answer.aclose())

    task = asyncio.create_task(read())
    await until(lambda: got)
    task.cancel()
    await asyncio.wait([task])
    await parts.service.close()
    assert parts.settled.error_code == "client_left"
    parts.nothing_is_held()


async def test_i2_a_stream_that_its_provider_cuts_is_posted_by_what_came(parts: Parts) -> None:
    answer = await parts.stream(said("Hi"), said("x" * 400))
    await collect(answer)
    settled = parts.settled
    assert (settled.status, settled.error_code) == (502, "upstream_cut")
    assert settled.usage.output_tokens >= 100
    assert answer.cost_nano == settled.cost_nano
    parts.nothing_is_held()


async def test_i2_a_stream_whose_connection_breaks_is_left_to_the_witness(parts: Parts) -> None:
    """The proxy reads the stream to its end, so the part that the gateway has read is too little."""
    answer = await parts.stream(said("Hi"), Unanswered(UpstreamError("broke")))
    with pytest.raises(UpstreamError):
        await collect(answer)
    await answer.aclose()
    assert parts.treasury.settled == []
    assert len(parts.sweeper.watched) == 1
    assert answer.cost_nano is None


@pytest.mark.parametrize(
    "cut",
    [
        FakeStream([data({"error": {"message": "overloaded", "code": "529"}})]),
        # LiteLLM had no first chunk to send, so it answers with the error's status and names the deployment.
        FakeStream([b'{"error": {"message": "overloaded", "code": "529"}}'], 529, {"x-litellm-model-id": "d1"}),
    ],
    ids=["an event", "a status"],
)
async def test_a_stream_that_is_cut_before_its_first_token_is_estimated_as_any_other(
    parts: Parts, cut: FakeStream
) -> None:
    parts.upstream.stream = cut
    with pytest.raises(UpstreamError) as error:
        await parts.service.stream(chat_body(stream=True, max_tokens=1000), PRINCIPAL, KEYED)
    assert (error.value.status, error.value.message) == (529, "overloaded")
    await parts.service.close()
    assert parts.sweeper.watched == []
    settled = parts.settled
    assert (settled.state, settled.usage_source, settled.error_code) == (
        LedgerState.POSTED,
        UsageSource.ESTIMATED,
        "upstream_cut",
    )
    assert settled.usage.output_tokens == IN_FLIGHT_TOKENS
    assert 0 < settled.cost_nano < parts.records[0].held_nano // 10
    assert parts.idempotency.released == []
    parts.nothing_is_held()


async def test_an_error_after_the_first_token_is_raised_in_our_words_and_paid_for(parts: Parts) -> None:
    broke = (
        "litellm.APIConnectionError: AnthropicException - Response payload is not completed: <TransferEncodingError>"
    )
    answer = await parts.stream(said("Hi"), data({"error": {"message": broke, "type": None, "code": "500"}}), DONE)
    assert await anext(answer) == said("Hi")
    with pytest.raises(UpstreamError) as error:
        await anext(answer)
    assert "connection to it broke" in error.value.message
    await answer.aclose()
    assert (parts.settled.state, parts.settled.error_code) == (LedgerState.POSTED, "upstream_cut")
    assert answer.cost_nano == parts.settled.cost_nano


class Unexpected(Exception):
    """An error of a type that no part of the service knows."""


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "place",
    ["llm_service.call.sending.governed_body", "llm_service.call.sending.sign", "llm_service.call.sending.check_live"],
)
@pytest.mark.parametrize("fault", [Unexpected("a bug"), RecursionError(), MemoryError(), KeyError("x")], ids=repr)
async def test_i2_whatever_fails_between_the_hold_and_the_sending_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, place: str, fault: Exception, streamed: bool
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise fault

    gate = Gate()
    parts = Parts(breakers=gate)
    monkeypatch.setattr(place, fails)
    ask = parts.service.stream if streamed else parts.service.complete
    with pytest.raises(type(fault)):
        await ask(chat_body(stream=streamed), PRINCIPAL, KEYED)
    assert (parts.settled.state, parts.settled.cost_nano) == (LedgerState.VOIDED, 0)
    assert parts.idempotency.released == ["k1"]
    assert gate.told == ["release"]
    parts.nothing_is_held()


async def test_i2_an_idempotency_key_that_cannot_be_confirmed_by_whatever_fault_leaves_no_hold(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any) -> None:
        raise Unexpected

    monkeypatch.setattr(parts.idempotency, "confirm", fails)
    with pytest.raises(Unexpected):
        await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    assert parts.settled.state is LedgerState.VOIDED
    parts.nothing_is_held()


@pytest.mark.parametrize("revoked", [True, False, Unexpected("no answer")], ids=["revoked", "used", "unknown"])
async def test_i2_a_fault_of_ours_while_a_request_is_sent_takes_its_grant_back_or_waits_for_the_witness(
    monkeypatch: pytest.MonkeyPatch, revoked: bool | Unexpected
) -> None:
    async def revoke(_call_id: UUID, _attempt: int) -> bool:
        if isinstance(revoked, Unexpected):
            raise revoked
        return revoked

    async def fails(*_: Any, **__: Any) -> UpstreamAnswer:
        raise Unexpected("attached to a different loop")

    parts = Parts(entries=SHARED, revoke=revoke)
    monkeypatch.setattr(parts.upstream, "send", fails)
    with pytest.raises(Unexpected):
        await parts.service.complete(chat_body(), PRINCIPAL, NO_CONTEXT)
    await parts.service.close()
    if revoked is True:
        assert parts.settled.state is LedgerState.VOIDED
        parts.nothing_is_held()
    else:
        assert parts.treasury.settled == []
        assert len(parts.sweeper.watched) == 1


async def test_a_stream_that_the_provider_refuses(parts: Parts) -> None:
    parts.upstream.stream = FakeStream([REFUSED], 429, {"Retry-After": "7"})
    with pytest.raises(UpstreamError) as refused:
        await parts.service.stream(chat_body(stream=True), PRINCIPAL, KEYED)
    assert (refused.value.status, refused.value.code) == (429, "slow")
    assert parts.settled.state is LedgerState.VOIDED
    assert parts.upstream_stream.closed
    assert parts.idempotency.released == ["k1"]
    parts.nothing_is_held()


@pytest.mark.parametrize(("principal", "context"), [(FINISHING, NO_CONTEXT), (PRINCIPAL, KEYED)])
async def test_i2_a_stream_that_is_left_before_it_opened_is_read_to_its_end(
    parts: Parts, principal: Principal, context: CallContext
) -> None:
    parts.upstream.gate, parts.upstream.stream = asyncio.Event(), FakeStream(EVENTS)
    task = asyncio.create_task(parts.service.stream(chat_body(stream=True), principal, context))
    await until(lambda: parts.upstream.sent)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert parts.treasury.settled == []
    parts.upstream.gate.set()
    await parts.service.close()
    assert (parts.settled.cost_nano, parts.settled.error_code) == (COST, "client_left")
    assert parts.idempotency.released == []
    kept = parts.idempotency.rows.get((PRINCIPAL.agent_id, "k1"))
    assert kept is None if context is NO_CONTEXT else kept is not None and kept.body.endswith(DONE)


async def test_i2_a_caller_who_leaves_before_the_stream_opened_keeps_the_hold(parts: Parts) -> None:
    parts.upstream.gate, parts.upstream.stream = asyncio.Event(), FakeStream(EVENTS)
    task = asyncio.create_task(parts.service.stream(chat_body(stream=True), PRINCIPAL, NO_CONTEXT))
    await until(lambda: parts.upstream.sent)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await parts.service.close()
    assert parts.treasury.settled == []
    assert len(parts.sweeper.watched) == 1


async def test_a_caller_who_leaves_while_a_stream_that_goes_on_opens_gives_the_breakers_permit_back() -> None:
    """The call may be the breaker's only probe. If it kept the permit, no other call would pass for a minute."""
    gate = Gate()
    parts = Parts(breakers=gate)
    parts.upstream.gate, parts.upstream.stream = asyncio.Event(), FakeStream(EVENTS)
    task = asyncio.create_task(parts.service.stream(chat_body(stream=True), FINISHING, NO_CONTEXT))
    await until(lambda: parts.upstream.sent)
    task.cancel()
    await asyncio.wait([task])
    parts.upstream.gate.set()
    await parts.service.close()
    assert gate.told == ["release"]


@pytest.mark.parametrize("witness", [COUNTED, None])
async def test_i2_a_caller_who_leaves_in_the_moment_in_which_a_stream_opens_leaves_nothing_open(
    witness: Settlement | None,
) -> None:
    class Opens(FakeUpstream):
        async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> UpstreamStream:
            asyncio.get_running_loop().call_soon(task.cancel)  # cancelled before the call gets its open stream
            return await super().open(path, body, grant, timeouts)

    gate, stream = Gate(), FakeStream(EVENTS)
    parts = Parts(breakers=gate, upstream=Opens(stream=stream))
    parts.sweeper.witness = witness
    task = asyncio.create_task(parts.service.stream(chat_body(stream=True), PRINCIPAL, NO_CONTEXT))
    await asyncio.wait([task])
    assert task.cancelled()
    await parts.service.close()
    assert stream.closed >= 1
    assert gate.told == ["release"]
    assert [each.error_code for each in parts.treasury.settled] == (["client_left"] if witness else [])
    assert len(parts.sweeper.watched) == (0 if witness else 1)


async def test_what_a_stream_waited_for_before_it_was_sent_is_not_its_models_time() -> None:
    """A call may wait for its budget first. The route's time for the first token begins only when the call is sent."""

    class Paced(FakeTreasury):
        async def admit(self, request: HoldRequest) -> Hold | Denial:
            await asyncio.sleep(0.3)
            return await super().admit(request)

    class SomewhatSlow(FakeStream):
        async def chunks(self) -> AsyncIterator[bytes]:
            await asyncio.sleep(0.05)
            async for chunk in super().chunks():
                yield chunk

    parts = Parts(treasury=Paced(), upstream=FakeUpstream(stream=SomewhatSlow(EVENTS)))
    principal = replace(PRINCIPAL, routes=(Route(timeouts=Timeouts(first_token_s=0.25)),))
    answer = await parts.service.stream(chat_body(stream=True), principal, NO_CONTEXT)
    assert (await collect(answer)).endswith(DONE)
    assert parts.settled.error_code is None


async def test_the_time_of_a_call_begins_when_it_comes_in(parts: Parts) -> None:
    """The latency includes waits before the first attempt, such as for another call with the same idempotency key."""
    claim = parts.idempotency.claim

    async def slow(
        agent_id: int, key: str, operation: str, body: bytes, call_id: UUID, keep_s: float | None = None
    ) -> Any:
        await asyncio.sleep(0.2)
        return await claim(agent_id, key, operation, body, call_id, keep_s)

    parts.idempotency.claim = slow
    came = datetime.now(UTC)
    await parts.service.complete(chat_body(), PRINCIPAL, KEYED)
    assert parts.settled.latency_ms is not None
    assert parts.settled.latency_ms >= 200
    assert (parts.records[0].started_at - came).total_seconds() < 0.15


async def test_a_bug_in_the_background_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No caller waits for the work that continues after it has left, so only the log shows an error there."""

    async def revoke(_call_id: UUID, _attempt: int) -> bool:
        raise RuntimeError("a statement was used wrongly")

    parts = Parts(entries=SHARED, revoke=revoke)
    parts.upstream.gate, parts.upstream.stream = asyncio.Event(), FakeStream(EVENTS)
    task = asyncio.create_task(parts.service.stream(chat_body(stream=True), PRINCIPAL, NO_CONTEXT))
    await until(lambda: parts.upstream.sent)
    task.cancel()
    await asyncio.wait([task])
    await parts.service.close()
    (logged,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert logged.exc_info is not None
    assert "a statement was used wrongly" in str(logged.exc_info[1])


async def test_i7_a_stream_is_repeated_from_what_was_kept(parts: Parts) -> None:
    first = await parts.stream(*EVENTS, context=KEYED)
    kept_before_its_end = False
    forwarded: list[bytes] = []
    async for events in first:
        if DONE in events:
            kept_before_its_end = parts.idempotency.rows[PRINCIPAL.agent_id, "k1"] is not None
        forwarded.append(events)
    assert kept_before_its_end
    again = await parts.service.stream(chat_body(stream=True), PRINCIPAL, KEYED)
    assert await collect(again) == b"".join(forwarded)
    assert (again.call_id, again.cost_nano) == (first.call_id, 0)
    assert again.headers["x-treasurer-replayed"] == "true"
    assert again.headers["content-type"] == "text/event-stream"
    await again.aclose()
    assert len(parts.upstream.sent) == len(parts.treasury.settled) == 1


async def test_i7_a_stream_that_was_left_is_kept_for_its_key(parts: Parts) -> None:
    answer = await parts.stream(*EVENTS, context=KEYED)
    await anext(answer)
    await answer.aclose()
    again = await parts.service.stream(chat_body(stream=True), PRINCIPAL, KEYED)
    assert await collect(again) == b"".join([said("Hi"), said(" there"), DONE])
    assert parts.idempotency.released == []
    assert len(parts.upstream.sent) == 1


# -- many at once


async def test_i1_callers_at_once_never_spend_more_than_the_limit() -> None:
    parts = Parts(limit_nano=3_000_000)

    async def one(ask: Callable[..., Awaitable[Any]]) -> object:
        try:
            return await ask(chat_body(max_tokens=200), PRINCIPAL, NO_CONTEXT)
        except TreasurerError as error:
            return error.code

    results = await asyncio.gather(*(one(parts.service.complete) for _ in range(60)))
    assert parts.treasury.posted_nano <= 3_000_000
    assert parts.treasury.pending == {}
    served = sum(not isinstance(result, str) for result in results)
    assert served == len(parts.treasury.settled) >= 3
    assert {result for result in results if isinstance(result, str)} <= {
        "budget_busy",
        "insufficient_quota",
        "budget_too_small_for_call",
    }


# -- prices that change between the hold and the call

REPRICED = HttpAnswer(409, {"x-treasurer-refused": "prices_changed"}, b'{"error": {"message": "changed"}}')


class Book(FakeUpstream):
    """A proxy whose prices have a `version`. It refuses a call whose grant names another version, as the plugin
    does."""

    def __init__(self) -> None:
        super().__init__()
        self.version = "v1"

    def _answer(self, body: bytes, grant: str) -> HttpAnswer:
        self.sent.append(("", body, grant))
        named = verify(SECRET, grant, path="/v1/chat/completions", model="m", body=body).prices
        return ANSWER if named in (None, self.version) else REPRICED

    async def send(
        self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS
    ) -> UpstreamAnswer | Refusal:
        return self._answer(body, grant).facts()

    async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> FakeStream:
        answer = self._answer(body, grant)
        return FakeStream([answer.body], answer.status, answer.headers) if answer.status != 200 else FakeStream(EVENTS)


def priced(version: str | None, factor: int = 1) -> list[dict[str, Any]]:
    (entry,) = (each for each in ENTRIES if each["model_name"] == "m")
    costs = {name: value * factor for name, value in entry["model_info"].items() if "cost" in name}
    stamp = {} if version is None else {"treasurer_prices": version}
    return [entry | {"model_info": entry["model_info"] | costs | stamp}]


async def once(parts: Parts, streamed: bool) -> None:
    if streamed:
        await collect(await parts.service.stream(chat_body(stream=True), PRINCIPAL, NO_CONTEXT))
    else:
        await parts.service.complete(chat_body(), PRINCIPAL, NO_CONTEXT)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_i1_a_call_is_never_served_at_a_price_that_it_was_not_held_for(streamed: bool) -> None:
    entries, book = priced("v1"), Book()
    parts = Parts(entries=entries, upstream=book)
    await once(parts, streamed)
    book.version, entries[:] = "v2", priced("v2", 100)
    await once(parts, streamed)
    first, refused, second = parts.treasury.settled
    assert refused.state is LedgerState.VOIDED
    assert (first.call_id, first.attempt) != (second.call_id, second.attempt)
    assert (second.call_id, second.attempt) == (refused.call_id, 1)
    assert [request.attempt for request in parts.treasury.asked] == [0, 0, 1]
    held = [request.amount_nano for request in parts.treasury.asked]
    assert held[2] == 100 * held[1] == 100 * held[0]
    assert (first.cost_nano, second.cost_nano) == (COST, 100 * COST)
    parts.nothing_is_held()


async def test_a_model_that_is_gone_since_is_a_404_and_nothing_is_held() -> None:
    entries, book = priced("v1"), Book()
    parts = Parts(entries=entries, upstream=book)
    await once(parts, False)
    book.version, entries[:] = "gone", [each for each in ENTRIES if each["model_name"] == "e"]
    with pytest.raises(UnknownModel):
        await once(parts, False)
    parts.nothing_is_held()
    assert [model for model, _ in parts.refused.told] == ["m"]


async def test_prices_that_change_again_and_again_are_a_503_and_nothing_is_held() -> None:
    """For example two proxies with different prices behind one address, of which the wrong one answers each time."""
    book = Book()
    parts = Parts(entries=priced("v1"), upstream=book)
    book.version = "another"
    with pytest.raises(PricesChanged) as refusal:
        await once(parts, False)
    assert (refusal.value.status, refusal.value.retry_after) == (503, 1)
    assert refusal.value.message.startswith("The prices of 'm' changed")
    assert refusal.value.details == {"model": "m"}
    assert len(book.sent) == 3
    assert {each.state for each in parts.treasury.settled} == {LedgerState.VOIDED}
    parts.nothing_is_held()


async def test_a_proxy_that_reports_no_version_is_called_as_before() -> None:
    book = Book()
    parts = Parts(entries=priced(None), upstream=book)
    book.version = "v9"
    await once(parts, False)
    assert len(book.sent) == 1


# -- an error without our plugin's headers: did the proxy answer, or something in front of it?

SHARED = [
    entry | {"model_info": entry["model_info"] | {"treasurer_uses_shared": True}}
    for entry in ENTRIES
]  # fmt: skip
OF_A_BALANCER = [HttpAnswer(status, {"server": "nginx"}, b"<html>") for status in (502, 503, 504)]
LOST = Unanswered(UpstreamTimeout("late"))


def after(outcome: HttpAnswer | Exception, *, revoked: bool, entries: list[dict[str, Any]] = SHARED) -> Parts:
    async def revoke(_call_id: UUID, _attempt: int) -> bool:
        return revoked

    upstream = FakeUpstream(outcome)
    upstream.stream = (
        outcome if isinstance(outcome, Exception) else FakeStream([outcome.body], outcome.status, outcome.headers)
    )
    return Parts(entries=entries, upstream=upstream, revoke=revoke)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("outcome", [*OF_A_BALANCER, LOST], ids=["502", "503", "504", "lost"])
async def test_i2_what_no_proxy_has_begun_with_is_free(outcome: HttpAnswer | Exception, streamed: bool) -> None:
    parts = after(outcome, revoked=True)
    with pytest.raises(ProxyUnavailable) as error:
        await once(parts, streamed)
    assert "nothing was spent" in error.value.message
    assert (parts.settled.state, parts.settled.cost_nano) == (LedgerState.VOIDED, 0)
    assert parts.sweeper.watched == []
    parts.nothing_is_held()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("outcome", [OF_A_BALANCER[2], LOST], ids=["504", "lost"])
@pytest.mark.parametrize(("revoked", "entries"), [(False, SHARED), (True, ENTRIES)], ids=["used", "unknown"])
async def test_i2_what_a_proxy_may_have_begun_with_waits_for_its_witness(
    outcome: HttpAnswer | Exception, streamed: bool, revoked: bool, entries: list[dict[str, Any]]
) -> None:
    """The grant was used; or the proxy does not write uses to the database, so that a missing use proves nothing."""
    parts = after(outcome, revoked=revoked, entries=entries)
    with pytest.raises(UpstreamError):
        await once(parts, streamed)
    assert parts.treasury.settled == []
    assert len(parts.sweeper.watched) == 1


async def test_i2_an_answer_of_our_plugin_s_is_believed_and_no_grant_is_revoked() -> None:
    parts = after(HttpAnswer(502, {"x-treasurer-free": "0"}, b"{}"), revoked=True)
    with pytest.raises(UpstreamError):
        await once(parts, False)
    assert parts.treasury.settled == []


async def test_i2_a_grant_that_a_balancer_sent_twice_may_have_been_billed() -> None:
    """The first proxy did not answer in time, and the second proxy refused the used grant. The first may still serve
    the call."""
    parts = after(HttpAnswer(401, {"x-treasurer-refused": "grant_used"}, b"{}"), revoked=False)
    with pytest.raises(UpstreamError):
        await once(parts, False)
    assert parts.treasury.settled == []
    assert len(parts.sweeper.watched) == 1


@pytest.mark.parametrize("revoked", [True, False], ids=["not begun", "begun"])
async def test_i2_a_stream_that_its_caller_leaves_before_the_proxy_has_begun_with_it_costs_nothing(
    revoked: bool,
) -> None:
    parts = after(OF_A_BALANCER[0], revoked=revoked)
    parts.upstream.gate = asyncio.Event()
    call = asyncio.create_task(once(parts, True))
    while not parts.upstream.sent:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await parts.service.close()
    assert len(parts.sweeper.watched) == (0 if revoked else 1)
    assert [each.state for each in parts.treasury.settled] == ([LedgerState.VOIDED] if revoked else [])


async def test_i6_a_proxy_that_cannot_write_a_grants_use_sends_nothing_and_the_caller_gets_a_503() -> None:
    parts = after(HttpAnswer(503, {"x-treasurer-refused": "grants_unavailable"}, b"{}"), revoked=False)
    with pytest.raises(ProxyUnavailable) as error:
        await once(parts, False)
    assert (error.value.retry_after, error.value.details["cause"]) == (1, "grants_unavailable")
    assert parts.settled.state is LedgerState.VOIDED
    parts.nothing_is_held()
