"""`read_feed` reads only the run's own feeds, and reports one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agents.services.feeds import FeedReader, FeedUnreachable
from agents.tools.feeds import READ_FEED, FeedDeps, links_in, named


def reading(*feeds: str) -> FunctionModel:
    """A model that reads one of these feeds in each request, and then answers "done"."""
    left = list(feeds)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if not left:
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart("read_feed", {"feed": left.pop(0)})])

    return FunctionModel(answer)


async def messages_of(deps: FeedDeps, *feeds: str) -> list[ModelMessage]:
    agent = Agent(reading(*feeds), deps_type=FeedDeps, tools=[READ_FEED], retries=3)
    return (await agent.run("Go", deps=deps)).all_messages()


async def run(deps: FeedDeps, *feeds: str) -> list[str]:
    parts = [part for message in await messages_of(deps, *feeds) for part in message.parts]
    return [part.model_response_str() for part in parts if isinstance(part, ToolReturnPart)]


async def test_a_feed_of_the_run_is_read_and_its_links_are_in_the_conversation() -> None:
    deps = FeedDeps(FeedReader(), named(["sample:news.xml"]))
    messages = await messages_of(deps, "sample:news.xml", "sample:unknown.xml")
    assert "Prices per token fall" in str(messages)
    assert "https://ledger.example/2026/cafe" in links_in(messages)
    assert links_in(messages[:1]) == set()


async def test_no_other_feed_can_be_read() -> None:
    deps = FeedDeps(FeedReader(), named(["sample:news.xml"]))
    await run(deps, "sample:news-atom.xml", "https://evil.example/?q=secret")
    assert deps.read == {}


async def test_a_run_goes_on_without_a_broken_feed_and_ends_when_none_is_left(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.xml")
    reader = FeedReader(allow_files=True)
    deps = FeedDeps(reader, named([missing, "sample:news.xml"]))
    returned = await run(deps, missing, "sample:news.xml")
    assert list(deps.read) == ["sample:news.xml"]
    assert "Go on without it" in returned[0]
    with pytest.raises(FeedUnreachable):
        await run(FeedDeps(reader, named([missing])), missing)


async def test_the_tool_offers_the_model_the_names_that_exist() -> None:
    offered: list[object] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        offered.append(info.function_tools[0].parameters_json_schema["properties"]["feed"]["enum"])
        return ModelResponse([TextPart("done")])

    agent = Agent(FunctionModel(answer), deps_type=FeedDeps, tools=[READ_FEED])
    await agent.run("Go", deps=FeedDeps(FeedReader(), named(["a.xml", "b.xml"])))
    await agent.run("Go", deps=FeedDeps(FeedReader(), named(["c.xml"])))
    assert offered == [["a.xml", "b.xml"], ["c.xml"]]


def test_names_hide_what_may_be_secret_and_differ() -> None:
    sources = ["https://me:pw@x.example/feed?key=1", "https://x.example/feed?key=2", "a.xml", "a.xml"]
    assert named(sources) == {
        "https://x.example/feed": sources[0],
        "https://x.example/feed (2)": sources[1],
        "a.xml": "a.xml",
    }
