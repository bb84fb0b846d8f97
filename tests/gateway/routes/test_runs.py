"""The runs of agents over HTTP: permissions, pages, watching, and the refusal of every wrong request by name."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.definition import AnyAgent
from agents.runs.code_version import CODE_VERSION
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import (
    Ended,
    Kind,
    NewRun,
    Policy,
    Run,
    State,
    StepEnd,
    StepHead,
    StepState,
    WaitFor,
    Waits,
)
from agents.runs.starting import RunStarter
from agents.runs.watching import Watching
from llm_service.errors import NotFound
from llm_service.types import Principal
from tests.agents.runs.scripted import Configurations, World, define

MOST_BODY = 1024 * 1024
DONE = StepEnd(StepState.DONE, '{"secret":"result"}', cost_nano=1_500_000, lost_nano=500_000)


@pytest.fixture
def store(gateway: Any) -> InMemoryRuns:
    """The gateway's runs, in memory. Agent `news` is of team 1."""
    store = InMemoryRuns()
    gateway.runtime.runs = store
    gateway.runtime.watching = Watching(store, look_s=0.01)
    definition: AnyAgent = define(World(), "news")
    gateway.runtime.starter = RunStarter(store, Agents(), Configurations(definition), find=lambda _name: definition)
    return store


class Agents:
    """Knows agent `news`, and agent `resting`, which is paused."""

    async def by_agent(self, name: str) -> Principal:
        if name not in ("news", "resting"):
            raise NotFound(f"There is no agent {name[:20]!r}.", param="agent")
        paused = "agent resting" if name == "resting" else None
        return Principal(1, "acme", 1, "team 1", 1, name, 5, "laptop", epoch=1, paused=paused)


def new_run(agent: str = "news", **changes: object) -> NewRun:
    return replace(NewRun(uuid4(), agent, 1, 1, {"x": 1}, {"version": 3}, "1"), **changes)  # pyright: ignore[reportArgumentType]


def head(run: Run, position: int, policy: Policy = Policy.KEY) -> StepHead:
    return StepHead(
        position, f"s{position}", Kind.TOOL, policy, f"{run.id}/{position}", "send", {"to": "ann"}, b"\x01\x02"
    )


async def claimed(store: InMemoryRuns, run: Run) -> Run:
    return (await store.claim(uuid4(), 1, (run.agent,), run_id=run.id))[0]


async def failed(store: InMemoryRuns, *, with_child: bool = False, **changes: Any) -> Run:
    run = await claimed(store, await store.add(new_run(**changes)))
    await store.record(run.claim, head(run, 1), DONE)
    if with_child:
        child = await claimed(store, await store.add(new_run(root_id=run.id, parent_id=run.id)))
        await store.record(child.claim, head(child, 1), DONE)
    return await store.leave(run.claim, Ended(State.FAILED, error={"code": "x", "message": "m", "step": 2}, keep_s=60))


def changed(store: InMemoryRuns) -> Any:
    """Everything that a request might have changed."""
    return dict(store._runs), {run_id: dict(steps) for run_id, steps in store._steps.items()}


# -- reading


async def test_a_run_is_shown_with_its_story(gateway: Any, store: InMemoryRuns, agent: dict[str, str]) -> None:
    run = await failed(
        store,
        with_child=True,
        session="s",
        tags=("t",),
        asked_by="agent news/laptop",
        on_behalf_of="ann",
        budget_nano=50_000_000,
    )
    answer = await gateway.client.get(f"/agents/runs/{run.id}", headers=agent)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["id"], shown["agent"], shown["state"], shown["user"]) == (str(run.id), "news", "failed", "ann")
    assert (shown["budget"], shown["budget_nano"]) == ("0.050000000", 50_000_000)
    assert (shown["cost"], shown["lost"], shown["tree_cost"]) == ("0.001500000", "0.000500000", "0.003000000")
    assert shown["error"] == {"code": "x", "message": "m", "step": 2, "details": None}
    assert (shown["configuration_version"], shown["claims"], shown["results_deleted"]) == (3, 1, False)


