"""The researcher, with a Python function in place of the model, and digests that are given: no network, no money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agents.catalog.digest import DigestRequest
from agents.catalog.researcher import DEFINITION, Answer, Question
from agents.services import Services
from agents.tools.child_runs import ChildRun, ChildRunFailed, RunOf, starting_with

REAL = "https://ledger.example/2026/token-prices"


@dataclass
class Newsroom:
    """Answers each run that is started, as the digest would; the second one fails."""

    asked: list[RunOf] = field(default_factory=list[RunOf])

    async def start(self, run: RunOf) -> ChildRun:
        self.asked.append(run)
        return _Given()

    async def outputs(self, runs: Sequence[ChildRun]) -> list[Any]:
        item = {"headline": "Prices fall", "source": "s", "url": REAL, "why_it_matters": "w"}
        found: dict[str, Any] = {"title": "t", "summary": "s", "items": [item]}
        return [found, *[ChildRunFailed("failed", "It is away.")] * (len(runs) - 1)]


@dataclass
class _Given:
    id: UUID | None = field(default_factory=uuid4)

    async def output(self) -> Any:
        raise NotImplementedError


async def research(sources: list[dict[str, str]]) -> tuple[Answer, Newsroom, list[ModelMessage]]:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse([ToolCallPart("look_into", {"parts": ["What fell?", "Why?"]})])
        said = {"answer": "a", "left_open": "", "sources": sources}
        return ModelResponse([ToolCallPart(info.output_tools[0].name, said)])

    newsroom = Newsroom()
    task = DEFINITION.task(Question(question="What do tokens cost?", feeds=("sample:news.xml",)), Services())
    with starting_with(newsroom):
        result = await DEFINITION.agent.run(task.prompt, deps=task.deps, model=FunctionModel(answer))
    return result.output, newsroom, result.all_messages()


async def test_it_has_a_run_look_into_each_part_and_names_the_sources_that_were_found() -> None:
    made_up = {"title": "x", "url": "https://made-up.example/"}
    answer, newsroom, messages = await research([{"title": "Prices", "url": REAL}, made_up])
    assert [source.url for source in answer.sources] == [REAL]
    assert [run.agent for run in newsroom.asked] == ["digest"] * 2
    given = [DigestRequest.model_validate(dict(run.input)) for run in newsroom.asked]
    assert [each.focus for each in given] == [
        f"{part} This is a part of: What do tokens cost?" for part in ("What fell?", "Why?")
    ]
    (told,) = [
        part
        for each in messages
        for part in each.parts
        if isinstance(part, ToolReturnPart) and part.tool_name == "look_into"
    ]
    assert [each.get("failed") for each in cast("list[dict[str, Any]]", told.content)] == [None, "It is away."]


@pytest.mark.parametrize(
    "sources", [[], [{"title": "x", "url": "https://made-up.example/"}], [{"title": "x", "url": ""}]]
)
async def test_without_a_source_that_was_found_all_stories_are_named(sources: list[dict[str, str]]) -> None:
    answer, _, _ = await research(sources)
    assert [(source.title, source.url) for source in answer.sources] == [("Prices fall", REAL)]
