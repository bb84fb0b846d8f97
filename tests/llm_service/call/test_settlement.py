"""Each attempt is settled once: by the provider's report, else by the proxy's witness, else by a count with a margin
(I2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.call.attempt import CHAT_PATH, Admitted, Attempt, Call
from llm_service.call.ending import Ending
from llm_service.call.settlement import Settler
from llm_service.errors import ProxyUnavailable, UpstreamError
from llm_service.guards.breaker_gate import FREE
from llm_service.guards.token_bucket import RatePermit
from llm_service.pricing.bounds import cost_bound
from llm_service.pricing.model_info import read_models
from llm_service.pricing.rates import Most
from llm_service.types import NO_CONTEXT, CostSource, Hold, LedgerState, Settlement, Usage, UsageSource
from llm_service.wire.requests import parse_chat
from tests.examples import examples
from tests.llm_service.fakes import (
    COUNTED,
    ENTRIES,
    PRINCIPAL,
    FakeCounter,
    FakeLimiter,
    FakeSweeper,
    FakeTreasury,
    Records,
    chat_body,
)

HEADERS = {"x-litellm-model-id": "d1", "x-litellm-response-cost": "0.000123"}


def admitted(entries: Sequence[dict[str, Any]] = ENTRIES, **fields: Any) -> Admitted:
    call = Call("chat", CHAT_PATH, parse_chat(chat_body(**fields)), PRINCIPAL, NO_CONTEXT, None)
    model = read_models(entries)["m"]
    bound = cost_bound(model, call.request, PRINCIPAL)
    return Admitted(
        Attempt(call), model, bound, RatePermit(call.call_id, (), (), 0, True), FREE,
        Hold(call.call_id, 0, bound.amount_nano, 3, 10**9), bound.output_tokens,
    )  # fmt: skip


class Parts:
    def __init__(self) -> None:
        self.treasury, self.limiter, self.sweeper = FakeTreasury(), FakeLimiter(), FakeSweeper()
        self.counter, self.records = FakeCounter(), Records()
        self.settler = Settler(
            treasury=self.treasury, limiter=self.limiter, sweeper=self.sweeper,
            count_tokens=self.counter.request, count_text=self.counter.text, record=self.records.append, lifetime_s=330,
        )  # fmt: skip

    @property
    def settled(self) -> Settlement:
        (only,) = self.treasury.settled
        return only


@pytest.fixture
def parts() -> Parts:
    return Parts()


def never() -> str:
    raise AssertionError("the answer is not needed")


async def test_what_the_provider_reports_is_posted_as_it_is(parts: Parts) -> None:
    call, usage = admitted(), Usage(100, 40, 0, 50, 30)
    call.attempt.first_token_ms = 12
    ending = Ending(LedgerState.POSTED, 200, usage, UsageSource.PROVIDER, "d1", 123_000)
    assert await parts.settler.settle(call, ending, never) == 100 * 1_000 + 50 * 2_000
    settled = parts.settled
    assert (settled.call_id, settled.attempt, settled.state) == (call.call.call_id, 0, LedgerState.POSTED)
    assert (settled.cost_nano, settled.usage, settled.usage_source) == (200_000, usage, UsageSource.PROVIDER)
    assert (settled.proxy_cost_nano, settled.provider, settled.deployment) == (123_000, "openai", "d1")
    assert (settled.status, settled.error_code, settled.first_token_ms) == (200, None, 12)
    assert parts.limiter.released == [150]
    (record,) = parts.records
    assert (record.cost_nano, record.held_nano, record.usage) == (200_000, call.hold.amount_nano, usage)
    assert (record.operation, record.requested_model, record.provider) == ("chat", "m", "openai")


@pytest.mark.parametrize(
    ("figures", "posted", "source", "own"),
    [
        ({"proxy_cost_nano": 250_000}, 250_000, CostSource.UPSTREAM, 200_000),
        ({"proxy_cost_nano": 150_000}, 200_000, CostSource.RATES, 200_000),
        ({"proxy_cost_nano": 250_000, "named_cost_nano": 90_000}, 90_000, CostSource.PROVIDER, None),
    ],
)
async def test_i4_our_own_figure_is_compared_also_if_another_one_is_posted(
    parts: Parts, figures: dict[str, int], posted: int, source: CostSource, own: int | None
) -> None:
    ending = Ending(LedgerState.POSTED, 200, Usage(100, 40, 0, 50, 30), UsageSource.PROVIDER, "d1")
    assert await parts.settler.settle(admitted(), replace(ending, **figures), never) == posted
    assert (parts.settled.cost_nano, parts.settled.cost_source) == (posted, source)
    (record,) = parts.records
    assert (record.cost_nano, record.own_cost_nano) == (posted, own)


FEES = {"search_context_size_low": 0.005, "search_context_size_medium": 0.008, "search_context_size_high": 0.012}
SONAR = {
    "model_name": "m",
    "litellm_params": {"model": "perplexity/sonar"},
    "model_info": {
        "id": "d1",
        "litellm_provider": "perplexity",
        "input_cost_per_token": 1e-06,
        "output_cost_per_token": 1e-06,
    }
    | {"search_context_cost_per_query": FEES},
}


@pytest.mark.parametrize(
    ("asked", "reported", "nano", "recorded"),
    [
        (None, "", 5_156_000, ""),
        ("low", "", 5_156_000, "low"),
        ("medium", "", 8_156_000, "medium"),
        ("high", "", 12_156_000, "high"),
        ("high", "low", 5_156_000, "low"),  # the provider knows better
        ("low", "high", 12_156_000, "high"),
        ("high", "immense", 12_156_000, "high"),
    ],
)
async def test_i4_a_search_is_posted_by_its_size_as_reported_or_else_as_asked_for(
    parts: Parts, asked: str | None, reported: str, nano: int, recorded: str
) -> None:
    call = admitted([SONAR], web_search_options={"search_context_size": asked})
    usage = Usage(6, output_tokens=150, search_context=reported)
    ending = Ending(LedgerState.POSTED, 200, usage, UsageSource.PROVIDER, "d1")
    assert await parts.settler.settle(call, ending, never) == nano
    assert parts.settled.usage.search_context == recorded


async def test_i1_an_estimate_has_the_fee_of_the_size_that_was_asked_for(parts: Parts) -> None:
    call = admitted([SONAR], web_search_options={"search_context_size": "high"})
    cost = await parts.settler.settle(call, Ending(LedgerState.POSTED, 200), lambda: "ok")
    assert cost is not None
    assert 12_000_000 < cost <= call.hold.amount_nano
    assert parts.settled.usage.search_context == "high"


async def test_i1_a_provider_that_bills_more_than_the_hold_is_posted_in_full(parts: Parts) -> None:
    usage = Usage(10**7, output_tokens=10**6)
    cost = await parts.settler.settle(
        admitted(), Ending(LedgerState.POSTED, 200, usage, UsageSource.PROVIDER, "d1"), never
    )
    assert cost == parts.settled.cost_nano == 12 * 10**9


MISSING = Ending(LedgerState.POSTED, 200, deployment="d1")


async def test_an_answer_without_usage_is_counted_with_a_margin(parts: Parts) -> None:
    call = admitted(max_tokens=1000)
    text = "y" * 400  # a hundred tokens
    await parts.settler.settle(call, MISSING, lambda: text)
    settled = parts.settled
    assert settled.usage_source is UsageSource.ESTIMATED
    assert 150 <= settled.usage.output_tokens <= 200
    assert settled.usage.input_tokens >= call.call.request.text_bytes // 4 * 3 // 2
    assert 0 < settled.cost_nano <= call.hold.amount_nano
    assert parts.records[0].own_cost_nano is None  # an estimate is not compared with LiteLLM's cost
    assert parts.sweeper.looked == []  # no witness is waited for after a whole answer


@pytest.mark.parametrize("error", [ProxyUnavailable("away"), UpstreamError("no count")])
async def test_what_cannot_be_counted_is_settled_by_its_bytes(parts: Parts, error: Any) -> None:
    parts.counter.error = error
    call = admitted(max_tokens=1000)
    await parts.settler.settle(call, MISSING, lambda: "文" * 10)
    assert parts.settled.usage == Usage(call.bound.input_tokens, output_tokens=30)


@given(st.text(max_size=300), st.integers(1, 200), st.integers(1, 3), st.booleans())
@settings(max_examples=examples(60), deadline=None)
async def test_i1_an_estimate_is_never_above_the_hold(text: str, most: int, choices: int, countable: bool) -> None:
    parts, call = Parts(), admitted(max_tokens=most, n=choices)
    parts.counter.error = None if countable else ProxyUnavailable("away")
    cost = await parts.settler.settle(call, MISSING, lambda: text.encode("utf-8", "replace").decode())
    assert cost is not None
    assert 0 < cost <= call.hold.amount_nano
    assert parts.settled.usage.output_tokens <= most * choices
    if text.strip():
        assert parts.settled.usage.output_tokens >= min(most * choices, len(text) // 4)


async def test_i1_an_estimate_at_a_dearer_price_than_was_held_for_stays_within_the_hold(parts: Parts) -> None:
    call = admitted()
    call = replace(call, hold=Hold(call.call.call_id, 0, 5_000, 3, 10**9))
    assert await parts.settler.settle(call, MISSING, lambda: "x" * 1_000) == parts.settled.cost_nano == 5_000


async def test_images_are_estimated_at_their_bound(parts: Parts) -> None:
    call = admitted()
    call.call.request = parse_chat(
        chat_body(
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]
        )
    )
    await parts.settler.settle(call, MISSING, lambda: "")
    assert parts.counter.asked == 0
    assert parts.settled.usage.input_tokens == call.bound.input_tokens


CUT = Ending(LedgerState.POSTED, 499, deployment="d1", error_code="client_left")


async def test_a_stream_that_was_given_up_is_settled_by_what_the_proxy_saw(parts: Parts) -> None:
    call, usage = admitted(stream=True), Usage(20, output_tokens=30)
    parts.sweeper.witness = Settlement(
        call.call.call_id, 0, LedgerState.POSTED, 1, usage, UsageSource.WITNESS, 77, deployment="d1", status=200,
        error_code="owner_lost",
    )  # fmt: skip
    assert await parts.settler.settle(call, CUT, never) == 80_000
    settled = parts.settled
    assert (settled.usage, settled.usage_source, settled.proxy_cost_nano) == (usage, UsageSource.WITNESS, 77)
    assert (settled.status, settled.error_code) == (499, "client_left")


async def test_i2_what_the_provider_named_as_its_cost_is_posted_from_the_witness_too(parts: Parts) -> None:
    call = admitted(stream=True)
    parts.sweeper.witness = Settlement(
        call.call.call_id, 0, LedgerState.POSTED, 95_001, Usage(20, output_tokens=30), UsageSource.WITNESS, 77,
        deployment="d1", status=200, error_code="owner_lost", cost_source=CostSource.PROVIDER,
    )  # fmt: skip
    assert await parts.settler.settle(call, CUT, never) == 95_001
    assert parts.settled.cost_source is CostSource.PROVIDER


@pytest.mark.parametrize("witnessed", [None, COUNTED])
async def test_i1_what_a_model_does_by_itself_is_estimated_at_all_that_was_held_for(
    parts: Parts, witnessed: Settlement | None
) -> None:
    call = admitted(max_tokens=1000, stream=True)
    most = Most(searches=20, citation_tokens=3_000, reasoning_tokens=50_000)
    call = replace(call, bound=replace(call.bound, most=most), hold=replace(call.hold, amount_nano=10**12))
    parts.sweeper.witness = witnessed
    ending = replace(MISSING, error_code=None if witnessed is None else "upstream_cut")
    await parts.settler.settle(call, ending, lambda: "some words")
    usage = parts.settled.usage
    assert (usage.searches, usage.citation_tokens, usage.reasoning_tokens) == (20, 3_000, 50_000)
    assert usage.output_tokens > 50_000


@pytest.mark.parametrize(
    ("seen", "output_tokens"), [(Usage(20, output_tokens=3), 20), (Usage(20, output_tokens=900), 900)]
)
async def test_what_the_proxy_counted_itself_is_only_a_least(parts: Parts, seen: Usage, output_tokens: int) -> None:
    """LiteLLM counts a broken stream with its own tokenizer, and does not know the tokens that were still in flight."""
    call = admitted(stream=True, max_tokens=1000)
    parts.sweeper.witness = Settlement(
        call.call.call_id, 0, LedgerState.POSTED, 1, seen, UsageSource.WITNESS, 77, deployment="d1", status=499
    )
    await parts.settler.settle(call, CUT, lambda: "some words")
    settled = parts.settled
    assert settled.usage_source is UsageSource.ESTIMATED
    assert settled.usage.output_tokens >= output_tokens
    assert settled.usage.input_tokens > 20
    assert settled.proxy_cost_nano == 77


@pytest.mark.parametrize("seen", [0, 3, 900])
async def test_i1_of_a_stream_that_was_not_read_to_where_its_provider_had_come_all_output_is_posted(
    parts: Parts, seen: int
) -> None:
    call = admitted(stream=True, max_tokens=1000, n=2)
    witnessed = replace(COUNTED, usage=Usage(20, output_tokens=seen), error_code="owner_lost_unread")
    parts.sweeper.witness = witnessed
    await parts.settler.settle(call, CUT, lambda: "some words")
    settled = parts.settled
    assert (settled.usage.output_tokens, settled.usage_source) == (2000, UsageSource.ESTIMATED)
    assert settled.usage.input_tokens > 20
    assert settled.cost_nano <= call.hold.amount_nano


async def test_what_was_in_flight_when_nothing_was_seen_is_counted(parts: Parts) -> None:
    call = admitted(stream=True, max_tokens=1000)
    parts.sweeper.witness = COUNTED
    await parts.settler.settle(call, CUT, lambda: "")
    assert parts.settled.usage.output_tokens >= 16


async def test_i2_a_stream_that_was_left_and_that_nobody_else_saw_waits_for_its_witness(parts: Parts) -> None:
    """The proxy reads on after the gateway has stopped, so the gateway's own count may be too low."""
    call = admitted(stream=True)
    assert await parts.settler.settle(call, CUT, lambda: "some words") is None
    assert parts.sweeper.looked == [(call.call.call_id, 0)]
    assert parts.treasury.settled == []
    assert [(watched[0], watched[3]) for watched in parts.sweeper.watched] == [(call.call.call_id, False)]


