"""A call along its chain, over fakes: which model is asked next, what the caller gets, and how abandoned attempts are
booked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from llm_service.errors import TreasurerError, UpstreamError
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.types import (
    NO_CONTEXT,
    NO_TIMEOUTS,
    Answer,
    CallContext,
    Condition,
    Fallback,
    OnLeave,
    Route,
    Timeouts,
    UsageSource,
)
from llm_service.upstream.upstream import Refusal, UpstreamAnswer
from tests.llm_service.fakes import COUNTED, DAILY, PRICED, PRINCIPAL, FakeStream, FakeUpstream, HttpAnswer, chat_body
from tests.llm_service.serving import ANSWER, DONE, EVENTS, REPORT, Parts, collect, data, said

STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
MODELS: list[dict[str, Any]] = [
    {"model_name": name, "litellm_params": {"model": f"openai/{name}"}, "model_info": PRICED | {"id": name}}
    for name in ("m", "n", "o")
]
OF_ALL = frozenset(Condition)
FALLING = Route(fallbacks=(Fallback("n"), Fallback("o")))
FAILED = HttpAnswer(500, {"x-treasurer-free": "1"}, b'{"error": {"message": "no"}}')
BAD = HttpAnswer(400, {}, b'{"error": {"message": "bad"}}')
WITHHELD = HttpAnswer(
    200,
    {"x-litellm-model-id": "m"},
    json.dumps(
        {
            "choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 0},
        }
    ).encode(),
)
FILTERED = [
    data({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
    data({"choices": [{"delta": {}, "finish_reason": "content_filter"}]}),
    data({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}),
    DONE,
]


class Slow(FakeStream):
    """A stream whose headers have arrived, and whose first token arrives when its `gate` opens."""

    def __init__(self) -> None:
        super().__init__(EVENTS)
        self.gate = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        await self.gate.wait()
        async for chunk in super().chunks():
            yield chunk


@dataclass
class ByModel(FakeUpstream):
    """Answers each model's requests by the script for that model, and otherwise with success."""

    script: dict[str, list[HttpAnswer | FakeStream]] = field(default_factory=dict[str, list[HttpAnswer | FakeStream]])

    @property
    def asked(self) -> list[str]:
        return [json.loads(body)["model"] for _, body, _ in self.sent]

    def _next(self, body: bytes, grant: str) -> HttpAnswer | FakeStream | None:
        self.sent.append(("", body, grant))
        scripted = self.script.get(self.asked[-1])
        return scripted.pop(0) if scripted else None

    async def send(
        self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS
    ) -> UpstreamAnswer | Refusal:
        answer = self._next(body, grant)
        if isinstance(answer, FakeStream):
            assert isinstance(answer, Slow)
            await answer.gate.wait()
            return ANSWER.facts()
        return (answer or ANSWER).facts()

    async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> FakeStream:
        answer = self._next(body, grant)
        if isinstance(answer, HttpAnswer):
            return FakeStream([answer.body], answer.status, answer.headers)
        return answer or FakeStream(EVENTS)


class Chained(Parts):
    def __init__(self, **script: list[HttpAnswer | FakeStream]) -> None:
        self.by_model = ByModel(script=script)
        super().__init__(entries=MODELS, upstream=self.by_model)

    async def ask(self, route: Route, streamed: bool, context: CallContext = NO_CONTEXT) -> bytes:
        principal = replace(PRINCIPAL, routes=(route,))
        if streamed:
            return await collect(await self.service.stream(chat_body(stream=True), principal, context))
        answer = await self.service.complete(chat_body(), principal, context)
        assert isinstance(answer, Answer)
        return answer.body

    def booked(self) -> list[tuple[int, str | None, int | None]]:
        return [(each.attempt, each.error_code, each.status) for each in self.treasury.settled]


def exhausted() -> Denial:
    return Denial(DenialKind.EXHAUSTED, DAILY.id, "", 100, 100, 0, None)


@STREAMED
async def test_a_stand_in_without_a_budget_is_as_if_it_were_not_there(streamed: bool) -> None:
    """`m` fails and the budget for `n` is used up, so the third model, `o`, serves the call."""
    parts = Chained(m=[FAILED])
    admit = parts.treasury.admit

    async def decide(request: Any) -> Any:
        return exhausted() if request.model == "n" else await admit(request)

    parts.treasury.admit = decide
    assert await parts.ask(FALLING, streamed)
    assert parts.by_model.asked == ["m", "o"]
    parts.nothing_is_held()


async def test_when_no_fallback_has_a_budget_the_failure_before_it_is_reported() -> None:
    parts = Chained(m=[FAILED])
    admit = parts.treasury.admit

    async def decide(request: Any) -> Any:
        return await admit(request) if request.model == "m" else exhausted()

    parts.treasury.admit = decide
    with pytest.raises(UpstreamError) as told:
        await parts.ask(FALLING, streamed=False)
    assert told.value.status == 500
    assert told.value.details["attempts"] == [
        {"model": "m", "status": 500, "code": "upstream_500"},
        {"model": "n", "status": 429, "code": "insufficient_quota"},
        {"model": "o", "status": 429, "code": "insufficient_quota"},
    ]
    parts.nothing_is_held()


async def test_a_stand_in_that_was_passed_over_is_named_between_those_that_failed() -> None:
    parts = Chained(m=[FAILED], o=[FAILED])
    admit = parts.treasury.admit

    async def decide(request: Any) -> Any:
        return exhausted() if request.model == "n" else await admit(request)

    parts.treasury.admit = decide
    with pytest.raises(UpstreamError) as told:
        await parts.ask(FALLING, streamed=False)
    attempts = told.value.details["attempts"]
    assert [(each["model"], each["code"]) for each in attempts] == [
        ("m", "upstream_500"),
        ("n", "insufficient_quota"),
        ("o", "upstream_500"),
    ]
    assert parts.by_model.asked == ["m", "o"]


