"""A hold is settled at the rates with which it was made, whichever process settles it (I2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from llm_service.administration import organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.ids import new_call_id
from llm_service.pricing.catalog import Catalog
from llm_service.pricing.model_info import read_models
from llm_service.pricing.models import Model
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.rate_cards import RateCards
from llm_service.treasury.sweep import Sweeper
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, Usage


def entry(dollars: float) -> dict[str, Any]:
    """A deployment of the model `m`, as LiteLLM Proxy describes it."""
    info = {
        "id": "d1",
        "input_cost_per_token": dollars,
        "output_cost_per_token": 4 * dollars,
        "litellm_provider": "openai",
    }
    return {"model_name": "m", "litellm_params": {"model": "openai/m"}, "model_info": info}


def model(dollars: float) -> Model:
    return read_models([entry(dollars)])["m"]


@pytest.fixture
async def treasury(database_url: str) -> AsyncIterator[PostgresTreasury]:
    treasury = PostgresTreasury(database_url)
    yield treasury
    await treasury.close()


async def hold(pool: asyncpg.Pool, treasury: PostgresTreasury, priced: Model, lifetime_s: float = 0.01) -> Hold:
    if not await pool.fetchval("SELECT EXISTS (SELECT FROM agents)"):
        budget = {"limit": 1, "window": "day"}
        await organisations.create_agent(
            pool, read_input(organisations.NewAgent, {"name": "news", "team": "default", "budget": budget})
        )
    who = await Principals(pool).by_agent("news")
    card = await RateCards(pool).id_of(priced.rate_card)
    lines = ((who.budgets[0].id, ""),)
    request = HoldRequest(new_call_id(), 0, who, NO_CONTEXT, "m", 5_000_000, 1, lifetime_s, lines, rate_card_id=card)
    held = await treasury.admit(request)
    assert isinstance(held, Hold)
    return held


async def witness(pool: asyncpg.Pool, held: Hold, cost_nano: int | None) -> None:
    await pool.execute(
        "INSERT INTO witnesses (id, call_id, attempt, outcome, model, provider, deployment, cost_nano, input_tokens, "
        "output_tokens, ended_at) VALUES (gen_random_uuid(), $1, 0, 'success', 'm', 'openai', 'd1', $2, 1000, 200, now())",
        held.call_id,
        cost_nano,
    )


async def posted(pool: asyncpg.Pool, held: Hold) -> int:
    return await pool.fetchval("SELECT sum(cost_nano)::bigint FROM ledger WHERE call_id = $1", held.call_id)


@pytest.mark.parametrize("theirs", [0.0000001, None])
async def test_i2_a_sweeper_with_other_prices_or_without_the_model_posts_the_holds_own(
    pool: asyncpg.Pool, treasury: PostgresTreasury, theirs: float | None
) -> None:
    """Two stacks use one database. While a call is held, the price of its model is changed, or the model is removed."""
    held = await hold(pool, treasury, model(0.000001))
    await witness(pool, held, 1_800_000)

    def price(_name: str, deployment: str | None, usage: Usage, tier: str | None) -> int | None:
        return None if theirs is None else model(theirs).cost(deployment, usage, tier)

    await asyncio.sleep(0.05)
    assert await Sweeper(pool, treasury, price).sweep() == 1
    assert await posted(pool, held) == 1000 * 1_000 + 200 * 4_000
    assert await pool.fetchval("SELECT count(*) FROM ledger l JOIN rate_cards r ON r.id = l.rate_card_id") == 1


async def test_i2_a_late_witness_corrects_by_the_rates_of_the_hold(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    held = await hold(pool, treasury, model(0.000001))
    await asyncio.sleep(0.05)
    sweeper = Sweeper(pool, treasury, lambda *_: 7)
    assert await sweeper.sweep() == 1
    assert await posted(pool, held) == 5_000_000  # no witness yet, so the whole hold is posted
    await witness(pool, held, 1_800_000)
    assert await sweeper.sweep() == 1
    assert await posted(pool, held) == 1_800_000


async def test_i1_a_witness_far_above_the_rates_is_posted(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    """The proxy's prices were raised, and the gateway has not read the catalogue again."""
    held = await hold(pool, treasury, model(0.00000001))
    await witness(pool, held, 1_800_000)
    await asyncio.sleep(0.05)
    assert await Sweeper(pool, treasury, lambda *_: None).sweep() == 1
    assert await posted(pool, held) == 1_800_000


async def test_one_card_for_the_same_prices_in_all_processes(pool: asyncpg.Pool) -> None:
    async def read() -> list[dict[str, Any]]:
        return [entry(0.000002)]

    catalogues = [Catalog(read) for _ in range(4)]
    cards = [RateCards(pool) for _ in catalogues]
    models = [await catalogue.get("m") for catalogue in catalogues]
    ids = await asyncio.gather(*(card.id_of(each.rate_card) for card, each in zip(cards, models, strict=True)))
    assert len(set(ids)) == 1
    assert await cards[0].id_of(model(0.000003).rate_card) != ids[0]
    assert await pool.fetchval("SELECT count(*) FROM rate_cards") == 2
