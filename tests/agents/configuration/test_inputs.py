"""An administrator's input: mistakes are refused by name, and nothing is lost on the way to the store."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.configuration.inputs import NewVersion, changed, check_approvers, default_terms
from agents.configuration.terms import AgentConfiguration, Keep, Terms, TriggerKind, read_terms, unpinned
from agents.definition import AnyAgent
from agents.recorded_json import digest_of
from agents.runs.record import Policy
from llm_service.administration.inputs import read_input
from llm_service.errors import InvalidRequest
from llm_service.money import format_decimal


def make(logic: AnyAgent, given: dict[str, Any], base: Terms | None = None) -> Terms:
    return changed(base or default_terms(logic), read_input(NewVersion, given), logic)


def test_an_agent_that_nobody_configured_has_the_defaults_of_its_code(logic: AnyAgent) -> None:
    terms = default_terms(logic)
    assert (terms.logic, terms.description, terms.model) == ("helper", "Helps.", "gpt-4o-mini")
    assert (terms.budget_nano, terms.time_limit_s) == (250_000_000, 600)
    assert terms.triggers[TriggerKind.CHAT].budget_nano == 50_000_000
    assert (terms.step_limit, terms.keep, terms.engine, terms.tools) == (50, Keep.NONE, "own", None)


def test_what_is_not_given_stays_and_null_is_the_default_again(logic: AnyAgent) -> None:
    first = make(logic, {"budget": "0.5", "tools": ["read_it"], "keep": "steps", "keep_for": "2w", "time_limit": "1h"})
    second = make(logic, {"model": "claude-haiku-4-5", "reserve": 0}, first)
    assert (second.budget_nano, second.reserve_nano, second.tools) == (500_000_000, 0, ("read_it",))
    assert (second.keep_s, second.time_limit_s, second.model) == (14 * 86_400, 3600, "claude-haiku-4-5")
    nulls = NewVersion.model_validate({"budget": None, "tools": None, "reserve": None, "time_limit": None})
    third = changed(second, nulls, logic)
    assert (third.budget_nano, third.tools, third.reserve_nano, third.time_limit_s) == (250_000_000, None, None, 600)
    assert (third.model, third.keep) == ("claude-haiku-4-5", Keep.STEPS)
    assert make(logic, {"keep": "none"}, third).keep_s is None


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"colour": "red"}, "colour", "there is no such field"),
        ({"triggers": {"cron": {}}}, "triggers.cron", "there is no such field"),
        ({"triggers": {"chat": {"limit": 1}}}, "triggers.chat.limit", "there is no such field"),
        ({"budget": "0"}, "budget", "more than zero"),
        ({"budget": "-1"}, "budget", "not an amount"),
        ({"budget": "0.0000000001"}, "budget", "finer than a nano-dollar"),
        ({"budget": True}, "budget", "an amount is dollars"),
        ({"reserve": "much"}, "reserve", "not an amount"),
        ({"reserve": "0.26"}, "reserve", "The reserve, $0.26, is above the budget, $0.25."),
        ({"budget": "0.05", "reserve": "0.06", "triggers": {}}, "reserve", "above the budget"),
        ({"budget": "0.01"}, "triggers.chat.budget", "The budget for a chat, $0.05, is above the agent's, $0.01."),
        ({"triggers": {"webhook": {"budget": "0.30"}}}, "triggers.webhook.budget", "above the agent's, $0.25"),
        (
            {"triggers": {"chat": {"budget": "0.02", "reserve": "0.03"}}},
            "triggers.chat.reserve",
            "above its budget, $0.02",
        ),
        ({"triggers": {"chat": {"reserve": "0.30"}}}, "triggers.chat.reserve", "above its budget, $0.25"),
        ({"model": "gpt-*"}, "model", "is not a pattern"),
        ({"model": ""}, "model", "a model is named"),
        ({"logic": "a/b"}, "logic", "a name is"),
        ({"prompt": "\x1b[31m"}, "prompt", "a name is"),
        ({"description": "two\nlines"}, "description", "in one line"),
        (
            {"tools": ["write_it"]},
            "tools",
            "Logic 'helper' has no tool 'write_it'. The tools are: ask_it, key_it, read_it,",
        ),
        ({"tools": ["read_it", "read_it"]}, "tools", "named twice"),
        ({"tools": "read_it"}, "tools", "list"),
        ({"tool_policies": {"write_it": "ask"}}, "tool_policies", "'write_it', which runs do not have"),
        ({"tools": ["key_it"], "tool_policies": {"read_it": "ask"}}, "tool_policies", "The tools are: key_it."),
        ({"tools": [], "tool_policies": {"read_it": "ask"}}, "tool_policies", "There are no tools."),
        ({"tool_policies": {"verify_it": "key"}}, "tool_policies", "key is less strict"),
        ({"tool_policies": {"undeclared": "read"}}, "tool_policies", "declares the policy ask"),
        ({"tool_policies": {"key_it": "verify"}}, "tool_policies", "has no function that verifies"),
        ({"tool_policies": {"read_it": "never"}}, "tool_policies.read_it", "'read', 'key', 'verify' or 'ask'"),
        ({"time_limit": "0"}, "time_limit", "at least 1s"),
        ({"time_limit": "367d"}, "time_limit", "at most 366d"),
        ({"time_limit": 60}, "time_limit", "a number and a unit"),
        ({"step_limit": 0}, "step_limit", "greater than or equal to 1"),
        ({"step_limit": 1001}, "step_limit", "less than or equal to 1000"),
        ({"result_limit": 100}, "result_limit", "1024"),
        ({"concurrency": 0}, "concurrency", "greater than or equal to 1"),
        ({"priority": 101}, "priority", "100"),
        ({"priority": "1"}, "priority", "integer"),
        ({"on_budget": "shout"}, "on_budget", "'pause' or 'fail'"),
        ({"lost_answer": "x"}, "lost_answer", "'buy_again' or 'fail'"),
        ({"session": "x"}, "session", "'queue', 'reject' or 'replace'"),
        ({"keep": "all"}, "keep", "'none' or 'steps'"),
        ({"keep": "steps"}, "keep_for", "for how long"),
        ({"keep_for": "30d"}, "keep_for", "set keep to steps too"),
        ({"approvers": ["ops", "ops"]}, "approvers", "named twice"),
        ({"approvers": [""]}, "approvers.0", "an approver is"),
        ({"engine": "temporal"}, "engine", "the engine temporal is not built yet; use own"),
        ({"engine": "magic"}, "engine", "the engine is own"),
        ({"if_version": -1}, "if_version", "greater than or equal to 0"),
    ],
)
def test_a_mistake_is_refused_by_its_field(logic: AnyAgent, given: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make(logic, given)
    assert refused.value.param == param
    assert said in refused.value.message


def test_an_agent_does_not_approve_itself(logic: AnyAgent) -> None:
    terms = make(logic, {"approvers": ["ops", "other/key", "helper"]})
    check_approvers("helper", terms)  # an administrator's key may be called as the agent is
    with pytest.raises(InvalidRequest, match="'other/key' is the agent's own") as refused:
        check_approvers("other", terms)
    assert refused.value.param == "approvers"


AMOUNTS = st.integers(1, 250_000_000).map(format_decimal)
TRIGGER = st.fixed_dictionaries({}, optional={"budget": AMOUNTS, "reserve": AMOUNTS})
TOOLS = ("read_it", "key_it", "verify_it", "ask_it", "undeclared")
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "description": st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=500),
    "model": st.sampled_from(["gpt-4o", "openai/o3", "claude-haiku-4-5"]),
    "prompt": st.none() | st.just("production"),
    "tools": st.none() | st.lists(st.sampled_from(TOOLS), unique=True),
    "tool_policies": st.dictionaries(st.sampled_from(TOOLS), st.sampled_from([*map(str, Policy)])),
    "budget": AMOUNTS,
    "reserve": AMOUNTS,
    "triggers": st.dictionaries(st.sampled_from([*map(str, TriggerKind)]), TRIGGER),
    "time_limit": st.integers(1, 31_622_400).map(lambda seconds: f"{seconds}s"),
    "step_limit": st.integers(1, 1000),
    "result_limit": st.integers(1024, 2**24),
    "concurrency": st.none() | st.integers(1, 10_000),
    "priority": st.integers(-100, 100),
    "on_budget": st.sampled_from(["pause", "fail"]),
    "lost_answer": st.sampled_from(["buy_again", "fail"]),
    "keep": st.sampled_from(["none", "steps"]),
    "keep_for": st.none() | st.integers(1, 366).map(lambda days: f"{days}d"),
    "session": st.sampled_from(["queue", "reject", "replace"]),
    "approvers": st.lists(st.sampled_from(["ops", "money", "other/key"]), unique=True),
}


def made_or_refused(logic: AnyAgent, given: dict[str, Any]) -> Terms | InvalidRequest:
    try:
        return changed(default_terms(logic), NewVersion.model_validate(given), logic)
    except InvalidRequest as refused:
        return refused


@given(given=st.fixed_dictionaries({}, optional=FIELDS), data=st.data())
def test_whatever_is_accepted_comes_back_from_the_store_and_keeps_its_promises(
    logic: AnyAgent, given: dict[str, Any], data: st.DataObject
) -> None:
    terms = made_or_refused(logic, given)
    if isinstance(terms, InvalidRequest):
        assert (terms.param or "").partition(".")[0] in FIELDS
        return
    # In any order of keys, because Postgres does not keep it.
    shuffled = dict(data.draw(st.permutations(list(terms.content().items()))))
    again = read_terms("helper", 1, json.dumps(shuffled))
    assert (again, digest_of(again.content())) == (terms, digest_of(terms.content()))
    assert changed(terms, NewVersion(), logic) == terms
    helper = AgentConfiguration("helper", 1, terms)
    for kind in TriggerKind:
        money = helper.money(kind)
        assert 0 < money.budget_nano <= terms.budget_nano
        assert 0 <= money.reserve_nano <= money.budget_nano
        asked = data.draw(st.integers(1, money.budget_nano))
        assert helper.money(kind, budget_nano=asked).budget_nano == asked
        with pytest.raises(InvalidRequest):
            helper.money(kind, budget_nano=money.budget_nano + 1)
    assert unpinned("helper", json.loads(json.dumps(helper.pinned()))) == helper
    order = list(Policy)
    assert all(order.index(helper.policy(tool, own)) >= order.index(own) for tool, own in logic.tools.items())
