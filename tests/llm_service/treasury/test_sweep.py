"""How a hold whose owner has died is settled: by its witnesses, else by the agent's policy (I1, I2). Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.ids import new_call_id
from llm_service.money import MAX_COST_NANO
from llm_service.pricing.rates import FREE, MostBeyondTokens, Rates, TokenRates
from llm_service.treasury.sweep import OrphanHold, settlement_for
from llm_service.types import CostSource, ExpiryPolicy, LedgerState, Settlement, Usage, UsageSource
from llm_service.witness import Outcome, Witness
from tests.examples import examples

CALL = new_call_id()
HELD = 1_000_000
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def witness(outcome: Outcome = "success", cost: int | None = 500, tokens: int = 10, **fields: Any) -> Witness:
    usage = Usage(tokens, output_tokens=tokens)
    given: dict[str, Any] = {"provider": "openai", "deployment": "d1", "status": 200} | fields
    return Witness(CALL, 2, outcome, "m", NOW, cost_nano=cost, usage=usage, **given)


def hold(*witnesses: Witness, expired: bool = True, policy: ExpiryPolicy = ExpiryPolicy.POST) -> OrphanHold:
    return OrphanHold(CALL, 2, "m", HELD, policy, expired, witnesses)


def price(model: str, deployment: str | None, usage: Usage, service_tier: str | None) -> int | None:
    assert model == "m"
    return None if deployment == "gone" else (usage.input_tokens + usage.output_tokens) * 100


def settle(orphan: OrphanHold, *, answered: bool = False) -> Settlement:
    settled = settlement_for(orphan, price, answered=answered)
    assert settled is not None
    assert (settled.call_id, settled.attempt) == (CALL, 2)
    return settled


@pytest.mark.parametrize("expired", [True, False])
@pytest.mark.parametrize("policy", list(ExpiryPolicy))
def test_a_witness_of_an_answer_is_posted_at_our_price(expired: bool, policy: ExpiryPolicy) -> None:
    settled = settle(hold(witness(), expired=expired, policy=policy))
    assert (settled.state, settled.cost_nano, settled.usage_source) == (LedgerState.POSTED, 2_000, UsageSource.WITNESS)
    assert settled.usage == Usage(10, output_tokens=10)
    assert (settled.proxy_cost_nano, settled.provider, settled.deployment, settled.status) == (500, "openai", "d1", 200)
    assert settled.error_code == "owner_lost"


@pytest.mark.parametrize("expired", [True, False])
@pytest.mark.parametrize("policy", list(ExpiryPolicy))
@pytest.mark.parametrize("tokens", [0, 10, 10**6])
def test_i1_of_a_stream_that_was_not_read_to_where_its_provider_had_come_the_whole_hold_is_posted(
    expired: bool, policy: ExpiryPolicy, tokens: int
) -> None:
    """The provider had generated more than was read, nobody knows how much. So no policy may release the hold."""
    settled = settle(hold(witness("cancelled", tokens=tokens, unread=True), expired=expired, policy=policy))
    assert (settled.state, settled.cost_nano, settled.usage_source) == (LedgerState.POSTED, HELD, UsageSource.WITNESS)
    assert settled.error_code == "owner_lost_unread"
    both = settle(hold(witness(), witness("cancelled", unread=True), expired=expired))
    assert both.cost_nano == HELD + 2_000, "the router's retry was another purchase"


@pytest.mark.parametrize("outcome", ["cancelled", "failure"])
def test_what_litellm_counted_of_a_cut_stream_is_posted_with_a_margin_within_the_hold(outcome: Outcome) -> None:
    settled = settle(hold(witness(outcome, tokens=100), expired=False))
    assert settled.state is LedgerState.POSTED
    assert 150 <= settled.usage.input_tokens <= 200
    assert 150 < settled.usage.output_tokens <= 200
    assert settled.cost_nano == (settled.usage.input_tokens + settled.usage.output_tokens) * 100
    assert settle(hold(witness(outcome, tokens=4_000))).cost_nano == HELD  # with the margin it would be 1,200,000


def test_a_counted_input_that_may_have_been_written_to_a_cache_is_posted_as_written() -> None:
    counted = replace(witness("cancelled"), usage=Usage(100, 0, 100, 10, 0, 100))
    used = settle(hold(counted)).usage
    assert used.cache_write_1h_tokens == used.cache_write_tokens == used.input_tokens > 150


def test_a_model_that_the_catalogue_has_lost_is_posted_at_the_proxys_price() -> None:
    assert settle(hold(witness(deployment="gone"))).cost_nano == 500


def test_i1_an_answer_that_nobody_can_price_costs_the_whole_hold() -> None:
    assert settle(hold(witness(deployment="gone", cost=None))).cost_nano == HELD


def test_answers_of_a_routers_retries_are_added_up() -> None:
    settled = settle(hold(witness("success", 300, 5), witness(cost=None, tokens=7, provider="azure", deployment="d2")))
    assert settled.cost_nano == 1_000 + 1_400
    assert settled.usage == Usage(12, output_tokens=12)
    assert (settled.proxy_cost_nano, settled.provider, settled.deployment) == (300, "azure", "d2")


@pytest.mark.parametrize("policy", list(ExpiryPolicy))
def test_without_a_witness_a_hold_waits_until_it_expires_and_then_the_policy_decides(policy: ExpiryPolicy) -> None:
    assert settlement_for(hold(expired=False, policy=policy), price) is None
    settled = settle(hold(policy=policy))
    posts = policy is ExpiryPolicy.POST
    assert (settled.state, settled.cost_nano) == (LedgerState.EXPIRED, HELD if posts else 0)
    assert settled.usage_source is (UsageSource.HOLD if posts else UsageSource.NONE)
    assert (settled.usage, settled.error_code) == (Usage(), "expired")


FREE_FAILURE = witness("failure", 0, 0, status=429)


@pytest.mark.parametrize(("expired", "answered"), [(True, False), (False, True), (True, True)])
def test_failures_that_cost_nothing_void_the_hold(expired: bool, answered: bool) -> None:
    settled = settle(hold(FREE_FAILURE, FREE_FAILURE, expired=expired), answered=answered)
    assert (settled.state, settled.cost_nano, settled.status) == (LedgerState.VOIDED, 0, 429)


def test_i1_a_failure_proves_nothing_while_another_attempt_may_be_under_way() -> None:
    assert settlement_for(hold(FREE_FAILURE, expired=False), price) is None


@pytest.mark.parametrize(
    "other", [witness("failure", None, 0), witness("cancelled", None, 0), witness("success", 0, 0)]
)
def test_i1_one_free_failure_beside_something_unknown_proves_nothing(other: Witness) -> None:
    for witnesses in ((FREE_FAILURE, other), (other, FREE_FAILURE), (other,)):
        assert settlement_for(hold(*witnesses, expired=False), price, answered=True) is None
        assert settle(hold(*witnesses)).cost_nano == HELD


def test_a_failure_before_an_answer_costs_nothing_more() -> None:
    settled = settle(hold(FREE_FAILURE, witness()))
    assert (settled.state, settled.cost_nano) == (LedgerState.POSTED, 2_000)


WITNESSES = st.builds(
    lambda outcome, cost, tokens, deployment: witness(outcome, cost, tokens, deployment=deployment),
    st.sampled_from(["success", "cancelled", "failure"]),
    st.one_of(st.none(), st.integers(0, 10**6)),
    st.integers(0, 50),
    st.sampled_from(["d1", "gone", None]),
)


@given(st.lists(WITNESSES, max_size=4), st.booleans(), st.booleans(), st.sampled_from(ExpiryPolicy))
@settings(max_examples=examples(300), deadline=None)
def test_i2_an_expired_hold_always_ends_and_never_below_what_was_proved(
    witnesses: list[Witness], expired: bool, answered: bool, policy: ExpiryPolicy
) -> None:
    settled = settlement_for(hold(*witnesses, expired=expired, policy=policy), price, answered=answered)
    if settled is None:
        assert not expired
        return
    assert settled.cost_nano >= 0
    used = [witness.usage.input_tokens + witness.usage.output_tokens for witness in witnesses]
    known = sum(tokens * 100 for tokens, each in zip(used, witnesses, strict=True) if each.deployment != "gone")
    assert settled.cost_nano >= known or settled.state is LedgerState.EXPIRED
    if settled.state is LedgerState.VOIDED:
        assert all(witness.outcome == "failure" and witness.cost_nano == 0 for witness in witnesses)
    if settled.state is LedgerState.EXPIRED:
        assert expired
        assert settled.cost_nano == (HELD if policy is ExpiryPolicy.POST else 0)


CARD = {"d1": Rates((TokenRates(0, 50_000_000, 50_000_000, 0, 0, 0, 50_000_000),))}  # 50 nano-dollars a token


def test_i2_a_hold_is_priced_at_the_rates_that_it_was_made_with() -> None:
    assert settle(replace(hold(witness()), rates=CARD)).cost_nano == 1_000
    # The highest rates of the card.
    assert settle(replace(hold(witness(deployment="another")), rates=CARD)).cost_nano == 1_000
    assert settle(replace(hold(witness(deployment="gone")), rates={"gone": FREE})).cost_nano == 0


@pytest.mark.parametrize("outcome", ["success", "cancelled", "failure"])
def test_i2_what_a_model_may_have_used_of_its_own_accord_is_posted_where_no_provider_reports_it(
    outcome: Outcome,
) -> None:
    """LiteLLM counts texts. It does not see the searches of a deep-research model, or what it read and thought."""
    tier = CARD["d1"].default[0]
    deep = Rates((tier,), search=(10**9, 10**9, 10**9), citation=10**8, beyond=MostBeyondTokens(80, 20, 30))
    counted = replace(witness(outcome), counted=True)
    settled = settle(replace(hold(counted), rates={"d1": deep}))
    assert (settled.usage.searches, settled.usage.citation_tokens, settled.usage.reasoning_tokens) == (80, 20, 30)
    plain = settle(replace(hold(counted), rates=CARD))
    assert settled.usage.output_tokens == plain.usage.output_tokens + 30
    assert settled.cost_nano == plain.cost_nano + 80 * 1_000 + 20 * 100 + 30 * 50
    reported = settle(replace(hold(witness()), rates={"d1": deep}))
    assert (reported.cost_nano, reported.usage.searches) == (1_000, 0), "the provider's own report is believed"
    assert (
        settle(replace(hold(counted), rates={"d1": replace(deep, search=(10**18, 10**18, 10**18))})).cost_nano == HELD
    )


def test_i2_the_sum_of_several_attempts_is_not_too_large_for_the_ledger() -> None:
    dear = replace(witness(cost=MAX_COST_NANO), named_cost_nano=MAX_COST_NANO)
    settled = settle(hold(*[dear] * 20))
    assert (settled.cost_nano, settled.proxy_cost_nano) == (MAX_COST_NANO, MAX_COST_NANO)


def test_i1_the_dearer_of_two_prices_is_posted_whatever_was_held() -> None:
    for cost_nano in (2_002, 2 * HELD):
        settled = settle(hold(witness(cost=cost_nano)))
        assert (settled.cost_nano, settled.cost_source) == (cost_nano, CostSource.UPSTREAM)
    for cost_nano in (1_000, 2_000, 2_001):  # less than our price, or more by rounding only
        settled = settle(hold(witness(cost=cost_nano)))
        assert (settled.cost_nano, settled.cost_source) == (2_000, CostSource.RATES)
    # The operator marked the model as free.
    assert settle(replace(hold(witness(cost=4_000)), rates={"d1": FREE})).cost_nano == 0
    named = replace(witness(cost=4_001), named_cost_nano=1_234)  # the provider itself named a cost
    assert (settle(hold(named)).cost_nano, settle(hold(named)).cost_source) == (1_234, CostSource.PROVIDER)
    counted = replace(witness(cost=10**9), counted=True)
    assert settle(hold(counted)).cost_nano < HELD  # a cost from LiteLLM's own count of a stream is not believed
