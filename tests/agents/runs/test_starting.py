"""From a request to a recorded run: what it pins, what it may spend, and every bad request by name."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from agents.configuration.terms import AgentConfiguration, TriggerKind, TriggerTerms, unpinned
from agents.definition import AnyAgent
from agents.registry import find_agent
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import State, Trigger
from agents.runs.starting import RunStarter, StartRequest
from llm_service.errors import Conflict, IdempotencyConflict, InvalidRequest, NotFound, Paused, TreasurerError
from llm_service.types import Principal
from tests.agents.runs.scripted import Configurations, Principals

DOLLAR = 1_000_000_000


def configured(starter: RunStarter, **fields: Any) -> RunStarter:
    configurations = starter.configurations
    assert isinstance(configurations, Configurations)
    other = copy(configurations)
    other.terms = configurations.terms.model_copy(update=fields)
    return replace(starter, configurations=other)


async def test_a_run_is_recorded_with_all_that_a_worker_needs(starter: RunStarter, store: InMemoryRuns) -> None:
    request = StartRequest(
        "demo",
        {"text": "hello"},
        Trigger.COMMAND,
        "k",
        session="s",
        asked_by="cli ann",
        on_behalf_of="bob",
        tags=("t",),
    )
    run = await starter.start(request)
    assert run == await store.find(run.id)
    assert (run.state, run.trigger, run.trigger_key, run.input) == (
        State.QUEUED,
        Trigger.COMMAND,
        "k",
        {"text": "hello"},
    )
    assert (run.session, run.asked_by, run.on_behalf_of, run.tags) == ("s", "cli ann", "bob", ("t",))
    assert (run.organisation_id, run.team_id, run.code_version) == (1, 1, "1")


async def test_a_run_pins_the_configuration_that_its_agent_has_now(starter: RunStarter) -> None:
    early = configured(starter, model="gpt-4o", priority=7, time_limit_s=600)
    run = await early.start(StartRequest("demo"))
    terms = unpinned("demo", run.configuration).terms
    assert (terms.model, run.priority, (run.deadline_at - run.created_at).total_seconds()) == ("gpt-4o", 7, 600)
    assert unpinned("demo", (await starter.start(StartRequest("demo"))).configuration).terms.model == "gpt-4o-mini"


@pytest.mark.parametrize(
    ("asked", "budget", "reserve"),
    [
        ({}, 2 * DOLLAR, 0),  # somebody waits for it, so it holds nothing at its start
        ({"trigger": Trigger.SCHEDULE}, 2 * DOLLAR, 2 * DOLLAR),
        ({"trigger": Trigger.EVENT}, DOLLAR, DOLLAR),  # a webhook's
        ({"budget_nano": DOLLAR}, DOLLAR, 0),
        ({"reserve_nano": DOLLAR}, 2 * DOLLAR, DOLLAR),
        ({"budget_nano": 3 * DOLLAR, "may_raise": True}, 3 * DOLLAR, 0),
    ],
)
async def test_i9_a_run_has_the_budget_of_its_configuration_or_less(
    starter: RunStarter, asked: dict[str, Any], budget: int, reserve: int
) -> None:
    triggers = {TriggerKind.WEBHOOK: TriggerTerms(budget_nano=DOLLAR, reserve_nano=None)}
    starter = configured(starter, budget_nano=2 * DOLLAR, triggers=triggers)
    run = await starter.start(StartRequest("demo", **asked))
    assert (run.budget_nano, run.reserve_nano) == (budget, reserve)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (StartRequest("demo", {"unknown": 1}), "input.unknown"),
        (StartRequest("demo", {"text": 1}), "input.text"),
        (StartRequest("demo", budget_nano=2 * DOLLAR), "budget"),
        (StartRequest("demo", budget_nano=0, may_raise=True), "budget"),
        (StartRequest("demo", budget_nano=10**19, may_raise=True), "budget"),
        (StartRequest("demo", budget_nano=5, reserve_nano=6), "reserve"),
        (StartRequest("demo", reserve_nano=-1), "reserve"),
        (StartRequest("demo", reserve_nano=2 * DOLLAR), "reserve"),
        (StartRequest("demo", time_limit_s=0), "time_limit"),
        (StartRequest("demo", time_limit_s=86_401), "time_limit"),  # more than its configuration says
        (StartRequest("demo", priority=10**9), "priority"),
    ],
)
async def test_a_bad_request_is_named_and_adds_no_run(
    starter: RunStarter, store: InMemoryRuns, request_: StartRequest, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await starter.start(request_)
    assert caught.value.param == param
    assert store._runs == {}


async def test_only_an_administrator_gives_a_run_more_time_than_its_agent_has(starter: RunStarter) -> None:
    run = await starter.start(StartRequest("demo", time_limit_s=100_000, may_raise=True))
    assert run.deadline_at > run.created_at + timedelta(seconds=99_999)


class PausedAgents(Principals):
    async def by_agent(self, name: str) -> Principal:
        return replace(await super().by_agent(name), paused="team default")


async def test_who_may_not_run_adds_no_run(starter: RunStarter, store: InMemoryRuns) -> None:
    wrong: list[tuple[RunStarter, str, type[TreasurerError]]] = [
        (starter, "nobody", NotFound),
        (replace(starter, principals=PausedAgents()), "demo", Paused),
        (replace(starter, find=find_agent), "demo", NotFound),  # no such logic is in the catalogue
    ]
    for each, agent, error in wrong:
        with pytest.raises(error):
            await each.start(StartRequest(agent))
    assert store._runs == {}


async def test_i7_the_same_key_is_the_same_run_and_another_request_a_conflict(
    starter: RunStarter, store: InMemoryRuns
) -> None:
    asked = StartRequest("demo", {"text": "a"}, key="k", session="s", on_behalf_of="ann", tags=("t",), budget_nano=5)
    run = await starter.start(asked)
    assert (await starter.start(asked)).id == run.id
    later = configured(starter, priority=9)  # a configuration that has changed meanwhile makes it no other request
    assert (await later.start(asked)).id == run.id
    others: dict[str, dict[str, Any]] = {
        "session": {"session": None}, "user": {"on_behalf_of": "bob"}, "tags": {"tags": ()}, "budget": {"budget_nano": 6},
        "reserve": {"reserve_nano": 1}, "priority": {"priority": 3},
    }  # fmt: skip
    for name, change in others.items():
        with pytest.raises(IdempotencyConflict) as caught:
            await starter.start(replace(asked, **change))
        assert caught.value.param == name
    with pytest.raises(IdempotencyConflict, match="another input"):
        await starter.start(replace(asked, input={"text": "b"}))
    assert len(store._runs) == 1


class Talk(BaseModel):
    message: str
    mood: str = "good"


class Errand(BaseModel):
    message: str
    where: str


@pytest.mark.parametrize(("agent", "given", "takes"), [
    ("demo", Talk, True), ("demo", Errand, False), ("demo", None, False), ("nobody", Talk, False),
])  # fmt: skip
async def test_a_person_chats_with_an_agent_that_a_message_is_enough_for(
    definition: AnyAgent, store: InMemoryRuns, agent: str, given: type[BaseModel] | None, takes: bool
) -> None:
    chatty = definition if given is None else replace(definition, input_type=given)
    starter = RunStarter(store, Principals(), Configurations(definition), "1", find=lambda _name: chatty)
    assert await starter.takes_messages(agent) is takes


class OfALaterRelease:
    async def current(self, agent: str) -> AgentConfiguration:
        raise Conflict("This release does not understand it.", code="agent_version_not_understood")


async def test_nobody_chats_with_an_agent_that_a_later_release_has_configured(starter: RunStarter) -> None:
    """So GET /v1/models lists the models without it."""
    assert not await replace(starter, configurations=OfALaterRelease()).takes_messages("demo")
