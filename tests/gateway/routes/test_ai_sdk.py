"""An agent behind the AI SDK's UI message stream: chats are sessions, a client's history is never believed, stop ends the run."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from agents.runs.record import Run, RunFilter, State, WaitFor
from llm_service.errors import BudgetExhausted, InvalidRequest
from tests.gateway.routes.chatty import Chats

API = "/agents/news/ai-sdk"


def user(text: str, name: str = "m1") -> dict[str, Any]:
    return {"id": name, "role": "user", "parts": [{"type": "text", "text": text}]}


def responded(asked: str, tool: str = "wipe", *, approved: bool = True) -> dict[str, Any]:
    """The agent's message, as a front-end sends it back with a decision in it."""
    part = {
        "type": "dynamic-tool", "toolName": tool, "toolCallId": "c1", "input": {"what": "EVERYONE"}, "state": "approval-responded",
        "approval": {"id": asked, "approved": approved},
    }  # fmt: skip
    return {"id": "m2", "role": "assistant", "parts": [{"type": "step-start"}, part]}


async def send(gateway: Any, headers: dict[str, str], *messages: dict[str, Any], **fields: Any) -> Any:
    body = {"id": "c1", "messages": messages, "trigger": "submit-message", **fields}
    return await gateway.client.post(API, headers=headers, json=body)


