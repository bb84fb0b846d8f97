"""Anthropic's own SDK against the simulated provider."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from tests.gateway.stack.simulated_provider.running import Running

HELLO: Any = [{"role": "user", "content": "Hello there"}]
INPUT = 8
TOOL: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"days": {"type": "integer", "minimum": 3}}, "required": ["days"]},
}


@pytest.fixture
async def client(provider: Running) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=f"{provider.url}/anthropic", api_key="k", max_retries=0) as made:
        yield made


async def test_a_message_and_its_bill(client: anthropic.AsyncAnthropic, provider: Running) -> None:
    made = await client.messages.create(model="claude-sim", messages=HELLO, max_tokens=10)
    assert made.content[0].type == "text"
    assert made.stop_reason == "max_tokens"
    assert (made.usage.input_tokens, made.usage.output_tokens) == (INPUT, 10)
    line = provider.line()
    assert line["cost_nano"] == INPUT * 3000 + 10 * 15000
    assert (line["id"], line["face"]) == (made.id, "anthropic")


async def test_a_stream_has_the_true_sequence_of_events(client: anthropic.AsyncAnthropic, provider: Running) -> None:
    whole: Any = await client.messages.create(model="claude-sim", messages=HELLO, max_tokens=10)
    kinds: list[str] = []
    stream = await client.messages.create(model="claude-sim", messages=HELLO, max_tokens=10, stream=True)
    async for event in stream:
        if not kinds or kinds[-1] != event.type:
            kinds.append(event.type)
        if event.type == "message_start":
            assert event.message.usage.input_tokens == INPUT
        if event.type == "message_delta":
            assert event.usage.output_tokens == 10
            assert event.delta.stop_reason == "max_tokens"
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    async with client.messages.stream(model="claude-sim", messages=HELLO, max_tokens=10) as helper:
        final = await helper.get_final_message()
    assert [block.text for block in final.content if block.type == "text"] == [whole.content[0].text]
    costs = {line["cost_nano"] for line in provider.lines()}
    assert len(costs) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools(client: anthropic.AsyncAnthropic, streamed: bool) -> None:
    asked: Any = {
        "model": "claude-sim",
        "messages": HELLO,
        "max_tokens": 99,
        "tools": [TOOL],
        "tool_choice": {"type": "any"},
    }
    if streamed:
        async with client.messages.stream(**asked) as stream:
            made: Any = await stream.get_final_message()
    else:
        made = await client.messages.create(**asked)
    assert made.stop_reason == "tool_use"
    block = made.content[0]
    assert block.name == "get_weather"
    assert block.input["days"] >= 3
    result: Any = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
    history: Any = [*HELLO, {"role": "assistant", "content": made.content}, {"role": "user", "content": [result]}]
    after = await client.messages.create(model="claude-sim", messages=history, max_tokens=50, tools=[TOOL])
    assert after.content[0].type == "text"


@pytest.mark.parametrize(
    "note", ["Note: minimum number of items: 4, maximum number of items: 4.", "Four.\n\n{minItems: 4, maxItems: 4}"]
)
async def test_a_schema_is_answered_and_bounds_in_its_descriptions_too(
    client: anthropic.AsyncAnthropic, note: str
) -> None:
    number = {"type": "integer", "description": "Note: exclusive minimum value: 6, maximum value: 7."}
    array = {"type": "array", "items": number, "description": note}
    schema = {"type": "object", "properties": {"items": array}, "required": ["items"], "additionalProperties": False}
    wanted: Any = {"format": {"type": "json_schema", "schema": schema}}
    made: Any = await client.messages.create(
        model="claude-sim", messages=HELLO, max_tokens=90, extra_body={"output_config": wanted}
    )
    assert json.loads(made.content[0].text) == {"items": [7, 7, 7, 7]}


async def test_cached_and_written_tokens(client: anthropic.AsyncAnthropic, provider: Running) -> None:
    text = 'Hello there [[sim: {"cached_tokens": 10, "cache_write_tokens": 8, "cache_write_1h_tokens": 3}]]'
    ask: Any = [{"role": "user", "content": text}]
    made = await client.messages.create(model="claude-sim", messages=ask, max_tokens=2)
    usage = made.usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (10, 8)
    line = provider.line()
    assert usage.input_tokens == line["input_tokens"] - 18
    assert line["cost_nano"] == usage.input_tokens * 3000 + 10 * 300 + 5 * 3750 + 3 * 6000 + 2 * 15000


async def test_errors_have_its_shape(client: anthropic.AsyncAnthropic, provider: Running) -> None:
    ask: Any = [{"role": "user", "content": '[[sim: {"status": 529}]]'}]
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(model="claude-sim", messages=ask, max_tokens=2)
    assert caught.value.status_code == 529
    assert "overloaded_error" in str(caught.value)
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.create(model="claude-sim", messages=[], max_tokens=2)
    assert provider.lines() == []


async def test_counting_tokens_is_free(client: anthropic.AsyncAnthropic, provider: Running) -> None:
    assert (await client.messages.count_tokens(model="claude-sim", messages=HELLO)).input_tokens == INPUT
    assert provider.lines() == []