async def test_a_stream_that_its_provider_cut_and_that_nobody_else_saw_is_estimated(parts: Parts) -> None:
    await parts.settler.settle(admitted(), replace(CUT, error_code="upstream_cut"), lambda: "some words")
    assert parts.settled.usage_source is UsageSource.ESTIMATED
    assert parts.settled.usage.output_tokens >= 2


@pytest.mark.parametrize("error_code", [None, "upstream_cut", "client_left"])
async def test_i2_what_a_model_thought_unseen_is_not_below_what_it_may_have_thought(
    parts: Parts, error_code: str | None
) -> None:
    """Only the provider counts hidden reasoning. Such a stream is read to its end here, so no witness can know more."""
    call = admitted(max_tokens=1000, n=2, stream=True)
    call = replace(call, model=replace(call.model, capabilities=frozenset({"reasoning"})))
    parts.counter.error = ProxyUnavailable("away") if error_code is None else None
    await parts.settler.settle(call, replace(CUT, error_code=error_code), lambda: "some words")
    assert parts.settled.usage.output_tokens == 2000
    assert parts.settled.usage_source is UsageSource.ESTIMATED
    assert parts.sweeper.looked == []


async def test_an_answer_that_nobody_waited_for_any_more_is_estimated_from_all_of_it(parts: Parts) -> None:
    await parts.settler.settle(admitted(), replace(MISSING, error_code="superseded"), lambda: "")
    assert parts.settled.usage_source is UsageSource.ESTIMATED
    assert parts.sweeper.looked == []