async def test_steps_are_shown_without_their_results(gateway: Any, store: InMemoryRuns, agent: dict[str, str]) -> None:
    run = await failed(store)
    answer = await gateway.client.get(f"/agents/runs/{run.id}/steps", headers=agent)
    (step,) = answer.json()["data"]
    assert (step["position"], step["tool"], step["policy"], step["state"]) == (1, "send", "key", "done")
    assert (step["arguments"], step["arguments_digest"], step["cost"]) == ({"to": "ann"}, "0102", "0.001500000")
    assert "secret" not in answer.text


async def test_what_utf_8_does_not_have_is_shown(gateway: Any, store: InMemoryRuns, agent: dict[str, str]) -> None:
    run = await claimed(store, await store.add(new_run()))
    await store.leave(run.claim, Ended(State.SUCCEEDED, output={"text": "\ud83d\0é"}))
    answer = await gateway.client.get(f"/agents/runs/{run.id}", headers=agent)
    assert json.loads(answer.content)["output"] == {"text": "\ud83d\0é"}


async def test_a_list_has_pages(gateway: Any, store: InMemoryRuns, admin: dict[str, str]) -> None:
    runs = [await store.add(new_run(session="a" if number % 2 else "b")) for number in range(5)]
    first = (await gateway.client.get("/agents/runs?limit=2", headers=admin)).json()
    assert [run["id"] for run in first["data"]] == [str(runs[4].id), str(runs[3].id)]
    assert (first["has_more"], first["next_after"]) == (True, runs[3].number)
    rest = (await gateway.client.get(f"/agents/runs?limit=3&after={first['next_after']}", headers=admin)).json()
    assert [run["id"] for run in rest["data"]] == [str(runs[n].id) for n in (2, 1, 0)]
    assert (rest["has_more"], rest["next_after"]) == (False, None)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("agent=news", 2), ("agent=other", 1), ("agent=nobody", 0), ("state=queued", 3), ("state=failed", 0), ("session=s", 1),
        ("user=ann", 1), ("since=1h", 3), ("since=2100-01-01T00:00Z", 0), ("agent=news&session=s", 1),
    ],
)  # fmt: skip
async def test_a_list_is_filtered(
    gateway: Any, store: InMemoryRuns, admin: dict[str, str], query: str, found: int
) -> None:
    for run in (new_run(session="s"), new_run(on_behalf_of="ann"), new_run("other", team_id=2)):
        await store.add(run)
    answer = await gateway.client.get(f"/agents/runs?{query}", headers=admin)
    assert (answer.status_code, len(answer.json()["data"])) == (200, found), answer.text


# -- who may what


async def test_an_agent_sees_the_runs_of_its_team_only(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], admin: dict[str, str]
) -> None:
    own, team, strange = [
        await store.add(run) for run in (new_run(), new_run("colleague"), new_run("stranger", team_id=2))
    ]
    for headers, visible in ((agent, {own.id, team.id}), (admin, {own.id, team.id, strange.id})):
        found = (await gateway.client.get("/agents/runs", headers=headers)).json()["data"]
        assert {UUID(run["id"]) for run in found} == visible
        for run in (own, team, strange):
            for path in ("", "/steps"):
                answer = await gateway.client.get(f"/agents/runs/{run.id}{path}", headers=headers)
                assert answer.status_code == (200 if run.id in visible else 404), answer.text


