"""A call is stopped at each of its awaits, one test after the other: its caller leaves there, or its process dies
there. Then a sweep runs.

What must hold (I2), wherever the call was stopped: each attempt that was held ends in exactly one ledger entry, at
least for the provider's bill. If the attempt was not billed, the entry is free or for the whole hold. Nothing stays
held, and an idempotency key that was paid for is not released. If the process lives on, each permit of a rate limit or
of a breaker is released once.

The upstream here is the proxy and the provider in one. A request that has reached it continues without the gateway, is
billed, and leaves its witness. A process that dies does nothing more: when Python later clears its coroutines away,
they change only a copy of the books that no test reads.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import pytest

from llm_service.call.admission import Admission
from llm_service.call.settlement import Settler
from llm_service.errors import TreasurerError
from llm_service.pricing.catalog import Catalog
from llm_service.pricing.models import Model
from llm_service.service import LLMService
from llm_service.treasury.sweep import OrphanHold, settlement_for
from llm_service.types import (
    NO_CONTEXT,
    NO_TIMEOUTS,
    CallContext,
    ExpiryPolicy,
    Fallback,
    Hold,
    HoldRequest,
    LedgerState,
    OnLeave,
    Route,
    Settlement,
    Timeouts,
    Usage,
)
from llm_service.upstream.upstream import Refusal, UpstreamAnswer
from llm_service.witness import Outcome, Witness
from tests.llm_service.fakes import (
    ENTRIES,
    PRICED,
    PRINCIPAL,
    FakeCounter,
    FakeIdempotency,
    FakeLimiter,
    FakeStream,
    HttpAnswer,
    chat_body,
    one_rate_card,
)

Attempt = tuple[UUID, int]
USAGE = Usage(9, output_tokens=12)
COST = 9 * 1_000 + 12 * 2_000
REPORTED = {"prompt_tokens": 9, "completion_tokens": 12}
ANSWER = json.dumps({"choices": [{"message": {"content": "Hi"}}], "usage": REPORTED}).encode()
KEYED = CallContext(idempotency_key="k1")
MODELS = [*ENTRIES, {"model_name": "m2", "litellm_params": {"model": "openai/m2"}, "model_info": PRICED | {"id": "d3"}}]


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


CHUNKS = [
    event({"choices": [{"delta": {"role": "assistant"}}]}),
    event({"choices": [{"delta": {"content": "Hi"}}]}),
    event({"choices": [{"delta": {"content": " there"}}]}),
    event({"choices": [], "usage": REPORTED}),
    b"data: [DONE]\n\n",
]


def _witness(attempt: Attempt, outcome: Outcome, cost_nano: int, usage: Usage, status: int) -> Witness:
    return Witness(
        *attempt, outcome, "m", datetime.now(UTC), provider="openai", deployment="d1", cost_nano=cost_nano, usage=usage,
        status=status, counted=outcome != "success",
    )  # fmt: skip


@dataclass
class Books:
    """The records that outlive a process: Postgres and the provider's invoice."""

    holds: dict[Attempt, HoldRequest] = field(default_factory=dict[Attempt, HoldRequest])
    ledger: list[Settlement] = field(default_factory=list[Settlement])
    witnesses: dict[Attempt, list[Witness]] = field(default_factory=dict[Attempt, list[Witness]])
    billed: dict[Attempt, int] = field(default_factory=dict[Attempt, int])
    refused: set[Attempt] = field(default_factory=set[Attempt])
    ever_held: dict[Attempt, int] = field(default_factory=dict[Attempt, int])
    keys: FakeIdempotency = field(default_factory=FakeIdempotency)

    def settle(self, settlement: Settlement) -> None:
        """Settle as treasury_settle does: only the first settlement removes the hold, and writes an entry."""
        if self.holds.pop((settlement.call_id, settlement.attempt), None) is not None:
            self.ledger.append(settlement)

    def sweep(self) -> None:
        """End every hold, as the sweeper does after its lifetime."""
        for (call_id, attempt), held in list(self.holds.items()):
            found = tuple(self.witnesses.get((call_id, attempt), ()))
            orphan = OrphanHold(call_id, attempt, held.model, held.amount_nano, ExpiryPolicy.POST, True, found)
            settlement = settlement_for(
                orphan, lambda _m, _d, usage, _t: usage.input_tokens * 1_000 + usage.output_tokens * 2_000
            )
            assert settlement is not None
            self.settle(settlement)