async def test_a_downgrade_that_is_exhausted_too_is_refused_as_exhausted() -> None:
    parts = Chained()

    async def decide(request: Any) -> Denial:
        kind = DenialKind.NEAR_LIMIT if request.model == "m" else DenialKind.EXHAUSTED
        return replace(exhausted(), kind=kind)

    parts.treasury.admit = decide
    with pytest.raises(TreasurerError) as told:
        await parts.ask(Route(fallbacks=(Fallback("n", OF_ALL),)), streamed=False)
    assert told.value.code == "insufficient_quota"
    assert parts.by_model.asked == []


@STREAMED
async def test_a_stand_in_that_cannot_take_the_request_is_not_asked_again(streamed: bool) -> None:
    parts = Chained(m=[FAILED, FAILED], n=[BAD])
    assert await parts.ask(replace(FALLING, retries=1), streamed)
    assert parts.by_model.asked == ["m", "m", "n", "o"]
    parts.nothing_is_held()


@STREAMED
async def test_an_answer_that_a_content_filter_withheld_is_paid_for_and_given_by_another_model(streamed: bool) -> None:
    parts = Chained(m=[FakeStream(FILTERED) if streamed else WITHHELD])
    context = CallContext(idempotency_key="k1")
    got = await parts.ask(Route(fallbacks=(Fallback("n", OF_ALL),)), streamed, context)
    assert b"Hi" in got
    assert b"content_filter" not in got
    assert parts.by_model.asked == ["m", "n"]
    first, second = parts.treasury.settled
    assert (first.attempt, first.cost_nano, first.usage_source) == (0, 9_000, UsageSource.PROVIDER)
    assert (second.attempt, second.usage_source) == (1, UsageSource.PROVIDER)
    kept = parts.idempotency.rows[PRINCIPAL.agent_id, "k1"]
    assert kept is not None
    assert kept.body == got
    parts.nothing_is_held()


@STREAMED
async def test_where_nothing_stands_in_for_it_a_withheld_answer_is_given_as_it_is(streamed: bool) -> None:
    parts = Chained(m=[FakeStream(FILTERED) if streamed else WITHHELD])
    assert b"content_filter" in await parts.ask(FALLING, streamed)
    assert parts.by_model.asked == ["m"]


async def test_a_stream_that_a_content_filter_ends_later_stays() -> None:
    events = [said("Hi"), data({"choices": [{"delta": {}, "finish_reason": "content_filter"}]}), REPORT, DONE]
    parts = Chained(m=[FakeStream(events)])
    assert await parts.ask(Route(fallbacks=(Fallback("n", OF_ALL),)), streamed=True) == b"".join([*events[:2], DONE])
    assert parts.by_model.asked == ["m"]


async def test_a_stream_that_ends_before_its_first_token_goes_on_elsewhere() -> None:
    parts = Chained(m=[FakeStream([data({"choices": [{"delta": {"role": "assistant"}}]})])])
    assert b"Hi" in await parts.ask(FALLING, streamed=True)
    assert parts.by_model.asked == ["m", "n"]
    assert (0, "upstream_cut", 502) in parts.booked()
    parts.nothing_is_held()


@pytest.mark.parametrize("on_leave", OnLeave)
async def test_a_first_token_that_does_not_come_is_reported_and_booked_as_such(on_leave: OnLeave) -> None:
    """The caller has not left, so the ledger, the reports and the caller all get a time-out of the model."""
    slow = Slow()
    parts = Chained(m=[slow])
    parts.sweeper.witness = COUNTED
    route = Route(timeouts=Timeouts(first_token_s=0.01), on_leave=on_leave)
    with pytest.raises(TreasurerError) as told:
        await parts.ask(route, streamed=True)
    goes_on = on_leave is OnLeave.FINISH
    assert (told.value.status, told.value.code) == (504, "upstream_timeout")
    assert ("still runs to its end" in told.value.message) is goes_on
    slow.gate.set()
    await parts.service.close()
    assert parts.booked() == [(0, "upstream_timeout", 504)]
    assert parts.settled.usage_source is (UsageSource.PROVIDER if goes_on else UsageSource.ESTIMATED)
    parts.nothing_is_held()


async def test_a_whole_answer_that_does_not_come_in_time_is_booked_as_what_it_is() -> None:
    slow = Slow()
    parts = Chained(m=[slow])
    with pytest.raises(TreasurerError) as told:
        await parts.ask(Route(timeouts=Timeouts(total_s=0.01)), streamed=False)
    assert (told.value.status, told.value.code) == (504, "upstream_timeout")
    slow.gate.set()
    await parts.service.close()
    assert parts.booked() == [(0, "upstream_timeout", 504)]
    assert parts.settled.usage_source is UsageSource.PROVIDER
    parts.nothing_is_held()


async def test_an_attempt_after_the_first_does_not_wait_past_the_time_by_which_it_may_begin() -> None:
    """Other calls hold the money for `n`. The route's queue of an hour applies only to a call's first attempt."""
    parts = Chained(m=[FAILED])
    admit = parts.treasury.admit

    async def decide(request: Any) -> Any:
        return await admit(request) if request.model == "m" else replace(exhausted(), kind=DenialKind.BUSY)

    parts.treasury.admit = decide
    route = Route(fallbacks=(Fallback("n"),), max_elapsed_s=0.05, queue_s=3_600)
    async with asyncio.timeout(30):
        with pytest.raises(UpstreamError):
            await parts.ask(route, streamed=False)
    assert parts.by_model.asked == ["m"]
    parts.nothing_is_held()
