"""The digest agent, with a Python function in place of the model: no network, no money."""

from __future__ import annotations

from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from agents.catalog.digest import DEFINITION, Digest, DigestRequest
from agents.services import Services


async def test_it_reads_every_feed_and_answers_with_a_digest() -> None:
    task = DEFINITION.task(DigestRequest(), Services())
    result = await DEFINITION.agent.run(task.prompt, deps=task.deps, model=TestModel())
    assert isinstance(result.output, Digest)
    assert "read_feed" in task.prompt
    assert all(name in task.prompt for name in ("sample:news.xml", "sample:news-atom.xml"))


async def test_links_that_no_feed_has_are_emptied() -> None:
    real = "https://ledger.example/2026/token-prices"

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse([ToolCallPart("read_feed", {"feed": "sample:news.xml"})])
        item = {"headline": "h", "source": "s", "why_it_matters": "w"}
        items = [item | {"url": real}, item | {"url": "https://made-up.example/"}]
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"title": "t", "summary": "s", "items": items})])

    task = DEFINITION.task(DigestRequest(feeds=("sample:news.xml",), stories=2, focus="prices"), Services())
    result = await DEFINITION.agent.run(task.prompt, deps=task.deps, model=FunctionModel(answer))
    assert [item.url for item in result.output.items] == [real, ""]
    assert "prices" in task.prompt