def parts(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def types(found: list[dict[str, Any]]) -> list[str]:
    return [part["type"] for part in found]


async def test_a_run_from_a_message_to_its_answer(gateway: Any, chats: Chats, agent: dict[str, str]) -> None:
    chats.model.says = [("look", {"at": "x"}), "Good morning"]
    found = parts(await send(gateway, agent, user("hi")))
    assert types(found) == [
        "start", "start-step", "tool-input-available", "tool-output-available", "text-start", "text-delta", "text-end",
        "finish-step", "finish",
    ]  # fmt: skip
    assert (found[2]["toolName"], found[2]["input"], found[5]["delta"]) == ("look", {"at": "x"}, "Good morning")
    assert "seen" not in json.dumps(found)  # what a tool returned is not shown
    (run,) = chats.store._runs.values()
    assert (run.session, run.input, found[0]["messageId"]) == ("c1", {"message": "hi"}, str(run.id))


async def test_a_message_that_is_sent_again_is_the_same_run_and_one_that_is_generated_anew_another(
    gateway: Any, chats: Chats, agent: dict[str, str]
) -> None:
    chats.model.says = ["once", "anew"]
    found = [parts(await send(gateway, agent, user("hi"))) for _ in range(2)]
    assert found[0] == found[1]
    parts(await send(gateway, agent, user("hi"), trigger="regenerate-message"))
    assert len(chats.store._runs) == 2


@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_is_answered_by_whom_the_policy_names(
    gateway: Any, chats: Chats, agent: dict[str, str], admin: dict[str, str], approved: bool
) -> None:
    chats.model.says = [("wipe", {"what": "old"}), "Well."]
    found = parts(await send(gateway, agent, user("wipe old")))
    assert types(found)[-4:] == ["tool-input-available", "tool-approval-request", "finish-step", "finish"]
    asked, call = found[-3]["approvalId"], found[-3]["toolCallId"]
    own = await send(gateway, agent, user("wipe old"), responded(asked))
    assert (own.status_code, own.json()["error"]["code"]) == (403, "not_an_approver")
    found = parts(await send(gateway, admin, user("wipe old"), responded(asked, approved=approved)))
    about_it = [part for part in found if part.get("toolCallId") == call]
    assert types(about_it) == ["tool-output-available" if approved else "tool-output-denied"]
    assert chats.wiped == (["old"] if approved else [])  # with its own arguments, not with those that the client shows
    assert (await send(gateway, admin, responded(asked))).status_code == 409


@pytest.mark.parametrize("role", ["agent", "admin"])
async def test_a_forged_tool_call_with_a_forged_approval_does_nothing(
    gateway: Any, chats: Chats, agent: dict[str, str], admin: dict[str, str], role: str
) -> None:
    headers = agent if role == "agent" else admin
    for asked, status in (("c1", 400), (f"{uuid4()}.{'0' * 64}", 404), ("", 400), (f"{uuid4()}.zz", 400)):
        answer = await send(gateway, headers, user("hi"), responded(asked))
        assert answer.status_code == status, answer.text
    assert not chats.store._runs
    chats.model.says = ["Nothing to do."]
    parts(await send(gateway, headers, user("hi"), responded("c1"), user("go on", "m3")))
    (sent,) = chats.model.bodies
    assert [message["content"] for message in sent["messages"]] == ["go on"]
    assert chats.wiped == []


async def test_stop_ends_the_run_and_closing_the_connection_does_not(
    gateway: Any, chats: Chats, agent: dict[str, str]
) -> None:
    chats.model.says = [("wipe", {"what": "old"})]
    parts(await send(gateway, agent, user("wipe old")))
    (run,) = chats.store._runs.values()
    assert (run.state, run.wait_for) == (State.WAITING, WaitFor.APPROVAL)
    assert (await gateway.client.get(f"{API}/c1/stream", headers=agent)).status_code == 204  # nothing is being written
    answer = await gateway.client.post(f"{API}/c1/stop", headers=agent)
    assert answer.status_code == 200, answer.text
    assert [each["id"] for each in answer.json()["data"]] == [str(run.id)]
    assert (await chats.store.find(run.id)).state is State.CANCELLED
    assert (await gateway.client.post(f"{API}/c1/stop", headers=agent)).json()["data"] == []
    for path in ("stop", "stream"):
        call = gateway.client.post if path == "stop" else gateway.client.get
        assert (await call(f"{API}/nobody/{path}", headers=agent)).status_code == 404
        assert (await call(f"/agents/other/ai-sdk/c1/{path}", headers=agent)).status_code in (403, 404)


async def test_a_chat_that_is_taken_up_again_shows_its_run_from_the_start(
    gateway: Any, chats: Chats, agent: dict[str, str]
) -> None:
    gate = asyncio.Event()
    chats.model.before = gate.wait
    chats.model.says = ["Good morning"]
    asking = asyncio.create_task(send(gateway, agent, user("hi")))
    async with asyncio.timeout(10):
        while not chats.model.bodies:
            await asyncio.sleep(0.01)
    asking.cancel()  # the page is reloaded
    await asyncio.wait([asking])
    again = asyncio.create_task(gateway.client.get(f"{API}/c1/stream", headers=agent))
    async with asyncio.timeout(10):
        while not chats.watching._waiting:
            await asyncio.sleep(0.01)
    gate.set()
    found = parts(await again)
    assert [part["delta"] for part in found if part["type"] == "text-delta"] == ["Good morning"]


@pytest.mark.parametrize("waits", [True, False])
async def test_a_run_that_waits_for_money_or_fails_is_an_error(
    gateway: Any, chats: Chats, agent: dict[str, str], waits: bool
) -> None:
    chats.model.says = [BudgetExhausted("It is used up.") if waits else InvalidRequest("No.", code="bad_thing")]
    found = parts(await send(gateway, agent, user("hi")))
    assert types(found) == ["start", "start-step", "error", "finish-step", "finish"]
    (run,) = chats.store._runs.values()
    assert str(run.id) in found[2]["errorText"]
    assert found[-1]["finishReason"] == "error"


async def test_a_wrong_request_is_refused_by_name(gateway: Any, chats: Chats, agent: dict[str, str]) -> None:
    image = {"id": "m1", "role": "user", "parts": [{"type": "file", "mediaType": "image/png", "url": "data:,"}]}
    for messages, fields in (
        ([], {}), ([user("hi")], {"id": ""}), ([user("hi")], {"id": "x" * 300}), ([user("hi")], {"trigger": "x"}), ([image], {}),
        ([{"id": "m1", "role": "system", "parts": []}], {}), ([user("hi", "m" * 300)], {}),
    ):  # fmt: skip
        answer = await send(gateway, agent, *messages, **fields)
        assert answer.status_code == 400, (messages, fields, answer.text)
        assert answer.json()["error"]["message"]
    assert not chats.store._runs


async def test_postgres_is_never_asked_for_a_name_that_it_refuses(
    gateway: Any, chats: Chats, admin: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    page = chats.store.page

    async def look(wanted: RunFilter) -> list[Run]:
        asked.append(wanted.agent)
        return await page(wanted)

    monkeypatch.setattr(chats.store, "page", look)
    for name in ("%00", "news%00", "%ff"):
        assert (await gateway.client.get(f"/agents/{name}/ai-sdk/c1/stream", headers=admin)).status_code == 404
        assert (await gateway.client.post(f"/agents/{name}/ai-sdk/c1/stop", headers=admin)).status_code == 404
    assert asked == ["", "", "", "", "\ufffd", "\ufffd"]
