"""Which texts are counted, and how the proxy is asked to count them. Images are never sent to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.errors import ProxyUnavailable, UpstreamError
from llm_service.grants import verify
from llm_service.pricing.bounds import TextCount
from llm_service.pricing.model_info import read_models
from llm_service.upstream.token_counter import TokenCounter, texts
from llm_service.wire.requests import parse_chat, parse_embeddings
from tests.examples import examples
from tests.llm_service.fakes import ENTRIES, chat_body

SECRET = "s" * 32
MODEL = read_models(ENTRIES)["m"]


class Proxy:
    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    async def ask(self, path: str, body: bytes, grant: str) -> Any:
        assert path == "/utils/token_counter"
        verify(SECRET, grant, path=path, model="m", body=body)
        self.asked.append(json.loads(body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def counter(answer: object) -> tuple[TokenCounter, Proxy]:
    proxy = Proxy(answer)
    return TokenCounter(proxy, SECRET), proxy


async def test_ascii_is_counted_and_the_rest_is_bytes() -> None:
    count, proxy = counter({"total_tokens": 3})
    assert await count.text(MODEL, "Hello 文🙂é") == TextCount(3, 3 + 4 + 2)
    assert proxy.asked == [{"model": "m", "prompt": "Hello "}]


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"total_tokens": None}, {"total_tokens": -1}, {"total_tokens": True}, "3"]
)
async def test_an_answer_without_a_count_is_an_upstream_error(answer: object) -> None:
    with pytest.raises(UpstreamError):
        await counter(answer)[0].text(MODEL, "x")


async def test_the_proxy_away_is_said() -> None:
    with pytest.raises(ProxyUnavailable):
        await counter(ProxyUnavailable("away"))[0].text(MODEL, "x")


FILE = "data:application/pdf;base64,JVBERi0xLjQ="


async def test_every_text_that_a_model_reads_is_counted_and_no_image() -> None:
    parts = [{"type": "text", "text": "TEXT"}, {"type": "image_url", "image_url": {"url": "https://IMAGE"}},
             {"type": "file", "file": {"file_data": FILE}}]  # fmt: skip
    request = parse_chat(
        chat_body(
            messages=[{"role": "user", "name": "NAME", "content": parts}],
            tools=[{"type": "function", "function": {"name": "TOOL", "parameters": {"PROPERTY": {"minimum": 12345}}}}],
            response_format={"type": "json_schema", "json_schema": {"name": "SCHEMA"}},
        )
    )
    count, proxy = counter({"total_tokens": 1})
    await count.request(MODEL, request)
    prompt = proxy.asked[0]["prompt"]
    assert all(word in prompt for word in ("TEXT", "NAME", "TOOL", "PROPERTY", "12345", "SCHEMA"))
    assert "IMAGE" not in prompt
    assert FILE not in prompt


def test_an_array_of_tokens_is_a_word_each() -> None:
    assert list(texts(parse_embeddings(b'{"model": "e", "input": [5, 6, 7]}').data)) == ["x x x"]
    assert list(texts(parse_embeddings(b'{"model": "e", "input": [[5, 6], [7]]}').data)) == ["x x", "x"]
    assert list(texts(parse_embeddings(b'{"model": "e", "input": ["a", "b"]}').data)) == ["a", "b"]


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text("abc", max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text("kt", max_size=4), inner, max_size=3)
        ),
    )
)
@settings(max_examples=examples(100), deadline=None)  # fmt: skip
def test_no_text_of_a_tool_is_left_out(parameters: Any) -> None:
    written = json.dumps(parameters)
    counted = "".join(texts({"tools": [parameters]}))
    for word in written.replace('"', " ").replace("[", " ").replace("{", " ").split():
        if word.isalpha() and word not in ("null", "true", "false"):
            assert word in counted
