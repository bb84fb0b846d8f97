"""A budget that is made in the middle of its window. It starts at zero, or at the amount spent in the window so far.

What must hold: if the budget counts from the window's beginning, each call of the window counts exactly once, whether
it had ended, was in flight, or came while the budget was made. The audit computes the same, or names the difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from gateway.stack.state import StackState
from llm_service.administration.budget_states import show_budget
from llm_service.administration.budgets import ChangeBudget, CreatedBudget, NewBudget, change_budget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.keys import NewKey, create_key
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.types import CallContext, Hold
from tests.integration.administering import Treasurer
from tests.integration.agents_that_spend import House, open_house
from tests.integration.caller import nano, open_caller

DOLLAR = 1_000_000_000


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    async with open_house(database_url) as house:
        await house.agent("news")
        await house.agent("other")
        yield house


async def budget(house: House, limit: str = "1", count_from: str = "window", **terms: object) -> CreatedBudget:
    owner = {} if terms.keys() & {"team", "organisation", "key"} else {"agent": "news"}
    fields = {"limit": limit, "window": "month", "count_from": count_from, **owner, **terms}
    return await create_budget(house.pool, read_input(NewBudget, fields))


async def posted(house: House, name: str) -> dict[str, tuple[int, int]]:
    """The posted and the pending amount in a budget's windows, by subject."""
    shown = await show_budget(house.pool, name)
    return {window.subject: (window.posted_nano, window.pending_nano) for window in shown.live_windows}


async def audited(house: House) -> list[str]:
    return [fault for fault in await house.books() if "wait" not in fault]


async def test_a_budget_starts_at_zero_and_says_so(house: House) -> None:
    await house.spend("news", 300)
    made = await budget(house, count_from="now")
    assert (made.posted_nano, made.counts_from) == (0, made.created_at)
    await house.spend("news", 5)
    assert await posted(house, made.name) == {"": (5, 0)}
    assert await audited(house) == []


