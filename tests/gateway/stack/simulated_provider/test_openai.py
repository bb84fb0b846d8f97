"""OpenAI's own SDK against the simulated provider."""

import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionToolParam
from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.models import override_allow_model_requests
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.gateway.stack.simulated_provider.running import Running

HELLO: Any = [{"role": "user", "content": "Hello there"}]  # 2 tokens, 3 for the message, 3 for the answer
INPUT = 8


@pytest.fixture(params=["openai", "local"])
async def client(request: pytest.FixtureRequest, provider: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    base = f"{provider.url}/{request.param}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="sk-test", max_retries=0) as made:
        yield made


async def test_an_answer_and_its_bill(client: openai.AsyncOpenAI, provider: Running) -> None:
    made = await client.chat.completions.create(model="gpt-sim", messages=HELLO)
    text = made.choices[0].message.content
    assert text
    assert made.choices[0].finish_reason == "stop"
    assert made.usage is not None
    assert made.usage.prompt_tokens == INPUT
    assert 20 <= made.usage.completion_tokens <= 120
    line = provider.line()
    assert line["id"] == made.id
    assert (line["input_tokens"], line["output_tokens"]) == (INPUT, made.usage.completion_tokens)
    assert line["cost_nano"] == INPUT * 1000 + made.usage.completion_tokens * 4000
    assert line["state"] == "complete"
    again = await client.chat.completions.create(model="gpt-sim", messages=HELLO)
    assert again.choices[0].message.content == text
    other = await client.chat.completions.create(model="gpt-sim", messages=[{"role": "user", "content": "Hi"}])
    assert other.choices[0].message.content != text


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("most", [1, 7, 19])
async def test_max_tokens_is_obeyed(client: openai.AsyncOpenAI, provider: Running, name: str, most: int) -> None:
    options: dict[str, Any] = {name: most}
    made = await client.chat.completions.create(model="gpt-sim", messages=HELLO, **options)
    assert made.usage is not None
    assert made.usage.completion_tokens == most
    assert made.choices[0].finish_reason == "length"
    assert provider.line()["output_tokens"] == most


async def test_a_stream_says_the_same_as_an_answer(client: openai.AsyncOpenAI, provider: Running) -> None:
    whole = await client.chat.completions.create(model="gpt-sim", messages=HELLO, n=2)
    stream = await client.chat.completions.create(
        model="gpt-sim", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, finishes, usages = ["", ""], ["", ""], []
    async for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert finishes == ["stop", "stop"]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1] == whole.usage
    first, second = provider.lines()
    assert first["cost_nano"] == second["cost_nano"] > 0
    assert second["state"] == "complete"


async def test_usage_is_streamed_only_when_asked_for(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="gpt-sim", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
            "required": ["city", "unit"],
        },
    },
}
CLOCK: ChatCompletionToolParam = {"type": "function", "function": {"name": "clock"}}


async def test_a_tool_is_called_when_it_is_named_and_then_answered(client: openai.AsyncOpenAI) -> None:
    ask: Any = [{"role": "user", "content": "Use get_weather and clock please"}]
    made = await client.chat.completions.create(model="gpt-sim", messages=ask, tools=[WEATHER, CLOCK])
    message = made.choices[0].message
    assert made.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    calls: list[Any] = list(message.tool_calls)
    assert [call.function.name for call in calls] == ["get_weather", "clock"]
    assert json.loads(calls[0].function.arguments)["unit"] in ("c", "f")
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "22"} for call in calls]
    history: Any = [*ask, message.model_dump(exclude_none=True), *results]
    after = await client.chat.completions.create(model="gpt-sim", messages=history, tools=[WEATHER, CLOCK])
    assert after.choices[0].message.tool_calls is None
    assert after.choices[0].message.content
    one = await client.chat.completions.create(
        model="gpt-sim", messages=ask, tools=[WEATHER, CLOCK], parallel_tool_calls=False
    )
    assert one.choices[0].message.tool_calls is not None
    assert len(one.choices[0].message.tool_calls) == 1


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("auto", []),
        ("none", []),
        ("required", ["clock"]),  # the last tool that was offered
        ({"type": "function", "function": {"name": "get_weather"}}, ["get_weather"]),
    ],
)
async def test_tool_choice(client: openai.AsyncOpenAI, choice: Any, names: list[str]) -> None:
    made = await client.chat.completions.create(
        model="gpt-sim", messages=HELLO, tools=[WEATHER, CLOCK], tool_choice=choice
    )
    calls: Any = made.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == names


