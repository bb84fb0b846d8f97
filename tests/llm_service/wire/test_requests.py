"""Requests of callers: each has a bound in bytes, or is refused by name. No other exception is raised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.errors import InvalidRequest
from llm_service.wire.bodies import parse_body
from llm_service.wire.media import Kind
from llm_service.wire.requests import MAX_TOKENS_CEILING, ParsedRequest, parse_chat, parse_embeddings
from tests.examples import examples
from tests.llm_service.wire.media_files import data_url, png, wav

HI = [{"role": "user", "content": "Hi"}]
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HI} | fields).encode()


def embedding(given_input: Any, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": given_input} | fields).encode()


def refusal(parse: Callable[[bytes], ParsedRequest], sent: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(sent)
    assert 400 <= caught.value.status < 500
    return caught.value


# -- the body


@pytest.mark.parametrize(
    "sent",
    [b"", b"{", b"[]", b"null", b"1", b'"x"', b"{'a': 1}", b'\xff\xfe{"a": 1}', b'{"a": "\xc3"}', b'{"a": "\\ud800"}',
     b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000],
)  # fmt: skip
@pytest.mark.parametrize("parse", [parse_body, parse_chat, parse_embeddings])
def test_what_is_no_json_object_is_invalid_json(parse: Callable[[bytes], Any], sent: bytes) -> None:
    assert refusal(parse, sent).code == "invalid_json"


@pytest.mark.parametrize("depth", [100, 198, 201, 260, 1_000, 1_023])
def test_a_body_that_could_not_be_written_again_is_refused_as_too_deep(depth: int) -> None:
    """A request that can be read but not written again must be refused before money is held, because it could not be
    sent."""
    nested = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": %s}'
    for deep in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        if depth < 200:
            orjson.dumps(parse_chat(nested % deep).data)
        else:
            assert refusal(parse_chat, nested % deep).code == "invalid_json"


def test_many_brackets_that_are_not_deep_are_welcome() -> None:
    parse_chat(body(messages=[{"role": "user", "content": "[{" * 5_000}] * 3))
    parse_chat(body(messages=HI * 1_000))


# -- chat


def test_a_plain_request() -> None:
    parsed = parse_chat(body())
    assert (parsed.model, parsed.stream, parsed.choices, parsed.max_tokens, parsed.media) == ("m", False, 1, None, ())
    assert parsed.data == {"model": "m", "messages": HI}


def test_everything_that_governance_reads() -> None:
    parsed = parse_chat(
        body(
            stream=True, stream_options={"include_usage": True}, n=3, max_tokens=50, max_completion_tokens=40, user="ann",
            service_tier="flex", tools=[{"type": "function", "function": {"name": "f"}}],
            prediction={"type": "content", "content": "x" * 100},
        )
    )  # fmt: skip
    assert (parsed.stream, parsed.wants_usage, parsed.choices, parsed.max_tokens) == (True, True, 3, 40)
    assert (parsed.user, parsed.service_tier) == ("ann", "flex")
    assert parsed.extra_output >= 100
    assert parsed.allowance >= 600


def test_nulls_are_as_good_as_nothing() -> None:
    names = ("n", "max_tokens", "max_completion_tokens", "stream", "stream_options", "user", "tools", "functions",
             "service_tier", "modalities", "prediction", "response_format")  # fmt: skip
    parsed, plain = parse_chat(body(**dict.fromkeys(names))), parse_chat(body())
    assert (parsed.input_bound, parsed.max_tokens, parsed.choices) == (plain.input_bound, None, 1)


WRONG_CHAT: list[tuple[str, list[Any]]] = [
    ("model", [None, "", 1, ["m"], "x" * 201, "a\nb", "a\0b"]),
    ("messages", [None, [], {}, "Hi", [1], [None], [[]], [{}], [{"role": 1}], [{"role": None, "content": "x"}]]),
    (
        "messages",
        [[{"role": "user", "content": wrong}] for wrong in (1, True, {}, {"type": "text"}, [1], ["x"], [None])],
    ),
    ("stream", [0, 1, "true", [], {}]),
    ("stream_options", [True, 1, "x", []]),
    ("n", [0, -1, 129, 1.0, "2", True, [], 10**30, 1e300]),
    ("max_tokens", [0, -1, -(10**30), MAX_TOKENS_CEILING + 1, 10**30, 1.5, "10", True, [], {}]),
    ("max_completion_tokens", [0, -5, MAX_TOKENS_CEILING + 1, "10", False]),
    ("user", [1, [], "x" * 129, "a\0b", "a\tb", "\ufffd"]),
    ("tools", [1, "x", {}, [1], [None], [{}], [{"type": "web_search"}], [{"type": "mcp"}], [{"type": ["function"]}]]),
    ("functions", [1, "x", {}, [1], [None]]),
    ("service_tier", ["scale", "ultrafast", 1, [], {}]),
    ("modalities", [["text", "audio"], ["image"], [], "text", 1]),
    ("audio", [{"voice": "alloy", "format": "wav"}, 1, {}]),
    ("moderation", [{"model": "omni-moderation-latest"}]),
    ("prompt_cache_retention", ["48h", 1, [], {}]),
    ("prompt_cache_options", [{"ttl": "24h"}, {"mode": "all"}, {"breakpoints": 3}, {"ttl": ["30m"]}, "30m", [], 1]),
    (
        "web_search_options",
        [
            1,
            "low",
            [],
            {"search_context_size": "huge"},
            {"search_context_size": 1},
            {"search_type": "pro"},
            {"image_results_enhanced_relevance": True},
            {"user_location": "Bern"},
        ],
    ),
    ("metadata", [1, "x", [], {"tags": [1]}, {"tags": ["x" * 129]}, {"tags": ["a\tb"]}, {"tags": ["x"] * 33}]),
]


@pytest.mark.parametrize(("param", "wrong"), [(param, wrong) for param, all_ in WRONG_CHAT for wrong in all_], ids=repr)
def test_a_wrong_parameter_is_named(param: str, wrong: Any) -> None:
    error = refusal(parse_chat, body(**{param: wrong}))
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    "name",
    ["api_base", "api_key", "base_url", "fallbacks", "input_cost_per_token", "model_list", "mock_response", "num_retries",
     "timeout", "extra_body", "extra_headers", "web_search", "litellm_metadata", "custom_llm_provider",
     "Max_Tokens", "", "x" * 500],
)  # fmt: skip
def test_an_unknown_parameter_is_refused_by_name(name: str) -> None:
    for parse, sent in ((parse_chat, body(**{name: None})), (parse_embeddings, embedding("x", **{name: 1}))):
        error = refusal(parse, sent)
        assert (error.code, error.param) == ("unknown_parameter", name[:64])


def test_what_is_known_but_has_no_price_may_be_null() -> None:
    parse_chat(body(audio=None, moderation=None, prompt_cache_options=None, prompt_cache_retention=None, metadata=None))
    assert refusal(parse_chat, body(moderation={"model": "omni-moderation-latest"})).code == "not_priced"


@pytest.mark.parametrize("size", [None, "low", "medium", "high"])
def test_the_size_of_a_search_is_read(size: str | None) -> None:
    parsed = parse_chat(body(web_search_options={"search_context_size": size, "search_type": None}))
    assert (parsed.search_context, parsed.search_options) == (size, True)
    assert parsed.data["web_search_options"] == {"search_context_size": size, "search_type": None}
    plain = parse_chat(body())
    assert (plain.search_context, plain.search_options) == (None, False)


def test_i1_the_place_that_a_search_is_made_from_counts_as_text() -> None:
    place = {"type": "approximate", "approximate": {"city": "x" * 1000}}
    parsed = parse_chat(body(web_search_options={"user_location": place}))
    assert parsed.input_bound >= parse_chat(body()).input_bound + 1000


def test_an_option_of_a_search_whose_price_is_unknown_is_named() -> None:
    error = refusal(parse_chat, body(web_search_options={"search_type": "pro"}))
    assert (error.code, "'search_type'" in error.message) == ("not_priced", True)


def test_caches_with_a_known_price_are_welcome() -> None:
    for retention in ("in_memory", "24h"):
        parse_chat(body(prompt_cache_retention=retention, prompt_cache_options={"mode": "explicit", "ttl": "30m"}))


@pytest.mark.parametrize(
    ("metadata", "tags", "passed_on"),
    [
        ({"tags": ["job 7", "night ", "job 7", ""]}, ("job 7", "night"), None),
        ({"tags": ["a"], "order": "9"}, ("a",), {"order": "9"}),
        ({"tags": []}, (), None),
        ({"tags": "a,b"}, (), {"tags": "a,b"}),
        ({"order": "9"}, (), {"order": "9"}),
        ({}, (), {}),
    ],
)
def test_tags_in_the_metadata_are_for_treasurer_alone(
    metadata: dict[str, Any], tags: tuple[str, ...], passed_on: object
) -> None:
    parsed = parse_chat(body(metadata=metadata))
    assert (parsed.tags, parsed.data.get("metadata")) == (tags, passed_on)


def test_metadata_of_embeddings_holds_tags_and_nothing_else() -> None:
    parsed = parse_embeddings(embedding("x", metadata={"tags": ["a"]}))
    assert (parsed.tags, "metadata" in parsed.data) == (("a",), False)
    error = refusal(parse_embeddings, embedding("x", metadata={"tags": ["a"], "order": "9"}))
    assert (error.code, error.param) == ("unsupported_parameter", "metadata")


@pytest.mark.parametrize(
    "part",
    [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, {"type": "audio"},
     {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}, {"type": "video_url", "video_url": {}},
     {"type": "container_upload"}, {"type": "server_tool_use"}, {"type": None}, {"type": ["text"]}, {}],
)  # fmt: skip
def test_a_part_that_cannot_be_bounded_is_refused(part: dict[str, Any]) -> None:
    """LiteLLM passes some of these parts on, and a short URL can become a document of a hundred pages."""
    error = refusal(parse_chat, body(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]))
    assert error.param == "messages"


@pytest.mark.parametrize("fields", [{"audio": {"id": "a"}}, {"images": [{"image_url": {"url": "https://x/y"}}]}])
def test_media_beside_the_content_is_refused(fields: dict[str, Any]) -> None:
    assert refusal(parse_chat, body(messages=[{"role": "assistant", "content": "x"} | fields])).param == "messages"
    parse_chat(body(messages=[{"role": "assistant", "content": "x"} | dict.fromkeys(fields)]))


@pytest.mark.parametrize(
    "fields",
    [{"tools": [{"type": "function", "googleSearch": {}}]}, {"tools": [{"type": "function", "function": None}]},
     {"tools": [{"type": "custom", "urlContext": {}}]}, {"functions": [{"googleSearch": {}}]}, {"functions": [{}]}],
    ids=repr,
)  # fmt: skip
def test_a_hosted_tool_in_disguise_is_refused(fields: dict[str, Any]) -> None:
    """LiteLLM drops the type and reads `{"googleSearch": {}}` as Google's own tool, which is billed separately."""
    assert refusal(parse_chat, body(**fields)).param in fields


TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": TEXT, "description": TEXT, "parameters": st.dictionaries(TEXT, TEXT)}
            ),
        }
    ),
    max_size=3,
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=3)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": TEXT, "content": st.one_of(st.none(), TEXT, PARTS)}, optional={"name": TEXT}),
    min_size=1,
    max_size=4,
)


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)


@given(MESSAGES, TOOLS, st.dictionaries(TEXT, TEXT, max_size=3), st.booleans())
@settings(max_examples=examples(150), deadline=None)
def test_i1_the_input_bound_is_above_the_utf8_bytes_of_all_text(
    messages: list[Any], tools: list[Any], schema: dict[str, str], ascii_only: bool
) -> None:
    fields = {"model": "m", "messages": messages, "tools": tools, "response_format": schema}
    parsed = parse_chat(json.dumps(fields, ensure_ascii=ascii_only).encode())
    size = sum(len(text.encode()) for text in strings([messages, tools, schema]))
    allowance = 8 * len(messages) + (500 + 32 * len(tools) if tools else 0)
    assert parsed.input_bound >= size + allowance
    assert parsed.input_bound == parsed.text_bytes + parsed.allowance


@given(MESSAGES, MESSAGES, TOOLS)
@settings(max_examples=examples(50), deadline=None)
def test_more_messages_and_tools_are_never_bounded_lower(
    messages: list[Any], more: list[Any], tools: list[Any]
) -> None:
    one = parse_chat(body(messages=messages)).input_bound
    assert one < parse_chat(body(messages=messages + more)).input_bound
    assert one <= parse_chat(body(messages=messages, tools=tools)).input_bound


