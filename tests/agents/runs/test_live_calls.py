"""A call of a watched run is streamed to the watchers, and its caller sees no difference."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.runs.live_calls import LiveCalls
from agents.runs.step_text import NoLiveText, Piece, checksum
from llm_service.call.response_headers import CALL_ID, COST, REPLAYED
from llm_service.errors import BudgetExhausted, IdempotencyConflict, TreasurerError, UpstreamError
from llm_service.types import Answer, CallContext, Principal

RUN, CALL = uuid4(), uuid4()
PRINCIPAL = Principal(1, "o", 1, "t", 7, "demo", None, None, epoch=1)
BODY = json.dumps({"model": "m", "messages": [], "stream": False}).encode()
CONTEXT = CallContext(str(RUN), idempotency_key=f"{RUN}/3")


class Live(NoLiveText):
    """Keeps what is posted. Runs in `watched` are watched."""

    def __init__(self, *watched: UUID) -> None:
        self.watched, self.posted = set(watched), list[tuple[UUID, Piece]]()

    async def is_watched(self, run_id: UUID) -> bool:
        return run_id in self.watched

    def post(self, run_id: UUID, piece: Piece) -> None:
        self.posted.append((run_id, piece))


@dataclass
class Stream:
    parts: Sequence[bytes | Exception | asyncio.Event]
    headers: Mapping[str, str]
    cost_nano: int | None = None
    status: int = 200
    closed: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            if isinstance(part, asyncio.Event):
                await part.wait()
                continue
            yield part
        self.cost_nano = 0 if REPLAYED in self.headers else 70_000

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Service:
    """Keeps answers by key, as the real one does: a key belongs to one body."""

    parts: Sequence[bytes | Exception | asyncio.Event] = ()
    bodies: dict[str, bytes] = field(default_factory=dict[str, bytes])
    asked: list[str] = field(default_factory=list[str])
    streams: list[Stream] = field(default_factory=list[Stream])

    def _claim(self, body: bytes, context: CallContext) -> dict[str, str]:
        key = context.idempotency_key
        self.asked.append("stream" if json.loads(body).get("stream") else "whole")
        if key is None:
            return {CALL_ID: str(CALL)}
        kept = self.bodies.setdefault(key, body)
        if kept != body:
            raise IdempotencyConflict("Another body.")
        again = self.asked.count("stream") > 1 or self.asked.count("whole") > 1
        return {CALL_ID: str(CALL)} | ({REPLAYED: "true", COST: "0.000070000"} if again else {})

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        return Answer(200, b"whole", self._claim(body, context), CALL, 1)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> Stream:
        assert json.loads(body)["stream_options"] == {"include_usage": True}
        self.streams.append(Stream(self.parts, self._claim(body, context)))
        return self.streams[-1]


def says(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


async def asked(service: Service, live: Live, context: CallContext = CONTEXT) -> Answer:
    return await LiveCalls(service, live).complete(BODY, PRINCIPAL, context)


async def test_the_text_goes_to_the_watchers_and_the_whole_answer_to_the_caller() -> None:
    service, live = Service([says("Hel"), says("lo "), says("Ann"), END]), Live(RUN)
    answer = await asked(service, live)
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "Hello Ann"
    assert (answer.cost_nano, answer.headers[COST], answer.call_id) == (70_000, "0.000070000", CALL)
    assert service.streams[0].closed
    assert {run_id for run_id, _ in live.posted} == {RUN}
    text = ""
    for _, piece in live.posted:
        assert (piece.position, piece.offset, piece.crc) == (3, len(text), checksum(text))
        text += piece.text
    assert text == "Hello Ann"
    assert live.posted[0][1].text == "Hel"  # the first token does not wait


async def test_a_piece_does_not_wait_for_the_next_one() -> None:
    gate = asyncio.Event()
    service, live = Service([says("a"), says("b"), gate, END]), Live(RUN)
    asking = asyncio.create_task(asked(service, live))
    async with asyncio.timeout(5):
        while len(live.posted) < 2:
            await asyncio.sleep(0.005)
    assert [piece.text for _, piece in live.posted] == ["a", "b"]
    gate.set()
    await asking


@pytest.mark.parametrize(
    "context",
    [CONTEXT, CallContext("r"), CallContext("r", idempotency_key="k"), CallContext("r", idempotency_key="k/1")],
)
async def test_without_a_watcher_an_answer_is_not_streamed(context: CallContext) -> None:
    service, live = Service(), Live(uuid4())
    assert (await asked(service, live, context)).body == b"whole"
    assert (service.asked, live.posted) == (["whole"], [])


async def test_i7_a_request_is_repeated_in_the_form_in_which_it_was_made() -> None:
    service = Service([says("x"), END])
    first = await asked(service, Live(RUN))
    again = await asked(service, Live())  # nobody watches any more
    assert service.asked == ["stream", "whole", "stream"]
    assert (again.body, again.cost_nano, again.headers[COST]) == (first.body, 0, "0.000070000")
    assert len(service.bodies) == 1

    service, live = Service(), Live()
    await asked(service, live)
    live.watched.add(RUN)
    assert (await asked(service, live)).body == b"whole"
    assert service.asked == ["whole", "stream", "whole"]


async def test_i7_a_request_that_has_changed_is_still_a_conflict() -> None:
    service = Service(bodies={f"{RUN}/3": b"another"})
    with pytest.raises(IdempotencyConflict):
        await asked(service, Live(RUN))


def failed(code: str) -> bytes:
    return b"data: " + json.dumps({"error": {"message": "m", "code": code, "treasurer": {"a": 1}}}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([says("x"), failed("upstream_cut")], UpstreamError), ([says("x"), failed(BudgetExhausted.code)], BudgetExhausted),
        ([says("x")], UpstreamError), ([says("x"), UpstreamError("gone")], UpstreamError),
    ],
)  # fmt: skip
async def test_an_answer_that_breaks_is_an_error_and_the_text_so_far_was_shown(
    parts: list[Any], kind: type[TreasurerError]
) -> None:
    service, live = Service(parts), Live(RUN)
    with pytest.raises(kind):
        await asked(service, live)
    assert service.streams[0].closed
    assert [piece.text for _, piece in live.posted] == ["x"]


async def test_a_very_long_text_comes_with_the_step_s_record() -> None:
    service, live = Service([says("x" * 200_000), says("y" * 200_000), says("z"), END]), Live(RUN)
    answer = await asked(service, live)
    assert len(json.loads(answer.body)["choices"][0]["message"]["content"]) == 400_001
    assert max(len(piece.text) for _, piece in live.posted) <= 2048
    assert sum(len(piece.text) for _, piece in live.posted) == 400_000