async def test_streamed_tool_calls_are_put_together(client: openai.AsyncOpenAI, provider: Running) -> None:
    async with client.chat.completions.stream(
        model="gpt-sim", messages=HELLO, tools=[WEATHER], tool_choice="required"
    ) as stream:
        final = await stream.get_final_completion()
    calls: Any = final.choices[0].message.tool_calls
    whole = await client.chat.completions.create(
        model="gpt-sim", messages=HELLO, tools=[WEATHER], tool_choice="required"
    )
    wanted: Any = whole.choices[0].message.tool_calls
    assert [(call.id, call.function.arguments) for call in calls] == [
        (call.id, call.function.arguments) for call in wanted
    ]
    streamed, plain = provider.lines()
    assert streamed["output_tokens"] == plain["output_tokens"]


async def test_a_call_is_cut_by_max_tokens_too(client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.create(
        model="gpt-sim", messages=HELLO, tools=[WEATHER], tool_choice="required", max_tokens=4
    )
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert made.usage.completion_tokens == 4


class Item(BaseModel):
    name: str = Field(min_length=2, max_length=30)
    score: int = Field(ge=1, le=5)


class Digest(BaseModel):
    items: list[Item] = Field(min_length=2, max_length=4)
    mood: str | None


async def test_structured_output(client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.parse(model="gpt-sim", messages=HELLO, response_format=Digest)
    parsed = made.choices[0].message.parsed
    assert isinstance(parsed, Digest)
    free = await client.chat.completions.create(
        model="gpt-sim", messages=HELLO, response_format={"type": "json_object"}
    )
    assert json.loads(free.choices[0].message.content or "")


async def test_a_pydantic_ai_agent_uses_a_tool_and_returns_its_type(provider: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{provider.url}/openai/v1", api_key="k", max_retries=0) as client:
        model = OpenAIChatModel("gpt-sim", provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, output_type=Digest, retries=0)
        asked: list[str] = []

        @agent.tool_plain
        def read_feed(url: str, most: int) -> str:  # pyright: ignore[reportUnusedFunction]
            asked.append(f"{url} {most}")
            return "the sea is calm"

        with override_allow_model_requests(True):
            result = await agent.run("Call read_feed and sum it up")
            streamed = agent.run_stream("Sum it up")
            async with streamed as stream:
                output = await stream.get_output()
    assert isinstance(result.output, Digest)
    assert isinstance(output, Digest)
    assert len(asked) == 1
    lines = provider.lines()
    assert len(lines) == 3
    used = result.usage
    assert (used.input_tokens, used.output_tokens) == (
        sum(line["input_tokens"] for line in lines[:2]),
        sum(line["output_tokens"] for line in lines[:2]),
    )


async def test_images_are_billed_by_the_fixed_rule(client: openai.AsyncOpenAI, provider: Running) -> None:
    url = "data:image/png;base64," + "A" * 4000
    for detail in ("low", "high"):
        image: Any = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
        content: Any = [{"type": "text", "text": "Hello there"}, image]
        await client.chat.completions.create(model="gpt-sim", messages=[{"role": "user", "content": content}])
    assert [line["input_tokens"] for line in provider.lines()] == [INPUT + 85, INPUT + 765]


async def test_embeddings(client: openai.AsyncOpenAI, provider: Running) -> None:
    made = await client.embeddings.create(model="embed-sim", input=["Hello there", "Hello"], dimensions=8)
    assert [len(item.embedding) for item in made.data] == [8, 8]
    assert sum(value * value for value in made.data[0].embedding) == pytest.approx(1)
    assert made.usage.prompt_tokens == 3
    floats = await client.embeddings.create(
        model="embed-sim", input="Hello there", dimensions=8, encoding_format="float"
    )
    assert floats.data[0].embedding == pytest.approx(made.data[0].embedding, abs=1e-6)
    raw = await client.embeddings.with_raw_response.create(
        model="embed-sim", input="Hello there", dimensions=8, encoding_format="base64"
    )
    encoded = json.loads(raw.text)["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(encoded)) == pytest.approx(floats.data[0].embedding)
    assert [line["cost_nano"] for line in provider.lines()] == [60, 40, 40]
    assert provider.lines()[2]["id"] == raw.headers["x-request-id"]
    full = await client.embeddings.create(model="embed-sim", input=[[1, 2, 3], [4]])
    assert len(full.data[1].embedding) == 1536
    assert full.usage.prompt_tokens == 4


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["gpt-sim"]


async def test_a_service_tier_is_billed_at_its_price(client: openai.AsyncOpenAI, provider: Running) -> None:
    await client.chat.completions.create(model="gpt-sim", messages=HELLO, service_tier="priority", max_tokens=1)
    assert provider.line()["cost_nano"] == INPUT * 2000 + 4000


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "wizard", "content": "hi"}]},
        {"messages": [{"role": "user", "content": [5]}]},
        {"model": None},
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"max_tokens": True},
        {"n": 0},
        {"n": 100_000},
        {"stream_options": 5},
        {"tools": [{"type": "function"}]},
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/x"}}}],
            "tool_choice": "required",
        },
        {"response_format": {"type": "json_schema"}},
    ],
)
def test_a_bad_request_is_a_400_and_not_billed(provider: Running, change: dict[str, Any]) -> None:
    answer = provider.chat(**change)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert provider.lines() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"\xff"', b'{"model": "\\ud800"}'])
