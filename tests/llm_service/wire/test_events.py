"""However a stream is cut into chunks, the caller gets the same bytes and settlement the same figures."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.wire.events import EventScanner, objects
from tests.examples import examples

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
DONE = b"data: [DONE]"


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode()


def delta(text: str | None, index: int = 0, **fields: object) -> bytes:
    return event({"choices": [{"index": index, "delta": {"content": text} | fields}]})


def usage(prompt: int = 3, completion: int = 4, **fields: Any) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}} | fields)


EVENTS = st.lists(
    st.one_of(
        st.builds(delta, st.one_of(st.none(), TEXT)),
        st.builds(lambda text: event({"choices": [{"delta": {"content": text}}], "usage": None}), TEXT),
        st.builds(usage, st.integers(0, 9), st.integers(0, 9)),
        st.builds(lambda tier: usage(service_tier=tier), TEXT),
        st.builds(lambda text: event({"error": {"message": text, "code": "x"}}), TEXT),
        st.sampled_from([DONE, b": ping", b"event: x\ndata: {}", b'data: {"usage" broken', b"data: 7", b"data: [1]"]),
        st.builds(lambda text: b": " + text.encode().replace(b"\n", b"").replace(b"\r", b"") + b'"usage"', TEXT),
    ),
    max_size=8,
)


def scan(stream: bytes, cuts: list[int], *, hide: bool) -> tuple[bytes, EventScanner]:
    scanner = EventScanner(hide_usage=hide)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    forwarded = b"".join(scanner.feed(stream[start:end]) for start, end in pairwise(edges))
    return forwarded, scanner


def same(item: bytes) -> object:
    """An event as JSON, for comparisons, because events with usage are written anew."""
    try:
        return json.loads(item.removeprefix(b"data: "))
    except ValueError:
        return item


def known(scanner: EventScanner) -> tuple[object, ...]:
    return scanner.usage, scanner.service_tier, scanner.error, scanner.finished, scanner.text(), scanner.forwarded()


@given(EVENTS, st.lists(st.integers(0, 2000), max_size=12), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
@settings(max_examples=examples(300), deadline=None)
def test_any_chunking_forwards_and_finds_the_same(
    events: list[bytes], cuts: list[int], line: bytes, hide: bool
) -> None:
    stream = b"".join(item.replace(b"\n", line) + line * 2 for item in events)
    whole, at_once = scan(stream, [], hide=hide)
    pieces, in_pieces = scan(stream, cuts, hide=hide)
    assert pieces == whole
    assert known(in_pieces) == known(at_once)
    by_byte, bytewise = scan(stream, list(range(len(stream))), hide=hide)
    assert by_byte == whole
    assert known(bytewise) == known(at_once)


@given(EVENTS, st.lists(st.integers(0, 2000), max_size=12))
@settings(max_examples=examples(200), deadline=None)
def test_only_the_usage_that_was_not_asked_for_is_left_out(events: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(item + b"\n\n" for item in events)
    passed = [item for item in events if not item.startswith(b'data: {"error": {')]
    shown = scan(stream, cuts, hide=False)[0].split(b"\n\n")
    assert [same(item) for item in shown] == [same(item) for item in [*passed, b""]]
    kept = [item for item in passed if not item.startswith(b'data: {"choices": [], "usage": {')]
    hidden, scanner = scan(stream, cuts, hide=True)
    assert hidden == b"".join(item + b"\n\n" for item in kept)
    assert scanner.usage is None or len(kept) < len(passed)  # a report of usage before the last text does not count


def test_an_event_is_forwarded_as_soon_as_it_is_whole() -> None:
    scanner = EventScanner(hide_usage=True)
    assert scanner.feed(delta("a") + b"\n") == b""
    assert not scanner.begun
    assert scanner.feed(b"\n" + delta("b")[:5]) == delta("a") + b"\n\n"
    assert scanner.begun
    assert scanner.feed(delta("b")[5:] + b"\n\n") == delta("b") + b"\n\n"


def test_the_last_report_is_what_counts() -> None:
    _, scanner = scan(
        b"".join(item + b"\n\n" for item in (usage(1, 1), usage(5, 6, service_tier="flex"), DONE)), [], hide=True
    )
    assert scanner.usage == {"prompt_tokens": 5, "completion_tokens": 6}
    assert scanner.service_tier == "flex"
    assert scanner.finished


def test_a_usage_that_comes_with_a_choice_is_not_hidden() -> None:
    last = event(
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    )
    forwarded, scanner = scan(last + b"\n\n", [], hide=True)
    assert forwarded == last + b"\n\n"
    assert scanner.usage is not None


def test_litellms_empty_choice_around_a_usage_is_hidden_with_it() -> None:
    frame = (
        event({"choices": [{"index": 0, "delta": {}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}) + b"\n\n"
    )
    assert scan(frame, [], hide=True)[0] == b""
    shown = json.loads(scan(frame, [], hide=False)[0].removeprefix(b"data: "))
    assert shown == {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


@pytest.mark.parametrize("choice", [{"delta": {}}, {"delta": {}, "finish_reason": "stop"}], ids=["alone", "at the end"])
def test_a_caller_sees_the_providers_own_figure_of_the_cost_and_not_litellms(choice: dict[str, Any]) -> None:
    report = {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.25}
    sent = event({"id": "c", "choices": [choice], "usage": report | {"litellm_cost": 0.5}}) + b"\n\n"
    forwarded, scanner = scan(sent, [], hide=False)
    assert scanner.usage == report | {"litellm_cost": 0.5}  # settlement still gets both figures
    choices = [choice] if "finish_reason" in choice else []
    assert json.loads(forwarded.removeprefix(b"data: ")) == {"id": "c", "choices": choices, "usage": report}


def test_text_that_speaks_of_usage_and_done_is_only_text() -> None:
    said = delta('"usage" "error" [DONE] data: [DONE]')
    forwarded, scanner = scan(said + b"\n\n", [], hide=True)
    assert forwarded == said + b"\n\n"
    assert (scanner.usage, scanner.error, scanner.finished) == (None, None, False)


def test_an_error_event_is_remembered_and_not_forwarded() -> None:
    forwarded, scanner = scan(event({"error": {"message": "m"}}) + b"\n\n", [], hide=True)
    assert forwarded == b""
    assert scanner.error == {"message": "m"}
    assert not scanner.begun
    assert not scanner.finished


def test_an_event_that_was_cut_is_not_forwarded() -> None:
    forwarded, scanner = scan(delta("a") + b"\n\n" + delta("b"), [], hide=True)
    assert forwarded == delta("a") + b"\n\n"
    assert scanner.text() == ("a", 1)


def test_the_text_of_every_choice_with_its_reasoning_and_tool_calls() -> None:
    calls = [{"index": 0, "function": {"name": "look", "arguments": '{"a'}}, {"function": {"arguments": '":1}'}}]
    stream = [
        delta("Hi"),
        delta(None, reasoning_content="hm"),
        delta("yo", 1),
        delta(None, tool_calls=calls),
        delta(None, refusal="no"),
    ]
    _, scanner = scan(b"".join(item + b"\n\n" for item in [*stream, usage(), DONE]), [7, 50], hide=True)
    text, parts = scanner.text()
    _, older = scan(delta(None, function_call={"name": "look", "arguments": "{}"}) + b"\n\n", [], hide=True)
    assert older.text() == ("look{}", 2)
    assert text == 'Hihmyolook{"a":1}no'
    assert parts == 7


def test_an_answer_that_is_too_long_to_keep_is_still_forwarded() -> None:
    scanner = EventScanner(hide_usage=True)
    long = delta("x" * 1024 * 1024) + b"\n\n"
    assert all(scanner.feed(long) == long for _ in range(9))
    assert scanner.forwarded() is None
    assert scanner.text() == ("x" * 9 * 1024 * 1024, 9)  # an estimate must count the whole text
    assert scanner.feed(usage() + b"\n\n") == b""
    assert scanner.usage is not None


def test_of_what_nobody_asks_for_again_only_the_text_is_kept() -> None:
    stream = [delta(f" word{number}") + b"\n\n" for number in range(5000)]
    kept, boiled = (EventScanner(hide_usage=True, keeps=keeps) for keeps in (True, False))
    for events in stream:
        assert kept.feed(events) == boiled.feed(events) == events
    assert kept.forwarded() == b"".join(stream)
    assert boiled.forwarded() is None
    assert boiled.text() == kept.text() == ("".join(f" word{number}" for number in range(5000)), 5000)
    assert sum(map(len, boiled._kept)) <= 70 * 1024  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("value", [None, 1, "x", {}, {"a": 1}, [1, None, "x", []]])
def test_objects_of_what_has_none(value: object) -> None:
    assert list(objects(value)) == []