def test_a_response_format_is_allowed_for_like_a_tool() -> None:
    """For Anthropic, LiteLLM turns the format into a tool, and the provider adds its prompt for tools."""
    plain, formatted = parse_chat(body()), parse_chat(body(response_format={"type": "json_object"}))
    assert formatted.allowance - plain.allowance >= 600


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": "https://x/" + "A" * 10_000}, Kind.IMAGE),
        ({"type": "image_url", "image_url": {"url": "https://x/" + "A" * 10_000, "detail": "low"}}, Kind.IMAGE),
        ({"type": "image_url", "image_url": {"url": data_url("image/png", png(9, 9) + b"A" * 10_000)}}, Kind.IMAGE),
        ({"type": "file", "file": {"file_data": data_url("audio/wav", wav(1))}}, Kind.AUDIO),
        ({"type": "file", "file": {"file_data": data_url("text/plain", b"A" * 10_000)}}, Kind.TEXT),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_and_files_are_counted_apart_from_the_text(part: dict[str, Any], kind: Kind) -> None:
    text = "naïve 文 🙂" * 20
    parsed = parse_chat(body(messages=[{"role": "user", "content": [{"type": "text", "text": text}, part, part]}]))
    assert [medium.kind for medium in parsed.media] == [kind, kind]
    assert len(text.encode()) <= parsed.text_bytes < 2 * len(text.encode()) + 500