async def test_a_run_of_another_team_looks_as_if_it_did_not_exist(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    strange = await store.add(new_run("stranger", team_id=2))
    before = changed(store)
    nobody = uuid4()
    for method, path, body in (
        ("GET", "", None), ("GET", "/steps", None), ("GET", "/events", None), ("POST", "/cancel", None), ("POST", "/retry", None),
        ("POST", "/fork", {"steps": 0}),
    ):  # fmt: skip
        answers = [
            await gateway.client.request(method, f"/agents/runs/{run_id}{path}", headers=agent, json=body)
            for run_id in (strange.id, nobody)
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace(str(strange.id), "ID") == answers[1].text.replace(str(nobody), "ID")
    assert changed(store) == before


@pytest.mark.parametrize(("action", "body"), [("cancel", None), ("retry", None), ("fork", {"steps": 1})])
async def test_an_agent_acts_for_itself_only(
    gateway: Any,
    store: InMemoryRuns,
    agent: dict[str, str],
    admin: dict[str, str],
    action: str,
    body: dict[str, int] | None,
) -> None:
    colleague = await failed(store, agent="colleague")
    before = changed(store)
    answer = await gateway.client.post(f"/agents/runs/{colleague.id}/{action}", headers=agent, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_permitted")
    assert changed(store) == before
    answer = await gateway.client.post(f"/agents/runs/{colleague.id}/{action}", headers=admin, json=body)
    assert answer.status_code in (200, 202), answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"authorization": "Bearer sk-tr-nobody"}, 401), ({"authorization": "Bearer sk-tr-away"}, 503)],
)
async def test_nobody_else_is_answered(gateway: Any, store: InMemoryRuns, headers: dict[str, str], status: int) -> None:
    run = await failed(store)
    before = changed(store)
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry"), ("POST", "/fork")):
        answer = await gateway.client.request(method, f"/agents/runs/{run.id}{path}", headers=headers, content=b"{")
        assert answer.status_code == status, answer.text
    assert changed(store) == before


@pytest.mark.parametrize("waits", [True, False])
async def test_i8_an_agent_never_decides_what_a_person_decides(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], admin: dict[str, str], waits: bool
) -> None:
    run = await claimed(store, await store.add(new_run()))
    await store.begin(run.claim, head(run, 1, Policy.ASK))
    await store.leave(run.claim, Waits(WaitFor.APPROVAL) if waits else Ended(State.FAILED, keep_s=60))
    before = changed(store)
    for action, body in (("retry", None), ("fork", {"steps": 0})):
        answer = await gateway.client.post(f"/agents/runs/{run.id}/{action}", headers=agent, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "person_needed"), answer.text
    assert changed(store) == before
    answer = await gateway.client.post(f"/agents/runs/{run.id}/retry", headers=admin)
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


# -- raising a budget


async def test_an_administrator_alone_lets_a_run_go_on_with_a_larger_budget(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], admin: dict[str, str]
) -> None:
    run = await store.add(new_run(budget_nano=50_000_000))
    await store.cancel(run.id)
    before = changed(store)
    for headers, body, status, param in (
        (agent, {"budget": "0.06"}, 403, "budget"),
        (admin, {"budget": "0.05"}, 400, "budget"),
        (admin, {"budget": "-1"}, 400, "budget"),
        (admin, {"more": "1"}, 400, "more"),
    ):
        answer = await gateway.client.post(f"/agents/runs/{run.id}/retry", headers=headers, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert changed(store) == before
    answer = await gateway.client.post(f"/agents/runs/{run.id}/retry", headers=admin, json={"budget": "0.06"})
    assert (answer.status_code, answer.json()["state"], answer.json()["budget"]) == (200, "queued", "0.060000000")


# -- starting


async def test_an_agent_starts_itself(gateway: Any, store: InMemoryRuns, agent: dict[str, str]) -> None:
    body = {
        "input": {"text": "hello"}, "budget": "0.05", "reserve": 0.01, "user": "ann", "session": "s", "tags": ["t", "u", "t"],
        "priority": 3,
    }  # fmt: skip
    answer = await gateway.client.post("/agents/news/runs", headers=agent, json=body)
    assert answer.status_code == 202, answer.text
    shown = answer.json()
    assert answer.headers["location"] == f"/agents/runs/{shown['id']}"
    run = await store.find(UUID(shown["id"]))
    assert (run.agent, run.input, run.budget_nano, run.reserve_nano) == (
        "news",
        {"text": "hello"},
        50_000_000,
        10_000_000,
    )
    assert (run.on_behalf_of, run.session, run.tags, run.priority) == ("ann", "s", ("t", "u"), 3)
    assert (run.asked_by, run.trigger, run.team_id) == ("agent news/laptop", "request", 1)


async def test_a_run_that_ends_in_time_is_the_answer(gateway: Any, store: InMemoryRuns, agent: dict[str, str]) -> None:
    async def work() -> None:
        while not (runs := await store.claim(uuid4(), 1, ("news",))):
            await asyncio.sleep(0.01)
        await store.leave(runs[0].claim, Ended(State.SUCCEEDED, output={"n": 7}))

    working = asyncio.create_task(work())
    answer = await gateway.client.post("/agents/news/runs", headers=agent, json={"wait": 5})
    await working
    assert (answer.status_code, answer.json()["state"], answer.json()["output"]) == (200, "succeeded", {"n": 7})
    late = await gateway.client.post("/agents/news/runs", headers=agent, json={"wait": 0.05})
    assert (late.status_code, late.json()["state"]) == (202, "queued")


async def test_i7_the_same_key_is_the_same_run(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], admin: dict[str, str]
) -> None:
    async def start(headers: dict[str, str], **body: object) -> Any:
        return await gateway.client.post("/agents/news/runs", headers={**headers, "idempotency-key": "k"}, json=body)

    first, second = await start(agent, user="ann"), await start(agent, user="ann")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    for other in ({"user": "bob"}, {"user": "ann", "input": {"text": "other"}}, {"user": "ann", "budget": "0.5"}):
        conflict = await start(agent, **other)
        assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert (await start(admin)).json()["id"] != first.json()["id"]
    assert len(store._runs) == 2