class Permits:
    """Breakers that let every call pass, and know which attempts have not ended yet."""

    def __init__(self) -> None:
        self.open: set[Permit] = set()

    def blocked(self, model: Model) -> None:
        return

    async def acquire(self, model: Model) -> Permit:
        await asyncio.sleep(0)
        permit = Permit(self.open)
        self.open.add(permit)
        return permit


class Permit:
    def __init__(self, among: set[Permit]) -> None:
        self._among = among

    def succeeded(self) -> None:
        self._among.discard(self)

    def failed(self, part: Literal["model", "proxy"] = "model") -> None:
        self._among.discard(self)

    def release(self) -> None:
        self._among.discard(self)


class Process:
    """A gateway's service over the books; its Postgres and its proxy take a few turns of the loop to answer."""

    def __init__(self, books: Books, fails: int) -> None:
        self.books, self.fails = books, fails

        async def read() -> list[dict[str, Any]]:
            await asyncio.sleep(0)
            return MODELS

        limiter, counter = FakeLimiter(), FakeCounter()
        self.limiter, self.permits = limiter, Permits()
        self.service = LLMService(
            admission=Admission(
                catalog=Catalog(read), principals=self, limiter=limiter, treasury=self,
                count_tokens=counter.request, rate_card=one_rate_card, refused=lambda *_: None, lifetime_s=330, busy_wait_s=0,
            ),
            settler=Settler(
                treasury=self, limiter=limiter, sweeper=self, count_tokens=counter.request,
                count_text=counter.text, record=lambda _: None, lifetime_s=330,
            ),
            upstream=self, idempotency=books.keys, grant_secret="s" * 32, breakers=self.permits,
        )  # fmt: skip

    async def renew(self, principal: Any) -> Any:
        return principal

    def check_permits(self) -> None:
        assert self.permits.open == set()
        assert len(self.limiter.taken) == len(self.limiter.released)

    # -- Postgres

    async def admit(self, request: HoldRequest) -> Hold:
        written = False
        try:
            await asyncio.sleep(0)
            self.books.holds[request.call_id, request.attempt] = request
            self.books.ever_held[request.call_id, request.attempt] = request.amount_nano
            written = True
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if written:  # as PostgresTreasury.admit does when its caller leaves before the answer
                self.settle_soon(Settlement(request.call_id, request.attempt, LedgerState.VOIDED, 0))
            raise
        return Hold(request.call_id, request.attempt, request.amount_nano, None, None)

    def settle_soon(self, settlement: Settlement) -> asyncio.Future[str]:
        async def write() -> str:
            await asyncio.sleep(0)
            self.books.settle(settlement)
            return "settled"

        return asyncio.ensure_future(write())

    async def freed(self, timeout_s: float) -> None:
        await asyncio.sleep(0)

    # -- the sweeper, which ignores `watch`, because here the sweep at the end settles everything

    def watch(self, call_id: UUID, attempt: int, lifetime_s: float, *, answered: bool = False) -> None:
        return

    async def witnessed(self, call_id: UUID, attempt: int, wait_s: float) -> Settlement | None:
        await asyncio.sleep(0)
        found = tuple(self.books.witnesses.get((call_id, attempt), ()))
        orphan = OrphanHold(call_id, attempt, "m", 10**9, ExpiryPolicy.POST, False, found)
        return settlement_for(orphan, lambda _m, _d, _u, _t: COST)

    # -- LiteLLM Proxy and the provider

    def _serve(self) -> HttpAnswer:
        """Serve a request that has arrived. From here on, nothing depends on the gateway's process."""
        attempt = max(self.books.holds, key=lambda each: each[1])
        if self.fails:
            self.fails -= 1
            self.books.refused.add(attempt)
            self.books.witnesses[attempt] = [_witness(attempt, "failure", 0, Usage(), 500)]
            return HttpAnswer(500, {"x-treasurer-free": "1"}, b'{"error": {"message": "no"}}')
        self.books.billed[attempt] = COST
        self.books.witnesses[attempt] = [_witness(attempt, "success", COST, USAGE, 200)]
        return HttpAnswer(200, {"x-litellm-model-id": "d1"}, ANSWER)

    async def send(
        self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS
    ) -> UpstreamAnswer | Refusal:
        return (await self._asked()).facts()

    async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> FakeStream:
        answer = await self._asked()
        return FakeStream(CHUNKS if answer.status == 200 else [answer.body], answer.status, answer.headers)

    async def _asked(self) -> HttpAnswer:
        await asyncio.sleep(0)
        answer = self._serve()
        await asyncio.sleep(0)
        return answer


