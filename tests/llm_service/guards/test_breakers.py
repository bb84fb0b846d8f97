"""All breakers of a process: which calls pass, which breaker counts which failure, and what happens when Redis is slow
or away."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.errors import BreakerOpen
from llm_service.guards.breaker import CLOSED, HALF_OPEN, OPEN, BreakerRules
from llm_service.guards.breaker_gate import BreakerPermit
from llm_service.guards.breakers import Breakers, names_of, rules_of
from llm_service.guards.redis_scripts import Command, RedisUnavailable
from llm_service.pricing.model_info import read_models
from llm_service.pricing.models import Model
from tests.examples import examples
from tests.llm_service.fakes import BREAKER_RULES, ENTRIES, PRICED, Clock

RULES = replace(BREAKER_RULES, failures=2, min_calls=1_000, open_s=4.0, probe_s=30.0)
MODEL = read_models(ENTRIES)["m"]


def model(name: str, *providers: str) -> Model:
    info = [PRICED | {"id": f"{name}{each}", "litellm_provider": each} for each in providers or ("openai",)]
    return read_models([{"model_name": name, "model_info": each} for each in info])[name]


class Seen:
    """Records what a `Breakers` reports to its listeners."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str, bool]] = []
        self.refused: Counter[str] = Counter()

    def change(self, name: str, state: str, own: bool) -> None:
        self.changes.append((name, state, own))

    def refuse(self, name: str) -> None:
        self.refused[name] += 1


def made(rules: BreakerRules = RULES) -> tuple[Breakers, Clock, Seen]:
    clock, seen = Clock(), Seen()
    return Breakers(None, rules, clock=clock, on_change=seen.change, on_refused=seen.refuse), clock, seen


async def fail(breakers: Breakers, of: Model = MODEL, times: int = 2) -> None:
    for _ in range(times):
        (await breakers.acquire(of)).failed()


def states(breakers: Breakers) -> dict[str, str]:
    return {each.name: each.state for each in breakers.states() if each.state != CLOSED}


