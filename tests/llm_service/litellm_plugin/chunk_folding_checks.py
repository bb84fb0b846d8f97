"""The folding of chunks, against what LiteLLM builds from them. Run by run_checks.py."""

# pyright: basic, reportMissingImports=false, reportPrivateUsage=false

from __future__ import annotations

from typing import Any

from litellm import stream_chunk_builder
from litellm.types.utils import ModelResponseStream
from litellm.types.utils import Usage as LiteLLMUsage

from llm_service.litellm_plugin import chunk_folding
from tests.llm_service.litellm_plugin.checking import chunk, words


def used(tokens: int) -> LiteLLMUsage:
    return LiteLLMUsage(prompt_tokens=7, completion_tokens=tokens, total_tokens=7 + tokens)


def calling(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"index": index, "id": f"call_{index}" if name else None, "type": "function", "function": function}


STREAMS: dict[str, list[ModelResponseStream]] = {
    "text": words(500),
    "thought": [chunk(reasoning_content=f" hm{number}") for number in range(300)] + words(300),
    "calls": [
        chunk(tool_calls=[calling(index, "" if number == 0 else f"{number},", "f" if number == 0 else None)])
        for index in range(3)
        for number in range(200)
    ],
    "usage each time": [chunk(content=f" word{number}", usage=used(number + 1)) for number in range(500)],
    "usage at both ends": [
        chunk(content="", usage=used(1)),
        *words(500),
        chunk(content="", finish_reason="length"),
        chunk(content="", usage=used(500)),
    ],
}


async def check_a_folded_stream_says_what_it_said() -> None:
    for name, chunks in STREAMS.items():
        folded: list[Any] = []
        for each in chunks:
            folded.append(each)
            chunk_folding.fold(folded)
            assert len(folded) <= chunk_folding.MOST, name
        told = [stream_chunk_builder(chunks=part, messages=[]).model_dump() for part in (chunks, folded)]  # type: ignore[union-attr]
        assert told[0] == told[1], name
        assert len(folded) < len(chunks) / 4, (name, len(folded))


async def check_what_is_more_than_text_is_not_folded() -> None:
    chunks = [chunk(content="a", annotations=[{"type": "url_citation"}]) for _ in range(200)]
    folded = list(chunks)
    chunk_folding.fold(folded)
    assert folded == chunks