Work = Callable[[LLMService], Coroutine[Any, Any, object]]
FALLING = replace(PRINCIPAL, routes=(Route(fallbacks=(Fallback("m2"),), retries=1),))
FINISHING = replace(PRINCIPAL, routes=(Route(on_leave=OnLeave.FINISH),))


async def whole(service: LLMService, principal: Any = PRINCIPAL) -> object:
    return await service.complete(chat_body(max_tokens=20), principal, KEYED)


async def embedded(service: LLMService) -> object:
    return await service.embed(b'{"model": "e", "input": "hello"}', PRINCIPAL, KEYED)


async def streamed(
    service: LLMService, principal: Any = PRINCIPAL, most: int = 99, context: CallContext = KEYED
) -> object:
    answer = await service.stream(chat_body(stream=True, max_tokens=20), principal, context)
    got = 0
    try:
        async for _ in answer:
            got += 1
            if got == most:
                break
    finally:
        await asyncio.shield(answer.aclose())
    return got


SCENARIOS: dict[str, tuple[int, Work]] = {
    "whole": (0, whole),
    "embeddings": (0, embedded),
    "stream": (0, streamed),
    "stream that is left": (0, lambda service: streamed(service, most=1)),
    "stream that is left and finished": (0, lambda service: streamed(service, FINISHING, most=1)),
    "stream that is left and given up": (0, lambda service: streamed(service, most=1, context=NO_CONTEXT)),
    "stream that falls back without a key": (2, lambda service: streamed(service, FALLING, context=NO_CONTEXT)),
    "refused": (1, whole),
    "whole that falls back": (2, lambda service: whole(service, FALLING)),
    "stream that falls back": (2, lambda service: streamed(service, FALLING)),
}


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """One turn of the loop: every task that can run continues to its next await."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def run(books: Books, fails: int, work: Work, number: int, *, dies: bool) -> tuple[Books, int]:
    """Stop the call after `number` turns (0: never). Return the books then, and the number of turns."""
    loop = asyncio.new_event_loop()
    processes: list[Process] = []

    async def main() -> object:
        process = Process(books, fails)
        processes.append(process)
        try:
            return await work(process.service)
        finally:
            closing = asyncio.ensure_future(process.service.close())
            await asyncio.shield(closing)

    task = loop.create_task(main())
    turns = 0
    while not task.done():
        turn(loop)
        turns += 1
        if turns == number and dies:
            left = copy.deepcopy(books)
            bury(loop)
            return left, turns
        if turns == number:
            task.cancel()
        assert turns < 1_000, "it does not end"
    for _ in range(5):  # settlements run after the call has ended
        turn(loop)
    error = None if task.cancelled() else task.exception()
    assert error is None or isinstance(error, TreasurerError), error
    for process in processes:
        process.check_permits()
    bury(loop)
    return books, turns


def bury(loop: asyncio.AbstractEventLoop) -> None:
    """End the tasks that are left. Their effects on the books are ignored."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def check(books: Books) -> None:
    ended: dict[Attempt, list[Settlement]] = {}
    for entry in books.ledger:
        ended.setdefault((entry.call_id, entry.attempt), []).append(entry)
    assert books.holds == {}
    assert ended.keys() == books.ever_held.keys()
    for attempt, entries in ended.items():
        (entry,) = entries
        if attempt in books.billed:
            assert entry.state is LedgerState.POSTED
            assert entry.cost_nano >= books.billed[attempt]
            assert entry.cost_nano == books.billed[attempt] or entry.usage_source == "estimated", entry
        elif attempt in books.refused:
            assert entry.cost_nano == 0
        else:  # not billed, but perhaps nobody can prove that
            assert entry.cost_nano in (0, books.ever_held[attempt])
    if books.billed:
        assert books.keys.released == []


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("dies", [False, True], ids=["its caller leaves", "its process dies"])
def test_i2_wherever_a_call_is_stopped_each_attempt_ends_once_at_its_cost(name: str, dies: bool) -> None:
    fails, work = SCENARIOS[name]
    books, turns = run(Books(), fails, work, 0, dies=False)
    check(books)  # a call that is not stopped is settled without a sweep
    assert turns >= 8
    for number in range(1, turns + 1):
        books, _ = run(Books(), fails, work, number, dies=dies)
        books.sweep()
        check(books)


def test_the_harness_sees_a_hold_that_is_left() -> None:
    """Show that the check can fail: before the sweep, some death has left a hold."""
    _, turns = run(Books(), 0, whole, 0, dies=False)
    left = [run(Books(), 0, whole, number, dies=True)[0].holds for number in range(1, turns)]
    assert any(left)
    assert not all(left)
