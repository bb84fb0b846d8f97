"""What a version of the configuration means for a run: its money, its tools, and content that is not understood."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from agents.configuration.inputs import NewVersion, changed, default_terms
from agents.configuration.terms import AgentConfiguration, RunAmounts, TriggerKind, read_terms, unpinned
from agents.definition import AnyAgent
from agents.runs.record import Policy
from llm_service.errors import Conflict, InvalidRequest

CENT = 10_000_000
Kind = TriggerKind


def configured(logic: AnyAgent, **given: Any) -> AgentConfiguration:
    terms = changed(default_terms(logic), NewVersion.model_validate(given), logic)
    return AgentConfiguration("helper", 3, terms)


def test_a_run_that_somebody_waits_for_holds_nothing_at_first_and_the_others_hold_everything(logic: AnyAgent) -> None:
    helper = configured(logic)
    assert helper.money(Kind.REQUEST) == RunAmounts(25 * CENT, 0)
    assert helper.money(Kind.CHAT) == RunAmounts(5 * CENT, 0)
    assert helper.money(Kind.SCHEDULE) == RunAmounts(25 * CENT, 25 * CENT)
    assert helper.money(Kind.WEBHOOK) == RunAmounts(25 * CENT, 25 * CENT)


def test_a_trigger_has_its_own_amounts_and_else_the_agents(logic: AnyAgent) -> None:
    triggers = {
        "schedule": {"budget": "0.10", "reserve": 0},
        "webhook": {"reserve": "0.03"},
        "chat": {"budget": "0.01"},
    }
    helper = configured(logic, budget="0.20", reserve="0.02", triggers=triggers)
    assert helper.money(Kind.REQUEST) == RunAmounts(20 * CENT, 2 * CENT)
    assert helper.money(Kind.SCHEDULE) == RunAmounts(10 * CENT, 0)
    assert helper.money(Kind.WEBHOOK) == RunAmounts(20 * CENT, 3 * CENT)
    assert helper.money(Kind.CHAT) == RunAmounts(1 * CENT, 1 * CENT)  # the agent's reserve, but never above the budget


def test_a_trigger_may_ask_for_less_and_not_for_more(logic: AnyAgent) -> None:
    helper = configured(logic)
    assert helper.money(Kind.REQUEST, budget_nano=CENT) == RunAmounts(CENT, 0)
    assert helper.money(Kind.SCHEDULE, budget_nano=CENT) == RunAmounts(CENT, CENT)
    assert helper.money(Kind.REQUEST, reserve_nano=0) == RunAmounts(25 * CENT, 0)
    for kind, budget in ((Kind.REQUEST, 25 * CENT + 1), (Kind.CHAT, 5 * CENT + 1), (Kind.CHAT, 0)):
        with pytest.raises(InvalidRequest, match=r"at most \$0\.\d+ \(version 3") as refused:
            helper.money(kind, budget_nano=budget)
        assert refused.value.param == "budget"
    for reserve in (-1, CENT + 1):
        with pytest.raises(InvalidRequest, match=r"is no part of the run's budget of \$0\.01") as refused:
            helper.money(Kind.REQUEST, budget_nano=CENT, reserve_nano=reserve)
        assert refused.value.param == "reserve"


def test_tools_are_allowed_by_name_and_made_stricter_only(logic: AnyAgent) -> None:
    helper = configured(logic)
    assert all(map(helper.allows, ("read_it", "ask_it", "undeclared", "a tool of a server")))
    helper = configured(logic, tools=["read_it", "key_it"], tool_policies={"read_it": "key"})
    assert [tool for tool in logic.tools if helper.allows(tool)] == ["read_it", "key_it"]
    assert helper.policy("read_it", Policy.READ) is Policy.KEY
    # The tool's author has made its policy stricter since then.
    assert helper.policy("read_it", Policy.ASK) is Policy.ASK
    assert helper.policy("key_it", Policy.KEY) is Policy.KEY


def test_a_run_keeps_what_it_has_pinned(logic: AnyAgent) -> None:
    helper = configured(logic, tools=[], keep="steps", keep_for="30d", approvers=["ops"])
    stored = json.loads(json.dumps(helper.pinned()))
    again = unpinned("helper", stored)
    assert (again.version, again.terms, again.digest) == (3, helper.terms, helper.digest)


def test_a_digest_is_of_what_is_said_and_of_nothing_else(logic: AnyAgent) -> None:
    first, other = configured(logic), configured(logic, priority=1)
    assert AgentConfiguration("another", 9, first.terms).digest == first.digest != other.digest
    # Written by hand, because a new digest of the same terms would make every version look changed.
    text = (
        '{"approval_s":null,"approvers":[],"budget_nano":250000000,"concurrency":null,"conversation_s":2592000,"description":"Helps.","engine":"own",'
        '"history_bytes":131072,"history_messages":200,"keep":"none",'
        '"keep_s":null,"logic":"helper","lost_answer":"buy_again","model":"gpt-4o-mini","on_budget":"pause","priority":0,'
        '"prompt":null,"reserve_nano":null,"result_limit_bytes":1048576,"session":"queue","step_limit":50,'
        '"time_limit_s":600,"tool_policies":{},"tools":null,'
        '"triggers":{"chat":{"budget_nano":50000000,"reserve_nano":null}},"unanswered":"fail"}'
    )
    assert first.digest == sha256(text.encode()).digest()


@pytest.mark.parametrize(
    ("change", "place"),
    [({"obey": "nobody"}, "obey"), ({"budget_nano": 0}, "budget_nano"), ({"on_budget": "ask"}, "on_budget"),
     ({"triggers": {"moon": {}}}, "triggers.moon"), ({"engine": "temporal"}, "engine"), ({"step_limit": "5"}, "step_limit")],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(logic: AnyAgent, change: dict[str, Any], place: str) -> None:
    content = {**configured(logic).terms.content(), **change}
    with pytest.raises(Conflict, match="Version 7 of agent 'helper' says something") as refused:
        read_terms("helper", 7, json.dumps(content))
    assert (refused.value.code, str(refused.value.param)[: len(place)]) == ("agent_version_not_understood", place)
