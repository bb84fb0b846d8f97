"""Approvals over HTTP: who sees and decides them, and the refusal of every wrong decision by name."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from agents.approvals.deciding import digest_of_call
from agents.approvals.record import Approval, ApprovalFilter, ApprovalState, NewApproval, Why
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import NewRun, State, WaitFor, Waits
from gateway.routes.approvals import decider_of
from llm_service.types import Principal

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ARGUMENTS = {"name": "old"}
DIGEST = digest_of_call("delete", ARGUMENTS)
APPROVES = {"decision": "approve", "digest": DIGEST.hex()}


@pytest.fixture
def store(gateway: Any) -> InMemoryRuns:
    """The gateway's runs, in memory. Agent `news` is of team 1."""
    store = InMemoryRuns()
    gateway.runtime.runs = store
    return store


async def ask(store: InMemoryRuns, agent: str = "other", team_id: int = 1, **changes: Any) -> Approval:
    run = await store.add(NewRun(uuid4(), agent, 1, team_id, {}, {}, "1"))
    (claimed,) = await store.claim(uuid4(), 1, (agent,), run_id=run.id)
    asks = NewApproval(uuid4(), 2, "delete", Why.BEFORE, ARGUMENTS, DIGEST, SCHEMA, **changes)
    await store.leave(claimed.claim, Waits(WaitFor.APPROVAL, asks=asks))
    return await store.approval(asks.id)


def changed(store: InMemoryRuns) -> Any:
    """Everything that a request might have changed."""
    return dict(store._runs), dict(store._approvals)


async def post(gateway: Any, approval: Approval, headers: dict[str, str], **said: Any) -> Any:
    body = json.dumps(APPROVES | said)  # in ASCII, because a client may send half of a surrogate pair
    return await gateway.client.post(
        f"/agents/approvals/{approval.id}", headers=headers | {"content-type": "application/json"}, content=body
    )


async def test_an_approval_is_shown_with_the_digest_that_a_decision_names(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    approval = await ask(store, approvers=("team:sales",))
    answer = await gateway.client.get(f"/agents/approvals/{approval.id}", headers=agent)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["run"], shown["agent"], shown["step"]) == (str(approval.run_id), "other", 2)
    assert (shown["tool"], shown["arguments"], shown["digest"]) == ("delete", ARGUMENTS, DIGEST.hex())
    assert (shown["why"], shown["state"], shown["can_change"]) == ("before", "pending", True)
    assert (shown["arguments_schema"], shown["approvers"]) == (SCHEMA, ["team:sales"])


async def test_a_list_has_what_is_pending_the_oldest_first(
    gateway: Any, store: InMemoryRuns, admin: dict[str, str]
) -> None:
    asked = [await ask(store, agent) for agent in ("a", "b", "a", "b")]
    first = (await gateway.client.get("/agents/approvals?limit=3", headers=admin)).json()
    assert [each["id"] for each in first["data"]] == [str(each.id) for each in asked[:3]]
    assert (first["has_more"], first["next_after"]) == (True, asked[2].number)
    rest = (await gateway.client.get(f"/agents/approvals?after={first['next_after']}", headers=admin)).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == ([str(asked[3].id)], False)
    of_a = (await gateway.client.get("/agents/approvals?agent=a", headers=admin)).json()["data"]
    assert [each["id"] for each in of_a] == [str(asked[0].id), str(asked[2].id)]
    of_run = (await gateway.client.get(f"/agents/approvals?run={asked[1].run_id}", headers=admin)).json()["data"]
    assert [each["id"] for each in of_run] == [str(asked[1].id)]
    assert (await post(gateway, asked[0], admin)).status_code == 200
    assert len((await gateway.client.get("/agents/approvals", headers=admin)).json()["data"]) == 3
    approved = (await gateway.client.get("/agents/approvals?state=approved", headers=admin)).json()["data"]
    assert [each["id"] for each in approved] == [str(asked[0].id)]


