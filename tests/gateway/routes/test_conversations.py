"""Conversations over HTTP: who sees them, who deletes them, and that nobody can write what was said."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.conversations.record import Conversation, ConversationFilter, HistoryLimits
from agents.definition import AnyAgent
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Ended, NewRun, State
from agents.runs.starting import RunStarter
from agents.runs.watching import Watching
from llm_service.types import Principal
from tests.agents.runs.scripted import Configurations, World, define

TURN = [
    {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "cancel it"}]},
    {
        "kind": "response",
        "parts": [
            {"part_kind": "text", "content": "At once."},
            {"part_kind": "tool-call", "tool_name": "cancel", "tool_call_id": "1", "args": '{"id": 7}'},
            {"part_kind": "of a later release", "content": "x"},
        ],
    },
    {
        "kind": "request",
        "parts": [{"part_kind": "tool-return", "tool_name": "cancel", "tool_call_id": "1", "content": "done"}],
    },
]


class Agents:
    async def by_agent(self, name: str) -> Principal:
        return Principal(1, "acme", 1, "team 1", 1, name, 5, "laptop", epoch=1)


@pytest.fixture
def store(gateway: Any) -> InMemoryRuns:
    store = InMemoryRuns()
    gateway.runtime.runs = store
    gateway.runtime.watching = Watching(store, look_s=0.01)
    definition: AnyAgent = define(World(), "news")
    gateway.runtime.starter = RunStarter(store, Agents(), Configurations(definition), find=lambda _name: definition)
    return store


async def say(store: InMemoryRuns, agent: str = "news", team_id: int = 1, **changes: Any) -> Conversation:
    """A conversation of one turn."""
    fields: dict[str, Any] = {"session": "s", "conversation_s": 3600, **changes}
    run = await store.add(NewRun(uuid4(), agent, 1, team_id, {"text": "cancel it"}, {}, "1", **fields))
    (claimed,) = await store.claim(uuid4(), 1, (agent,), run_id=run.id)
    turn = [json.dumps(message) for message in TURN]
    await store.begin_turn(claimed.claim, turn[:1], HistoryLimits(9, 9999))
    await store.leave(claimed.claim, Ended(State.SUCCEEDED, output="done"), turn)
    newest, *_ = await store.conversations.page(ConversationFilter())
    return newest


async def test_what_was_said_is_shown(gateway: Any, store: InMemoryRuns, agent: dict[str, str]) -> None:
    conversation = await say(store, on_behalf_of="ann")
    path = f"/agents/conversations/{conversation.id}"
    shown = (await gateway.client.get(path, headers=agent)).json()
    assert (shown["agent"], shown["session"], shown["user"], shown["turns"]) == ("news", "s", "ann", 1)
    messages = (await gateway.client.get(f"{path}/messages", headers=agent)).json()["data"]
    parts = [(part["role"], part["tool"], part["content"]) for message in messages for part in message["parts"]]
    assert parts == [
        ("user", None, "cancel it"),
        ("assistant", None, "At once."),
        ("assistant", "cancel", '{"id": 7}'),
        (None, None, None),
        ("tool", "cancel", "done"),
    ]


async def test_a_key_sees_the_conversations_of_its_team(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], admin: dict[str, str]
) -> None:
    own, colleague, strange = await say(store), await say(store, "colleague"), await say(store, "stranger", 2)
    for headers, visible in ((agent, {own.id, colleague.id}), (admin, {own.id, colleague.id, strange.id})):
        found = (await gateway.client.get("/agents/conversations", headers=headers)).json()["data"]
        assert {UUID(each["id"]) for each in found} == visible
    missing = uuid4()
    for path in ("", "/messages"):
        for method in ("GET", "DELETE") if not path else ("GET",):
            answers = [
                await gateway.client.request(method, f"/agents/conversations/{each}{path}", headers=agent)
                for each in (strange.id, missing)
            ]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert answers[0].text.replace(str(strange.id), "ID") == answers[1].text.replace(str(missing), "ID")
    assert await store.conversations.find(strange.id) == strange


async def test_a_list_is_filtered_and_paged(gateway: Any, store: InMemoryRuns, admin: dict[str, str]) -> None:
    first, second = await say(store, session="a", on_behalf_of="ann"), await say(store, session="b")
    for query, found in (
        ("session=a", first),
        ("user=ann", first),
        ("limit=1", second),
        ("agent=news&session=b", second),
    ):
        data = (await gateway.client.get(f"/agents/conversations?{query}", headers=admin)).json()["data"]
        assert [each["id"] for each in data] == [str(found.id)], query
    for query in ("history=1", "limit=0", "state=queued"):
        answer = await gateway.client.get(f"/agents/conversations?{query}", headers=admin)
        assert answer.status_code == 400


async def test_an_agent_deletes_its_own_conversations_only(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    own, colleague = await say(store), await say(store, "colleague")
    answer = await gateway.client.delete(f"/agents/conversations/{colleague.id}", headers=agent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_permitted")
    assert await store.conversations.find(colleague.id) == colleague
    assert (await gateway.client.delete(f"/agents/conversations/{own.id}", headers=agent)).status_code == 204
    assert (await gateway.client.get(f"/agents/conversations/{own.id}", headers=agent)).status_code == 404


async def test_a_conversation_in_use_is_not_deleted(gateway: Any, store: InMemoryRuns, agent: dict[str, str]) -> None:
    conversation = await say(store)
    started = await start(gateway, agent, session="s")
    answer = await gateway.client.delete(f"/agents/conversations/{conversation.id}", headers=agent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conversation_in_use")
    assert answer.json()["error"]["treasurer"]["run"] == started.json()["id"]
    assert await store.conversations.messages(conversation.id)


async def start(gateway: Any, headers: dict[str, str], **body: Any) -> Any:
    return await gateway.client.post("/agents/news/runs", headers=headers, json={"input": {"text": "x"}, **body})


@pytest.mark.parametrize(
    "body",
    [
        {"history": []}, {"messages": TURN}, {"message_history": TURN}, {"input": {"text": "x", "history": TURN}},
        {"on_session": "queue"}, {"session": "s", "on_session": "rollback"}, {"session": " s"}, {"session": ""},
    ],
)  # fmt: skip
async def test_a_history_of_the_client_is_refused(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str], body: dict[str, Any]
) -> None:
    answer = await start(gateway, agent, **body)
    assert answer.status_code == 400, answer.text
    assert (await store.conversations.page(ConversationFilter())) == []


async def test_a_second_message_is_rejected_or_replaces(
    gateway: Any, store: InMemoryRuns, agent: dict[str, str]
) -> None:
    first = (await start(gateway, agent, session="s", user="ann")).json()
    for fields, code in (
        ({"on_session": "reject", "user": "ann"}, "session_busy"),
        ({"user": "bob"}, "session_of_another_user"),
    ):
        answer = await start(gateway, agent, session="s", **fields)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, code)
    assert (await start(gateway, agent, session="s", user="ann", on_session="replace")).status_code == 202
    assert (await store.find(UUID(first["id"]))).state is State.CANCELLED
