"""From a request to a hold, or to a refusal that leaves nothing held in Redis or in Postgres."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from llm_service.call.admission import Admission
from llm_service.call.attempt import CHAT_PATH, EMBEDDINGS_PATH, Admitted, Attempt, Call
from llm_service.call.response_headers import response_headers
from llm_service.errors import (
    BudgetBusy,
    BudgetExhausted,
    BudgetTooSmall,
    InvalidRequest,
    ModelNotAllowed,
    Paused,
    ProxyUnavailable,
    RateLimited,
    TreasurerError,
    TreasuryUnavailable,
    UnknownModel,
)
from llm_service.guards.breaker_gate import FREE
from llm_service.pricing.catalog import Catalog
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.types import (
    Budget,
    CallContext,
    Dimension,
    LedgerState,
    Principal,
    RateLimit,
    Scope,
    Settlement,
    WindowKind,
)
from llm_service.wire.requests import parse_chat, parse_embeddings
from tests.llm_service.fakes import (
    DAILY,
    ENTRIES,
    PRINCIPAL,
    FakeCounter,
    FakeLimiter,
    FakeTreasury,
    Refusals,
    chat_body,
    one_rate_card,
)


class Principals:
    """Fake principals: a principal that is read again is the newest one that the test has set."""

    def __init__(self) -> None:
        self.newest = PRINCIPAL
        self.renewed = 0

    async def renew(self, principal: Principal) -> Principal:
        self.renewed += 1
        return self.newest


class Parts:
    def __init__(self, limit_nano: int | None = None, busy_wait_s: float = 0.05, default_share: int = 2_500) -> None:
        self.treasury, self.limiter, self.counter = FakeTreasury(limit_nano), FakeLimiter(), FakeCounter()
        self.principals, self.refused = Principals(), Refusals()

        async def read() -> list[dict[str, Any]]:
            return ENTRIES

        self.admission = Admission(
            catalog=Catalog(read), principals=self.principals, limiter=self.limiter,
            treasury=self.treasury, count_tokens=self.counter.request, rate_card=one_rate_card, refused=self.refused, lifetime_s=330,
            busy_wait_s=busy_wait_s, default_share=default_share,
        )  # fmt: skip

    async def admit(self, call: Call) -> Admitted:
        """Admit a call as the service does for the first attempt."""
        try:
            call.route, call.chain = await self.admission.chain(call)
            attempt = Attempt(call)
            return await self.admission.admit(attempt, await self.admission.model(attempt), FREE)
        except TreasurerError as error:
            self.admission.refused(call, error)
            raise

    async def refusal(self, call: Call) -> TreasurerError:
        with pytest.raises(TreasurerError) as refused:
            await self.admit(call)
        assert self.refused.told == [(call.request.model, refused.value.code)]
        assert self.treasury.pending == {}
        assert len(self.limiter.released) == len(self.limiter.taken)
        assert set(self.limiter.released) <= {0}
        return refused.value


def chat(principal: Principal = PRINCIPAL, context: CallContext | None = None, **fields: Any) -> Call:
    return Call("chat", CHAT_PATH, parse_chat(chat_body(**fields)), principal, context or CallContext(), None)


async def test_an_admitted_call_has_all_it_needs() -> None:
    parts, call = Parts(10**9), chat(max_tokens=100)
    admitted = await parts.admit(call)
    assert admitted.model.name == "m"
    assert admitted.hold.amount_nano == admitted.bound.amount_nano
    assert admitted.output_tokens == 100
    assert parts.limiter.taken == [("m", call.request.text_bytes // 4 + 100, 330)]
    assert parts.limiter.released == []
    (asked,) = parts.treasury.asked
    assert (asked.call_id, asked.attempt, asked.model, asked.lifetime_s) == (call.call_id, 0, "m", 330)
    assert (asked.amount_nano, asked.floor_nano) == (admitted.bound.amount_nano, admitted.bound.floor_nano)
    assert asked.lines == ((DAILY.id, ""),)
    assert parts.refused.told == []


async def test_every_window_that_applies_is_asked_and_no_other() -> None:
    budgets = (
        DAILY,
        Budget(4, "tags", Scope.TEAM, 2, WindowKind.DAY, per=Dimension.TAG),
        Budget(5, "run x", Scope.TEAM, 2, WindowKind.TOTAL, per=Dimension.RUN, per_value="x"),
        Budget(6, "claude", Scope.TEAM, 2, WindowKind.DAY, model_pattern="claude-*"),
    )
    parts, context = Parts(), CallContext(run="y", tags=("a", "b"))
    await parts.admit(chat(replace(PRINCIPAL, budgets=budgets), context))
    assert parts.treasury.asked[0].lines == ((3, ""), (4, "a"), (4, "b"))


async def test_i1_a_call_is_clamped_to_what_the_budget_affords() -> None:
    parts, call = Parts(400_000), chat(max_tokens=4000)
    admitted = await parts.admit(call)
    assert admitted.hold.amount_nano == 400_000
    assert 16 <= admitted.output_tokens < 4000
    assert admitted.bound.input_tokens * 1_000 + admitted.output_tokens * 2_000 <= 400_000


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (chat(replace(PRINCIPAL, paused="team research")), Paused),
        (chat(replace(PRINCIPAL, models=("x",))), ModelNotAllowed),
        (chat(model="nope"), UnknownModel),
        (chat(model="e"), UnknownModel),
        (Call("embeddings", EMBEDDINGS_PATH, parse_embeddings(b'{"model": "m", "input": "x"}'), PRINCIPAL, CallContext(), None),
         UnknownModel),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "https://x/y.png"}]}]), InvalidRequest),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)  # fmt: skip
async def test_what_is_refused_before_the_budget_is_asked(call: Call, error: type[TreasurerError]) -> None:
    parts = Parts()
    assert type(await parts.refusal(call)) is error
    assert parts.treasury.asked == []
    assert parts.limiter.taken == []


async def test_pace_is_refused_before_money_is_held() -> None:
    parts = Parts()
    parts.limiter.error = RateLimited("slow down", retry_after=1)
    assert isinstance(await parts.refusal(chat()), RateLimited)
    assert parts.treasury.asked == []


async def test_the_agents_limits_are_what_is_asked_of_pace() -> None:
    parts, limit = Parts(), RateLimit(1, Scope.AGENT, "agent:7", requests_per_minute=5)
    await parts.admit(chat(replace(PRINCIPAL, limits=(limit,))))
    assert parts.limiter.limits == [(limit,)]


async def test_i6_postgres_away_gives_the_pace_back() -> None:
    parts = Parts()
    parts.treasury.outcomes = [TreasuryUnavailable("away", retry_after=1)]
    assert (await parts.refusal(chat())).status == 503


async def test_an_error_that_nobody_expected_gives_the_pace_back_too() -> None:
    parts = Parts()
    parts.treasury.outcomes = [RuntimeError("a bug")]
    with pytest.raises(RuntimeError):
        await parts.admit(chat())
    assert parts.limiter.released == [0]
    assert parts.refused.told == []


async def test_a_caller_who_leaves_while_waiting_gives_the_pace_back() -> None:
    parts = Parts(10**9, busy_wait_s=60)
    await parts.treasury.hold_elsewhere(10**9)
    task = asyncio.create_task(parts.admit(chat()))
    while not parts.treasury.waits:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert parts.limiter.released == [0]


async def test_exhausted_is_said_at_once() -> None:
    parts = Parts(10**9, busy_wait_s=60)
    other = await parts.treasury.hold_elsewhere(10**9)
    parts.treasury.settle_soon(Settlement(other, 0, LedgerState.POSTED, 10**9 - 1_000))
    error = await parts.refusal(chat())
    assert isinstance(error, BudgetExhausted)
    assert parts.treasury.waits == 0


async def test_a_call_that_is_too_large_is_refused_at_once() -> None:
    parts = Parts(1_000, busy_wait_s=60)
    error = await parts.refusal(chat())
    assert isinstance(error, BudgetTooSmall)
    assert error.details["left"] == "0.000001000"
    assert parts.treasury.waits == 0


async def test_a_default_that_nobody_asked_for_holds_a_share_of_what_is_left() -> None:
    """Six callers at once send no max_tokens, and the default for one of them would be more than the budget."""
    parts = Parts(3_300_000, busy_wait_s=0)
    admitted = [await parts.admit(chat()) for _ in range(6)]
    left = 3_300_000
    for each in admitted:
        assert each.hold.amount_nano == left // 4
        assert 16 <= each.output_tokens < 4_096
        assert response_headers(each, None)["x-treasurer-max-tokens"] == f"clamped:{each.output_tokens}"
        left -= left // 4


async def test_a_default_is_never_below_the_agents_floor() -> None:
    parts = Parts(100_000, busy_wait_s=0)
    admitted = await parts.admit(chat(replace(PRINCIPAL, floor_tokens=20)))
    assert admitted.hold.amount_nano == admitted.bound.floor_nano > 100_000 // 4
    assert admitted.output_tokens == 20


async def test_a_call_that_names_max_tokens_may_hold_all_that_is_left() -> None:
    parts = Parts(400_000)
    assert (await parts.admit(chat(max_tokens=4_096))).hold.amount_nano == 400_000


async def test_the_share_of_a_default_is_a_setting() -> None:
    parts = Parts(400_000, default_share=10_000)
    assert (await parts.admit(chat())).hold.amount_nano == 400_000


async def test_i1_a_budgets_share_for_one_call_clamps_the_output() -> None:
    parts = Parts(10_000_000)
    parts.treasury.most_per_call[DAILY.id] = 2_000
    admitted = await parts.admit(chat(max_tokens=64_000))
    assert admitted.hold.amount_nano == 2_000_000
    assert admitted.bound.input_tokens * 1_000 + admitted.output_tokens * 2_000 <= 2_000_000
    assert response_headers(admitted, None)["x-treasurer-max-tokens"] == f"clamped:{admitted.output_tokens}"


async def test_busy_is_said_after_waiting_for_what_is_in_flight() -> None:
    parts = Parts(10**9)
    other = await parts.treasury.hold_elsewhere(10**9)
    with pytest.raises(BudgetBusy) as refused:
        await parts.admit(chat())
    assert refused.value.retry_after is not None
    assert parts.treasury.waits >= 1
    assert parts.treasury.pending == {other: 10**9}


async def test_busy_passes_when_a_call_in_flight_settles() -> None:
    parts = Parts(10**9, busy_wait_s=60)
    other = await parts.treasury.hold_elsewhere(10**9)
    task = asyncio.create_task(parts.admit(chat(max_tokens=10)))
    while not parts.treasury.waits:
        await asyncio.sleep(0)
    parts.treasury.settle_soon(Settlement(other, 0, LedgerState.VOIDED, 0))
    admitted = await task
    assert admitted.hold.amount_nano == admitted.bound.amount_nano
    assert parts.refused.told == []


async def test_a_principal_of_an_older_configuration_is_read_again() -> None:
    parts, call = Parts(), chat()
    newer = replace(PRINCIPAL, epoch=2, budgets=(replace(DAILY, id=8),))
    parts.principals.newest = newer
    parts.treasury.outcomes = [StaleEpoch()]
    await parts.admit(call)
    assert call.principal is newer
    assert [asked.lines for asked in parts.treasury.asked] == [((3, ""),), ((8, ""),)]


async def test_a_pause_that_came_in_between_is_obeyed() -> None:
    parts = Parts()
    parts.principals.newest = replace(PRINCIPAL, epoch=2, paused="agent digest")
    parts.treasury.outcomes = [StaleEpoch()]
    assert isinstance(await parts.refusal(chat()), Paused)
    assert len(parts.treasury.asked) == 1


LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "word " * 4_000}], "max_tokens": 16}


async def test_the_input_is_counted_where_its_bytes_do_not_fit() -> None:
    parts, call = Parts(12_000_000), chat(**LONG)  # nano-dollars by bytes: 20 million; counted, with the margin: 7.5
    admitted = await parts.admit(call)
    assert parts.counter.asked == 1
    assert admitted.bound.counted
    assert admitted.hold.amount_nano == admitted.bound.amount_nano <= 12_000_000
    assert admitted.bound.input_tokens >= call.request.text_bytes // 4


async def test_it_is_not_counted_where_the_bytes_fit() -> None:
    parts = Parts(10**9)
    await parts.admit(chat(**LONG))
    assert parts.counter.asked == 0


async def test_it_is_not_counted_where_no_count_could_help() -> None:
    parts = Parts(1_000_000)
    assert isinstance(await parts.refusal(chat(**LONG)), BudgetTooSmall)
    assert parts.counter.asked == 0


async def test_it_is_counted_where_its_bytes_are_more_than_one_call_may_hold() -> None:
    parts = Parts(60_000_000)  # by bytes: 20 million; a fifth of the limit: 12; counted: 7.5
    parts.treasury.most_per_call[DAILY.id] = 2_000
    admitted = await parts.admit(chat(**LONG))
    assert admitted.bound.counted
    assert admitted.hold.amount_nano <= 12_000_000


async def test_it_is_not_counted_where_no_count_is_within_one_calls_share() -> None:
    parts = Parts(60_000_000)
    parts.treasury.most_per_call[DAILY.id] = 10
    error = await parts.refusal(chat(**LONG))
    assert isinstance(error, BudgetTooSmall)
    assert error.details["most_per_call"] == "0.1%"
    assert parts.counter.asked == 0


async def test_a_call_waits_until_one_calls_share_is_enough() -> None:
    parts = Parts(2_100_000, busy_wait_s=60)
    other = await parts.treasury.hold_elsewhere(2_000_000)
    parts.treasury.most_per_call[DAILY.id] = 2_000
    task = asyncio.create_task(parts.admit(chat(max_tokens=16)))  # a fifth of the 100,000 that are left is too little
    while not parts.treasury.waits:
        await asyncio.sleep(0)
    parts.treasury.settle_soon(Settlement(other, 0, LedgerState.VOIDED, 0))
    assert 20_000 < (await task).hold.amount_nano <= 420_000


async def test_a_count_that_does_not_help_is_not_repeated() -> None:
    parts = Parts(5_000_000)
    assert isinstance(await parts.refusal(chat(**LONG)), BudgetTooSmall)
    assert parts.counter.asked == 1


async def test_without_a_tokenizer_the_bytes_decide() -> None:
    parts = Parts(12_000_000)
    parts.counter.error = ProxyUnavailable("away")
    assert isinstance(await parts.refusal(chat(**LONG)), BudgetTooSmall)


async def test_a_denial_is_answered_with_the_windows_figures() -> None:
    parts = Parts(busy_wait_s=0)
    parts.treasury.outcomes = [Denial(DenialKind.BUSY, DAILY.id, "", 1_000, 100, 900, None)]
    error = await parts.refusal(chat())
    assert isinstance(error, BudgetBusy)
    assert error.details["budget"] == "daily"


async def test_i1_callers_at_once_never_hold_more_than_the_limit() -> None:
    parts = Parts(3_000_000, busy_wait_s=0.02)
    results = await asyncio.gather(*(parts.admit(chat(max_tokens=500)) for _ in range(20)), return_exceptions=True)
    assert sum(parts.treasury.pending.values()) <= 3_000_000
    assert all(isinstance(result, Admitted | BudgetBusy) for result in results)
    refused = [result for result in results if isinstance(result, BudgetBusy)]
    assert len(results) - len(refused) == len(parts.treasury.pending) >= 2
    assert len(parts.limiter.released) == len(refused)