async def test_i2_an_input_that_may_have_been_written_to_a_cache_is_estimated_at_that_price(parts: Parts) -> None:
    text = {"type": "text", "text": "word " * 500, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    call = admitted(messages=[{"role": "user", "content": [text]}])
    await parts.settler.settle(call, MISSING, lambda: "")
    used = parts.settled.usage
    assert used.cache_write_1h_tokens == used.cache_write_tokens == used.input_tokens > 500


@pytest.mark.parametrize(("told", "tier"), [(None, "priority"), ("flex", "flex")])
async def test_an_estimate_is_of_the_tier_that_was_reported_or_else_requested(
    parts: Parts, told: str | None, tier: str
) -> None:
    call = admitted(service_tier="priority")
    await parts.settler.settle(call, replace(MISSING, service_tier=told), lambda: "")
    assert parts.settled.service_tier == tier


async def test_nothing_was_bought_and_everything_goes_back(parts: Parts) -> None:
    parts.settler.void(admitted(), ProxyUnavailable("away"))
    settled = parts.settled
    assert (settled.state, settled.cost_nano, settled.usage_source) == (LedgerState.VOIDED, 0, UsageSource.NONE)
    assert (settled.status, settled.error_code) == (503, "proxy_unavailable")
    assert parts.limiter.released == [0]
    assert parts.records[0].state is LedgerState.VOIDED


@pytest.mark.parametrize("answered", [True, False])
async def test_i2_what_may_have_been_bought_is_left_to_its_witness(parts: Parts, answered: bool) -> None:
    call = admitted()
    parts.settler.unanswered(call, UpstreamError("lost"), answered=answered)
    assert parts.treasury.settled == []
    assert parts.sweeper.watched == [(call.call.call_id, 0, 330, answered)]
    assert parts.limiter.released == [None]