async def test_an_agent_starts_no_other_and_an_administrator_any(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], admin: dict[str, str]
) -> None:
    for name in ("colleague", "nobody"):  # nothing shows which agents there are
        answer = await gateway.client.post(f"/agents/{name}/runs", headers=agent, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_permitted")
    assert store._runs == {}
    assert (await gateway.client.post("/agents/news/runs", headers=admin, json={})).status_code == 202


async def test_i9_only_an_administrator_gives_a_run_more_than_its_configuration(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], admin: dict[str, str]
) -> None:
    answer = await gateway.client.post("/agents/news/runs", headers=agent, json={"budget": "1.01"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "budget")
    assert store._runs == {}
    answer = await gateway.client.post("/agents/news/runs", headers=admin, json={"budget": "1.01"})
    assert (answer.status_code, answer.json()["budget_nano"]) == (202, 1_010_000_000)


BAD_STARTS: list[tuple[str, Any, int, str | None]] = [
    ("nobody", {}, 404, "agent"),
    ("a%00b", {}, 404, "agent"),
    ("resting", {}, 403, None),
    ("news", {"inputs": {}}, 400, "inputs"),
    ("news", {"input": []}, 400, "input"),
    ("news", {"input": {"unknown": 1}}, 400, "input.unknown"),
    ("news", {"input": {"text": 7}}, 400, "input.text"),
    ("news", {"model": "gpt-4o"}, 400, "model"),
    ("news", {"budget": "-1"}, 400, "budget"),
    ("news", {"budget": "0"}, 400, "budget"),
    ("news", {"budget": "lots"}, 400, "budget"),
    ("news", {"budget": "0.5", "reserve": "0.6"}, 400, "reserve"),
    ("news", {"reserve": "2"}, 400, "reserve"),
    ("news", {"reserve": True}, 400, "reserve"),
    ("news", {"user": ""}, 400, "user"),
    ("news", {"user": "a\u0000b"}, 400, "user"),
    ("news", {"session": "x" * 10_000}, 400, "session"),
    ("news", {"tags": "t"}, 400, "tags"),
    ("news", {"tags": ["t"] * 1000}, 400, "tags"),
    ("news", {"tags": [" t"]}, 400, "tags.0"),
    ("news", {"priority": 101}, 400, "priority"),
    ("news", {"priority": 0.5}, 400, "priority"),
    ("news", {"wait": -1}, 400, "wait"),
    ("news", {"wait": 301}, 400, "wait"),
    ("news", b'{"wait": Infinity}', 400, None),
    ("news", b'{"input": {"text": "\\ud800"}}', 400, None),
    ("news", b'{"input": {"text": "\xff"}}', 400, None),
    ("news", b'{"input": ' + b'{"a": ' * 300 + b"1" + b"}" * 301, 400, None),
    ("news", b'{"input": {"text": "' + b"x" * MOST_BODY + b'"}}', 413, None),
    ("news", b"", 400, None),
    ("news", b"null", 400, None),
]


@pytest.mark.parametrize(("name", "body", "status", "param"), BAD_STARTS)
async def test_a_bad_start_is_named_and_adds_no_run(
    gateway: Any, store: InMemoryRuns, admin: dict[str, str], name: str, body: Any, status: int, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = admin | {"content-type": "application/json"}
    answer = await gateway.client.post(f"/agents/{name}/runs", headers=headers, content=content)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    if param is not None:
        assert answer.json()["error"]["param"] == param
    assert store._runs == {}


# -- acting


async def test_a_run_is_cancelled_once(gateway: Any, store: InMemoryRuns, agent: dict[str, str]) -> None:
    run = await store.add(new_run())
    answers = [await gateway.client.post(f"/agents/runs/{run.id}/cancel", headers=agent) for _ in range(2)]
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(200, "cancelled")] * 2
    assert answers[0].json()["ended_at"] == answers[1].json()["ended_at"]


async def test_a_failed_run_is_retried_and_one_that_succeeded_is_not(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    run = await failed(store)
    assert (await gateway.client.post(f"/agents/runs/{run.id}/retry", headers=agent)).json()["state"] == "queued"
    again = await gateway.client.post(f"/agents/runs/{run.id}/retry", headers=agent)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    claim = (await claimed(store, await store.find(run.id))).claim
    await store.leave(claim, Ended(State.SUCCEEDED))
    late = await gateway.client.post(f"/agents/runs/{run.id}/retry", headers=agent)
    assert late.status_code == 409
    assert "succeeded" in late.json()["error"]["message"]


async def test_a_fork_is_the_same_for_the_same_key_of_the_same_caller(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], admin: dict[str, str]
) -> None:
    run = await failed(store)

    async def fork(headers: dict[str, str], steps: int = 1) -> Any:
        return await gateway.client.post(
            f"/agents/runs/{run.id}/fork", headers={**headers, "idempotency-key": "k"}, json={"steps": steps}
        )

    first, second, others = await fork(agent), await fork(agent), await fork(admin)
    assert first.status_code == 202
    assert first.headers["location"] == f"/agents/runs/{first.json()['id']}"
    assert first.json()["id"] == second.json()["id"] != others.json()["id"]
    assert (first.json()["forked"], first.json()["code_version"]) == ({"run": str(run.id), "steps": 1}, CODE_VERSION)
    assert first.json()["asked_by"] == "agent news/laptop"
    conflict = await fork(agent, 0)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "idempotency_conflict")