def test_i1_a_files_name_is_text() -> None:
    """OpenAI shows the name to the model, so it costs tokens."""
    part = {"type": "file", "file": {"file_data": data_url("text/plain", b"A"), "filename": "x" * 5_000}}
    assert parse_chat(body(messages=[{"role": "user", "content": [part]}])).input_bound > 5_000


# -- caches


def cached(**control: Any) -> dict[str, Any]:
    return {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"} | control}


@pytest.mark.parametrize(
    ("fields", "writes"),
    [
        ({}, "none"),
        ({"messages": [{"role": "user", "content": 'a text with "cache_control": {"ttl": "1h"} in it'}]}, "none"),
        ({"messages": [{"role": "user", "content": [cached()]}]}, "5m"),
        ({"messages": [{"role": "user", "content": [cached(ttl="5m")]}]}, "5m"),
        ({"messages": [{"role": "user", "content": [cached(ttl="5m"), cached(ttl="1h")]}]}, "1h"),
        ({"messages": [{"role": "user", "content": [cached(ttl=3600)]}]}, "1h"),
        ({"messages": [{"role": "user", "content": "x", "cache_control": {"type": "ephemeral"}}]}, "5m"),
        ({"tools": [{"type": "function", "function": {"name": "f"}, "cache_control": {"ttl": "1h"}}]}, "1h"),
        ({"tools": [{"type": "function", "function": {"name": "f", "cache_control": {}}}]}, "5m"),
    ],
)
def test_i1_each_request_for_a_cache_is_seen(fields: dict[str, Any], writes: str) -> None:
    assert parse_chat(body(**fields)).cache_writes == writes


# -- embeddings


@pytest.mark.parametrize(
    ("given_input", "least"),
    [("abc", 3), ("文", 3), (["ab", "cd"], 4), ([1, 2, 3], 3), ([[1, 2], [3]], 3), (["a", [1]], 2), ([5] * 5000, 5000)],
    ids=lambda value: repr(value)[:20],
)
def test_an_embedding_is_bounded_by_its_bytes_or_tokens(given_input: Any, least: int) -> None:
    parsed = parse_embeddings(embedding(given_input))
    assert parsed.max_tokens == 0
    assert parsed.input_bound >= least


@given(st.lists(TEXT.filter(bool), min_size=1))
@settings(max_examples=examples(50), deadline=None)
def test_i1_an_embeddings_bound_is_above_its_bytes(texts: list[str]) -> None:
    assert parse_embeddings(embedding(texts)).input_bound >= sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize(
    ("param", "fields"),
    [("input", {"input": wrong}) for wrong in
     (None, "", True, {}, [], [""], [None], [[]], [["x"]], [1, "x"], [True, False], [1.5], [[1.5]], ["x"] * 2049, [True] * 3000)]
    + [("dimensions", {"dimensions": wrong}) for wrong in (0, -1, 1.5, "3", True, 10**9)]
    + [("encoding_format", {"encoding_format": wrong}) for wrong in ("hex", 1, [], {})]
    + [("model", {"model": wrong}) for wrong in (None, 1)] + [("user", {"user": 3})],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_wrong_parameter_of_an_embedding_is_named(param: str, fields: dict[str, Any]) -> None:
    error = refusal(parse_embeddings, embedding("x", **fields))
    assert (error.status, error.param) == (400, param)


# -- random bodies

NAMES = st.sampled_from(
    ["model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "tools", "functions",
     "response_format", "prediction", "service_tier", "modalities", "user", "input", "dimensions", "encoding_format",
     "role", "content", "type", "text", "image_url", "file", "function", "name", "temperature", "metadata", "audio"]
)  # fmt: skip
WORDS = st.sampled_from(["text", "image_url", "file", "function", "custom", "user", "low", "flex", "auto", "x", ""])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), WORDS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(NAMES, WORDS), inner, max_size=4)),
    max_leaves=12,
)
REQUESTS = st.one_of(
    st.dictionaries(NAMES, JSON, max_size=6),
    st.builds(
        lambda plain, other: plain | other,
        st.fixed_dictionaries({"model": st.just("m"), "messages": MESSAGES}),
        st.dictionaries(NAMES.filter(lambda name: name not in ("input", "role", "type")), JSON, max_size=2),
    ),
    st.builds(lambda other: {"model": "m", "input": other}, JSON),
    st.builds(
        lambda parts: {"model": "m", "messages": [{"role": "user", "content": parts}]}, st.lists(JSON, max_size=3)
    ),
)


@given(REQUESTS)
@settings(max_examples=examples(400), deadline=None)
def test_any_json_is_a_request_or_a_4xx_that_says_what_is_wrong(fields: dict[str, Any]) -> None:
    sent = json.dumps(fields).encode()
    for parse in (parse_chat, parse_embeddings):
        try:
            parsed = parse(sent)
        except InvalidRequest as refused:
            said = refused
        else:
            said = None
            assert parsed.input_bound >= 0
            assert parsed.text_bytes >= 0
            assert parsed.extra_output >= 0
            orjson.dumps(parsed.data)
        assert said is None or 400 <= said.status < 500
        assert said is None or said.param is not None or said.code == "invalid_json"