async def test_a_budget_starts_at_what_was_spent_in_its_window(house: House) -> None:
    await house.spend("news", DOLLAR // 2)
    await house.spend("other", 7)
    made = await budget(house)
    assert (made.posted_nano, made.pending_nano, made.left_nano) == (DOLLAR // 2, 0, DOLLAR // 2)
    assert made.counts_from is not None
    assert made.counts_from.day == 1
    assert made.counts_from < datetime.now(UTC)
    refused = await house.admit("news", DOLLAR // 2 + 1)
    assert isinstance(refused, Denial)
    assert refused.kind is DenialKind.EXHAUSTED
    assert isinstance(await house.spend("news", DOLLAR // 2), Hold)
    assert await posted(house, made.name) == {"": (DOLLAR, 0)}
    assert await audited(house) == []


async def test_i1_calls_in_flight_count_with_their_hold_and_then_with_their_cost(house: House) -> None:
    held = await house.admit("news", 400)
    assert isinstance(held, Hold)
    made = await budget(house, "0.0000005")
    assert (made.posted_nano, made.pending_nano) == (0, 400)
    assert isinstance(await house.admit("news", 101), Denial)
    assert await audited(house) == []
    await house.settle(held, 150)
    assert await posted(house, made.name) == {"": (150, 0)}
    assert isinstance(await house.spend("news", 350), Hold)
    assert await audited(house) == []


async def test_what_was_spent_may_be_more_than_the_limit(house: House) -> None:
    await house.spend("news", 900)
    made = await budget(house, "0.0000005")
    assert (made.posted_nano, made.left_nano) == (900, 0)
    assert isinstance(await house.admit("news", 1), Denial)
    assert await audited(house) == []


async def test_a_lower_limit_afterwards_is_no_overspend(house: House) -> None:
    await house.spend("news", 600)
    made = await budget(house, "0.000001")
    await house.spend("news", 300)
    await change_budget(house.pool, made.name, ChangeBudget.model_validate({"limit": "0.0000003"}))
    assert await audited(house) == []
    await change_budget(house.pool, made.name, ChangeBudget.model_validate({"limit": "0.00001"}))
    await house.spend("news", 50)
    assert await audited(house) == []


async def test_each_user_and_tag_starts_at_its_own(house: House) -> None:
    ann, bob = CallContext(user="ann", tags=("a", "b")), CallContext(user="bob")
    await house.spend("news", 10, context=ann)
    await house.spend("news", 20, context=bob)
    held = await house.admit("news", 30, context=ann)
    await house.spend("news", 40)
    users = await budget(house, per="user")
    tags = await budget(house, per="tag")
    only = await budget(house, per="tag", per_value="b")
    assert await posted(house, users.name) == {"ann": (10, 30), "bob": (20, 0), "": (40, 0)}
    assert await posted(house, tags.name) == {"a": (10, 30), "b": (10, 30), "": (60, 0)}
    assert await posted(house, only.name) == {"b": (10, 30)}
    assert isinstance(held, Hold)
    await house.settle(held, 3)
    assert await posted(house, users.name) == {"ann": (13, 0), "bob": (20, 0), "": (40, 0)}
    assert await posted(house, only.name) == {"b": (13, 0)}
    assert await audited(house) == []


async def test_of_a_model_only_what_it_cost(house: House) -> None:
    await house.spend("news", 10, model="gpt-4o")
    await house.spend("news", 20, model="gpt-4o-mini")
    await house.spend("news", 40, model="claude[1]")
    sums = {
        pattern: (await budget(house, model=pattern, name=f"b{number}")).posted_nano
        for number, pattern in enumerate(("gpt-*", "gpt-4o", "gpt-4?", "*[1]*", "*[!1]", "claude[[]1]"))
    }
    assert sums == {"gpt-*": 30, "gpt-4o": 10, "gpt-4?": 10, "*[1]*": 40, "*[!1]": 70, "claude[[]1]": 40}
    assert await audited(house) == []


async def test_a_team_an_organisation_and_a_key_that_was_rotated(house: House) -> None:
    await house.spend("news", 10)
    await house.spend("other", 20)
    assert (await budget(house, team="default")).posted_nano == 30
    assert (await budget(house, organisation="default", window="total")).posted_nano == 30
    first = await create_key(house.pool, read_input(NewKey, {"agent": "news", "name": "k"}))
    spender = await house.principals.by_secret(first.secret)
    assert spender.key_id is not None
    await house.pool.execute("UPDATE api_keys SET revoked_at = now() WHERE id = $1", spender.key_id)
    await house.pool.execute(
        "INSERT INTO ledger (call_id, attempt, state, organisation_id, team_id, agent_id, key_id, model, window_ids, held_nano,"
        " cost_nano, usage_source, started_at, epoch, settled_epoch) SELECT gen_random_uuid(), 0, 'posted', 1, 1, $1, $2, 'm',"
        " '{}', 9, 9, 'estimated', now(), value, value FROM epoch",
        spender.agent_id,
        spender.key_id,
    )
    await create_key(house.pool, read_input(NewKey, {"agent": "news", "name": "k"}))
    assert (await budget(house, key="news/k")).posted_nano == 9


async def test_the_audit_names_a_window_that_was_opened_at_a_wrong_amount(house: House) -> None:
    await house.spend("news", 300)
    made = await budget(house)
    await house.pool.execute("UPDATE counted_windows SET counted_nano = 299")
    await house.pool.execute("UPDATE windows SET posted_nano = 299 WHERE budget_id = $1", made.id)
    (fault,) = await audited(house)
    assert "was opened at $0.000000299" in fault
    assert "$0.0000003 had been spent before" in fault
    await house.pool.execute("UPDATE counted_windows SET counted_nano = 300")
    (fault,) = await audited(house)
    assert "says $0.000000299 posted" in fault


async def test_the_books_stay_right_when_the_window_is_retired(house: House) -> None:
    await house.spend("news", 300)
    made = await budget(house)
    await house.spend("news", 40)
    retired = "SELECT treasury_retire_windows_v1('2200-01-01', '2200-01-01', 100)"
    assert await house.pool.fetchval(retired) == 1
    assert await posted(house, made.name) == {}
    assert await audited(house) == []


async def test_i1_i2_under_load_each_call_counts_once(house: House) -> None:
    """Callers admit and settle as fast as they can while budgets are made."""
    stop = asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            held = await house.admit("news", 50)
            assert isinstance(held, Hold)
            await asyncio.sleep(0)
            await house.settle(held, 3)

    callers = [asyncio.create_task(caller()) for _ in range(6)]
    made: list[CreatedBudget] = []
    for number in range(6):
        await asyncio.sleep(0.1)
        made.append(await budget(house, name=f"b{number}"))
    stop.set()
    await asyncio.gather(*callers)
    spent = await house.posted_nano("news")
    assert spent > 300
    for each in made:
        assert await posted(house, each.name) == {"": (spent, 0)}
    assert await audited(house) == []


async def test_the_command_says_where_a_budget_starts(house: House, treasurer: Treasurer) -> None:
    await house.spend("news", DOLLAR)
    zero = await treasurer("budget", "create", "--agent", "news", "--limit", "5", "--window", "day", "--name", "zero")
    assert "$5.00 left" in zero.out
    assert "It starts at zero" in zero.out
    assert "--count-from window" in zero.out
    counted = await treasurer(
        "budget",
        "create",
        "--agent",
        "news",
        "--limit",
        "5",
        "--window",
        "day",
        "--name",
        "c",
        "--count-from",
        "window",
    )
    assert "$4.00 left" in counted.out
    assert "It starts at what was spent in its window so far." in counted.out
    wrong = await treasurer("budget", "create", "--agent", "news", "--limit", "5", "--count-from", "yesterday")
    assert wrong.code != 0
    assert "count_from" in wrong.err


async def test_a_budget_made_after_real_calls_counts_what_the_provider_billed(stack: StackState) -> None:
    async with open_caller(stack) as caller:
        for _ in range(3):
            await caller.call()
        await caller.settled()
        made = await caller.budget("1", window="day", count_from="window", name=f"{caller.agent} counted")
        assert (nano(made["posted"]), made["pending_nano"]) == (await caller.billed_nano(), 0)
        assert made["counts_from"] == made["starts_at"]
        await caller.call()
        await caller.agrees(4)
        shown = await caller.admin("GET", f"budgets/{caller.agent} counted")
        assert nano(shown["posted"]) == await caller.billed_nano()