# -- every wrong request by name


WRONG: list[tuple[str, str, Any, int, str | None]] = [
    # method, path below /agents/runs, body, status, the parameter that is named
    ("GET", "/17", None, 400, "run_id"),
    ("GET", "/not-an-id/steps", None, 400, "run_id"),
    ("GET", "/00000000-0000-4000-8000-000000000000", None, 404, "run"),
    ("GET", "?state=dancing", None, 400, "state"),
    ("GET", "?since=soon", None, 400, "since"),
    ("GET", "?limit=0", None, 400, "limit"),
    ("GET", "?limit=201", None, 400, "limit"),
    ("GET", "?after=x", None, 400, "after"),
    ("GET", "?stat=failed", None, 400, "stat"),
    ("GET", "?agent=a%00b", None, 400, "agent"),
    ("GET", "?session=%ff", None, 400, "session"),
    ("GET", "/{run}?full=1", None, 400, "full"),
    ("GET", "/{run}/events?after=1", None, 400, "after"),
    ("POST", "/not-an-id/cancel", None, 400, "run_id"),
    ("POST", "/{run}/fork", {}, 400, "steps"),
    ("POST", "/{run}/fork", {"steps": -1}, 400, "steps"),
    ("POST", "/{run}/fork", {"steps": "1"}, 400, "steps"),
    ("POST", "/{run}/fork", {"steps": 9}, 409, None),
    ("POST", "/{run}/fork", {"steps": 0, "agent": "other"}, 400, "agent"),
    ("POST", "/{run}/fork", [], 400, None),
    ("POST", "/{run}/fork", b"{", 400, None),
    ("POST", "/{run}/fork", b'{"steps": NaN}', 400, None),
    ("POST", "/{run}/fork", b'{"steps": 0, "x": "\xff"}', 400, None),
    ("POST", "/{run}/fork", b'{"x": ' + b"[" * 300 + b"]" * 300 + b"}", 400, None),
    ("POST", "/{run}/fork", b'{"x": "' + b"x" * MOST_BODY + b'"}', 413, None),
    ("POST", "/{run}/cancel", b"{", 400, None),
    ("DELETE", "/{run}", None, 405, None),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "param"), WRONG)