async def test_a_key_sees_its_team_and_what_it_may_decide(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    mine, named = await ask(store), await ask(store, team_id=2, approvers=("news/laptop",))
    hidden = await ask(store, team_id=2)
    listed = (await gateway.client.get("/agents/approvals", headers=agent)).json()["data"]
    assert [each["id"] for each in listed] == [str(mine.id), str(named.id)]
    before = changed(store)
    for answer in (
        await gateway.client.get(f"/agents/approvals/{hidden.id}", headers=agent),
        await post(gateway, hidden, agent),
        await gateway.client.get(f"/agents/approvals/{uuid4()}", headers=agent),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert changed(store) == before


async def test_an_approver_decides_and_the_run_is_queued(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    approval = await ask(store, team_id=2, approvers=("news/laptop",))
    answer = await post(gateway, approval, agent, arguments={"name": "older"}, reason="the newer one")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["state"], shown["changed_arguments"], shown["arguments"]) == (
        "approved", {"name": "older"}, ARGUMENTS
    )  # fmt: skip
    assert (shown["decided_by"], shown["reason"]) == ("key news/laptop", "the newer one")
    assert (await store.find(approval.run_id)).state is State.QUEUED


async def test_a_refusal_has_a_reason(gateway: Any, store: InMemoryRuns, admin: dict[str, str]) -> None:
    approval = await ask(store)
    answer = await post(gateway, approval, admin, decision="refuse", reason="in use")
    assert (answer.status_code, answer.json()["state"], answer.json()["reason"]) == (200, "refused", "in use")
    assert (await store.find(approval.run_id)).state is State.QUEUED


async def test_of_many_decisions_at_once_the_first_counts(
    gateway: Any, store: InMemoryRuns, admin: dict[str, str]
) -> None:
    approval = await ask(store)
    answers = await asyncio.gather(*(post(gateway, approval, admin) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409} == {"approval_decided"}


@pytest.mark.parametrize(
    ("said", "status", "code", "param"),
    [
        ({"digest": "0" * 64}, 409, "approval_differs", "digest"),
        ({"digest": "0"}, 400, "invalid_request", "digest"),
        ({"digest": None}, 400, "invalid_request", "digest"),
        ({"decision": "maybe"}, 400, "invalid_request", "decision"),
        ({"decision": "refuse"}, 400, "invalid_request", None),
        ({"decision": "refuse", "reason": "no", "arguments": {"name": "x"}}, 400, "invalid_request", "arguments"),
        ({"arguments": {"name": 7}}, 400, "invalid_request", "arguments"),
        ({"arguments": {}}, 400, "invalid_request", "arguments"),
        ({"arguments": [1]}, 400, "invalid_request", "arguments"),
        ({"arguments": {"name": "\ud800"}}, 400, "invalid_json", None),
        ({"reason": "a\0b"}, 400, "invalid_request", "reason"),
        ({"reason": "\ud800"}, 400, "invalid_json", None),
        ({"reason": " "}, 400, "invalid_request", "reason"),
        ({"reason": "x" * 2001}, 400, "invalid_request", "reason"),
        ({"approved": True}, 400, "invalid_request", "approved"),
    ],
)
async def test_a_wrong_decision_is_refused_by_name_and_changes_nothing(
    gateway: Any, store: InMemoryRuns, admin: dict[str, str], said: dict[str, Any], status: int, code: str, param: str
) -> None:
    approval = await ask(store)
    before = changed(store)
    answer = await post(gateway, approval, admin, **said)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert changed(store) == before


async def test_a_late_decision_is_gone(gateway: Any, store: InMemoryRuns, admin: dict[str, str]) -> None:
    approval = await ask(store)
    store._approvals[approval.id] = replace(approval, expires_at=approval.asked_at)
    answer = await post(gateway, approval, admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "approval_expired")
    assert (await gateway.client.get(f"/agents/approvals/{approval.id}", headers=admin)).json()["state"] == "expired"
    assert (await store.find(approval.run_id)).state is State.WAITING


async def test_a_withdrawn_approval_is_not_decided(gateway: Any, store: InMemoryRuns, admin: dict[str, str]) -> None:
    approval = await ask(store)
    await store.cancel(approval.run_id)
    answer = await post(gateway, approval, admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "approval_withdrawn")


@pytest.mark.parametrize("approvers", [(), ("news/laptop",), ("team:default",)])
async def test_i8_an_agents_own_key_never_decides(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], approvers: tuple[str, ...]
) -> None:
    approval = await ask(store, "news", approvers=approvers)
    answer = await post(gateway, approval, agent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_an_approver")
    assert "an agent's own key never decides" in answer.json()["error"]["message"]
    (pending,) = await store.approvals(ApprovalFilter())
    assert pending.state is ApprovalState.PENDING


@pytest.mark.parametrize(
    ("path", "param"),
    [("/agents/approvals?colour=red", "colour"), ("/agents/approvals?state=gone", "state"),
     ("/agents/approvals?limit=0", "limit"), ("/agents/approvals?run=7", "run"),
     ("/agents/approvals/7", "approval_id")],
)  # fmt: skip
async def test_a_wrong_question_is_refused_by_name(
    gateway: Any, store: InMemoryRuns, admin: dict[str, str], path: str, param: str
) -> None:
    answer = await gateway.client.get(path, headers=admin)
    assert answer.status_code in (400, 404), answer.text
    assert param in str(answer.json()["error"]["param"])


async def test_without_a_key_nothing_is_shown(gateway: Any, store: InMemoryRuns) -> None:
    approval = await ask(store)
    for answer in (
        await gateway.client.get("/agents/approvals"),
        await gateway.client.get(f"/agents/approvals/{approval.id}"),
        await post(gateway, approval, {}),
    ):
        assert answer.status_code == 401


def test_the_owner_of_a_key_is_a_decider() -> None:
    principal = Principal(1, "acme", 3, "sales", 7, "boss", 9, "desk", epoch=1)
    assert decider_of(principal).names == ("boss/desk", "team:sales")
    assert (decider_of("key ops").names, decider_of("key ops").everything) == (("ops",), False)
    assert decider_of("the fixed administrator's key").everything