def test_a_body_that_is_no_json_object_is_a_400(provider: Running, body: bytes) -> None:
    assert provider.http.post("/openai/v1/chat/completions", content=body).status_code == 400


def test_unknown_paths_are_404(provider: Running) -> None:
    for path in ("/", "/openai/v1/nothing", "/anthropic/v1/x", "/google/x", "/_sim/nothing", "/elsewhere"):
        assert provider.http.post(path, json={}).status_code == 404


async def test_an_argument_is_what_the_message_says_of_it(client: openai.AsyncOpenAI) -> None:
    free, one_of = {"type": "string", "title": "Who"}, {"type": "string", "enum": ["ann-daily", "ann-weekly"]}
    schema = {"type": "object", "properties": {"who": free, "what": one_of}, "required": ["who", "what"]}
    tools: Any = [{"type": "function", "function": {"name": "cancel", "parameters": schema}}]

    async def called(text: str) -> dict[str, str]:
        answer = await client.chat.completions.create(
            model="gpt-sim", messages=[{"role": "user", "content": text}], tools=tools
        )
        (call,) = answer.choices[0].message.tool_calls or []
        return json.loads(call.function.arguments)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    assert await called("Please cancel ann-weekly for who ann.") == {"who": "ann", "what": "ann-weekly"}
    made = await called("cancel ann-daily or ann-weekly")  # neither is clear, so both are made up
    assert made["what"] in ("ann-daily", "ann-weekly")


async def test_it_says_what_it_was_told_when_it_is_asked(client: openai.AsyncOpenAI) -> None:
    def messages(*texts: str) -> Any:
        return [{"role": "user", "content": text} for text in texts]

    async def said(*texts: str) -> str:
        answer = await client.chat.completions.create(model="gpt-sim", messages=messages(*texts))
        return answer.choices[0].message.content or ""

    assert await said("I am Ben.", "It rains.", "What did I say?") == "You told me: I am Ben.\nIt rains."
    assert "told me" not in await said("What did I say?")
    assert "Ben" not in await said("I am Ben.", "Tell me of money.")