async def test_a_wrong_request_is_named_and_changes_nothing(
    gateway: Any,
    store: InMemoryRuns,
    agent: dict[str, str],
    method: str,
    path: str,
    body: Any,
    status: int,
    param: str | None,
) -> None:
    run = await failed(store)
    before = changed(store)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = agent | ({"content-type": "application/json"} if content else {})
    answer = await gateway.client.request(
        method, "/agents/runs" + path.replace("{run}", str(run.id)), headers=headers, content=content
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    assert changed(store) == before


@pytest.mark.parametrize("key", ["x" * 256, "a\tb"])
async def test_a_wrong_idempotency_key_is_refused(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], key: str
) -> None:
    run = await failed(store)
    answer = await gateway.client.post(
        f"/agents/runs/{run.id}/fork", headers=agent | {"idempotency-key": key}, json={"steps": 0}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "idempotency-key")


# -- watching


def events_of(text: str) -> list[tuple[str, str]]:
    """The id and the name of each event of a stream."""
    found: list[tuple[str, str]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "event" in fields:
            json.loads(fields["data"])
            found.append((fields["id"], fields["event"]))
    return found


async def test_a_watcher_goes_on_without_a_gap_and_without_a_repetition(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    run = await failed(store)
    answer = await gateway.client.get(f"/agents/runs/{run.id}/events", headers=agent)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [name for _, name in events] == ["run.queued", "run.running", "step.done", "run.failed"]
    for read, (last, _) in enumerate(events[:-1], 1):
        rest = await gateway.client.get(f"/agents/runs/{run.id}/events", headers=agent | {"last-event-id": last})
        assert events_of(rest.text) == events[read:]
    over = await gateway.client.get(f"/agents/runs/{run.id}/events", headers=agent | {"last-event-id": events[-1][0]})
    assert (over.status_code, over.content) == (204, b"")


async def test_a_watcher_is_shown_what_happens_while_it_watches(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    run = await claimed(store, await store.add(new_run()))
    watching = asyncio.create_task(gateway.client.get(f"/agents/runs/{run.id}/events", headers=agent))
    await asyncio.sleep(0.05)
    await store.begin(run.claim, head(run, 1))
    await asyncio.sleep(0.05)
    await store.record(run.claim, head(run, 1), DONE)
    await store.leave(run.claim, Ended(State.SUCCEEDED, output="all"))
    answer = await asyncio.wait_for(watching, 5)
    assert [name for _, name in events_of(answer.text)] == [
        "run.queued", "run.running", "step.started", "step.done", "run.succeeded"
    ]  # fmt: skip


@pytest.mark.parametrize("last", ["nowhere", "7.done.1.running.1", "0.-.0.running.8", "1.started.9.running.1"])
async def test_a_last_event_from_nowhere_is_refused(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], last: str
) -> None:
    run = await failed(store)
    answer = await gateway.client.get(f"/agents/runs/{run.id}/events", headers=agent | {"last-event-id": last})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "last-event-id")