class StuckScripts:
    """A Redis that accepts requests and does not answer."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.away = False

    async def run(self, command: Command) -> str:
        self.sent.append(command)
        await asyncio.Event().wait()
        raise AssertionError


class AnsweringScripts:
    """A Redis that gives the answer that a test sets."""

    def __init__(self, answer: str | Exception) -> None:
        self.sent: list[Command] = []
        self.answer = answer

    async def run(self, command: Command) -> str:
        self.sent.append(command)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def through(breakers: Breakers, scripts: Any) -> Any:
    breakers._scripts = scripts
    return scripts


def test_who_passes_what() -> None:
    assert names_of(MODEL) == ("proxy", "provider:openai", "model:m")
    assert names_of(model("x", "a", "b")) == ("proxy", "model:x")


async def test_one_model_that_is_down_leaves_its_siblings_to_stand_in() -> None:
    breakers, _, seen = made()
    under_way = [await breakers.acquire(MODEL) for _ in range(50)]
    for permit in under_way:
        permit.failed()
    assert states(breakers) == {"model:m": OPEN}
    assert breakers.blocked(model("o")) is None
    with pytest.raises(BreakerOpen, match="2 calls failed in a row") as refused:
        await breakers.acquire(MODEL)
    assert (refused.value.status, refused.value.code) == (503, "breaker_open")
    assert refused.value.details["breaker"] == "model:m"
    assert refused.value.retry_after is not None
    assert seen.refused == {"model:m": 1}
    assert seen.changes == [("model:m", OPEN, True)]


async def test_two_models_that_are_down_open_their_provider_and_not_the_proxy() -> None:
    breakers, _, _ = made()
    await fail(breakers, MODEL)
    await fail(breakers, model("o"))
    assert states(breakers) == {"model:m": OPEN, "model:o": OPEN, "provider:openai": OPEN}
    blocked = breakers.blocked(model("third"))
    assert blocked is not None
    assert blocked.details["breaker"] == "provider:openai"
    assert breakers.blocked(model("other", "anthropic")) is None


async def test_a_model_of_several_providers_counts_against_itself_alone() -> None:
    breakers, _, _ = made()
    of = model("x", "a", "b")
    await fail(breakers, of)
    assert states(breakers) == {"model:x": OPEN}
    assert {each.name for each in breakers.states()} == {"proxy", "model:x"}


async def test_a_proxy_that_is_not_reached_counts_against_it_alone_and_is_probed_soon() -> None:
    breakers, clock, _ = made()
    for _ in range(2):
        (await breakers.acquire(MODEL)).failed("proxy")
    assert states(breakers) == {"proxy": OPEN}
    clock.now += 1.2
    (await breakers.acquire(model("o"))).failed()  # the model failed, so the proxy was reached
    assert states(breakers) == {}
    assert rules_of("proxy", BREAKER_RULES).open_for(9) == 5


async def test_the_first_outcome_counts_and_neutral_counts_for_nothing() -> None:
    breakers, _, seen = made()
    for _ in range(10):
        permit = await breakers.acquire(MODEL)
        permit.release()
        permit.failed()
        permit.failed()
    assert seen.changes == []
    permit = await breakers.acquire(MODEL)
    for _ in range(10):
        permit.failed()
    assert states(breakers) == {}


async def test_a_probe_passes_every_breaker_that_is_open_at_once() -> None:
    breakers, clock, _ = made()
    await fail(breakers, MODEL)
    await fail(breakers, model("o"))
    clock.now += 5
    probe = await breakers.acquire(MODEL)
    assert states(breakers) == {"model:m": HALF_OPEN, "provider:openai": HALF_OPEN, "model:o": OPEN}
    with pytest.raises(BreakerOpen) as refused:
        await breakers.acquire(model("o"))  # a probe of the provider has not ended
    assert refused.value.retry_after == 1.0  # a second, and not the probe's whole lifetime
    probe.succeeded()
    (await breakers.acquire(model("o"))).release()
    assert states(breakers) == {"model:o": HALF_OPEN}


async def test_a_probe_of_one_breaker_is_given_back_when_the_next_one_refuses() -> None:
    breakers, clock, _ = made()
    await fail(breakers, MODEL)
    await breakers.force("provider:openai", opened=True, seconds=2)
    clock.now += 5
    await breakers.force("model:m", opened=True, seconds=50)
    with pytest.raises(BreakerOpen, match="by hand"):
        await breakers.acquire(MODEL)
    (await breakers.acquire(model("o"))).succeeded()
    assert states(breakers) == {"model:m": OPEN}


async def test_a_caller_who_leaves_while_redis_is_asked_keeps_nobody_out() -> None:
    breakers, clock, _ = made()
    await fail(breakers)
    clock.now += 5
    scripts = through(breakers, StuckScripts())
    caller = asyncio.create_task(breakers.acquire(MODEL))
    await asyncio.sleep(0)
    assert scripts.sent
    assert breakers.blocked(MODEL) is not None  # while one call asks Redis, the others do not
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert breakers.blocked(MODEL) is None
    assert states(breakers) == {"model:m": OPEN}  # no probe was sent
    assert scripts.sent[0].undo is not None  # if Redis had given the lock, it is released


async def test_another_processs_probe_is_waited_for() -> None:
    breakers, clock, seen = made()
    await fail(breakers)
    clock.now += 5
    scripts = through(breakers, AnsweringScripts("0"))
    for _ in range(5):
        with pytest.raises(BreakerOpen):
            await breakers.acquire(MODEL)
    assert len(scripts.sent) == 1  # Redis is asked once a second
    assert seen.changes == [("model:m", OPEN, True)]
    clock.now += 1
    scripts.answer = "1"
    (await breakers.acquire(MODEL)).succeeded()
    assert states(breakers) == {}


async def test_a_report_that_was_not_delivered_is_delivered_later() -> None:
    breakers, _, _ = made()
    await fail(breakers)
    scripts = through(breakers, AnsweringScripts(RedisUnavailable("no")))
    assert not await breakers.sync()
    stuck = through(breakers, StuckScripts())
    telling = asyncio.create_task(breakers.sync())
    await asyncio.sleep(0)
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    scripts = through(breakers, AnsweringScripts('{"now_ms": 0, "states": {}}'))
    assert await breakers.sync()
    assert await breakers.sync()
    told = [
        [each for each in command.arguments if each.startswith("model:")] for command in (*stuck.sent, *scripts.sent)
    ]
    assert told == [["model:m"], ["model:m"], []]


async def test_a_change_made_while_others_are_read_is_reported_as_based_on_the_state_before() -> None:
    breakers, _, _ = made()
    there = {"state": "closed", "until_ms": 0, "at_ms": 0, "why": "there", "tries": 0, "owner": "two", "version": "v1"}

    class Meanwhile(AnsweringScripts):
        async def run(self, command: Command) -> str:
            if not self.sent:
                await fail(breakers)
            return await super().run(command)

    scripts = through(breakers, Meanwhile(orjson.dumps({"now_ms": 0, "states": {"model:m": there}}).decode()))
    await breakers.sync()
    assert states(breakers) == {"model:m": OPEN}
    await breakers.sync()
    assert scripts.sent[1].arguments[3:] == ("model:m", OPEN, ANY, "2 calls failed in a row", "1", "0", "")


async def test_sharing_goes_on_after_an_answer_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    breakers = Breakers(None, RULES, clock=clock, sync_s=0.001)
    scripts = through(breakers, AnsweringScripts("what?"))
    sharing = asyncio.create_task(breakers.run())
    while len(scripts.sent) < 3:
        await asyncio.sleep(0)
    sharing.cancel()
    assert "could not be shared with the other processes" in caplog.text


async def test_each_transition_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    breakers, clock, _ = made()
    await fail(breakers)
    clock.now += 5
    (await breakers.acquire(MODEL)).succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "breaker model:m is open: 2 calls failed in a row",
        "breaker model:m is half-open: 2 calls failed in a row",
        "breaker model:m is closed: a probe succeeded",
    ]


async def _play(steps: list[tuple[int, str, float]]) -> None:
    """Begin and end calls to three models in the order of `steps`, and check that no breaker ever has two probes at once."""
    breakers, clock, seen = made()
    models = [MODEL, model("o"), model("x", "a", "b")]
    out: list[tuple[Model, BreakerPermit, set[str]]] = []
    for which, what, seconds in steps:
        if what == "acquire":
            of = models[which % 3]
            before = states(breakers)
            blocked = breakers.blocked(of)
            if blocked is not None:
                with pytest.raises(BreakerOpen) as refused:
                    await breakers.acquire(of)
                assert refused.value.details == blocked.details
                assert states(breakers) == before
                continue
            permit = await breakers.acquire(of)
            probes = set(before) & set(names_of(of))
            assert not any(probes & others for *_, others in out), "two probes at once"
            out.append((of, permit, probes))
        elif what == "wait":
            clock.now += seconds
        elif out:
            of, permit, probes = out.pop(which % len(out))
            before = states(breakers)
            getattr(permit, what)()
            if what == "release":
                assert states(breakers) == before
            if what == "succeeded":
                assert not probes & set(states(breakers)), "a probe that succeeds closes what it probes"
            if what == "failed":
                assert probes - {"proxy"} <= set(states(breakers))
    assert "proxy" not in states(breakers)
    assert all(own for *_, own in seen.changes)


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["acquire", "acquire", "acquire", "failed", "failed", "succeeded", "release", "wait"]),
            st.sampled_from([0.5, 5.0]),
        ),
        max_size=60,
    )
)
def test_one_probe_at_a_time_whatever_happens(steps: list[tuple[int, str, float]]) -> None:
    """No probe reaches its lifetime here. test_breaker.py tests what happens then."""
    waits = 0
    bounded = [step for step in steps if step[1] != "wait" or (waits := waits + 1) <= 5]
    asyncio.run(_play(bounded))


async def test_calls_that_go_well_are_counted_so_that_a_few_failures_among_them_open_nothing() -> None:
    breakers, _, _ = made(replace(RULES, failures=100, min_calls=10))
    for _ in range(30):
        (await breakers.acquire(MODEL)).succeeded()
    await fail(breakers, times=9)
    assert states(breakers) == {}
    assert [each.name for each in breakers.states()] == sorted(names_of(MODEL))
    await fail(breakers, times=21)
    assert states(breakers)["model:m"] == OPEN


async def test_a_model_that_the_catalogue_has_read_anew_passes_the_breakers_of_its_new_provider() -> None:
    breakers, _, _ = made()
    (await breakers.acquire(model("m", "openai"))).succeeded()
    (await breakers.acquire(model("m", "azure"))).succeeded()
    assert {"provider:openai", "provider:azure"} <= {each.name for each in breakers.states()}
