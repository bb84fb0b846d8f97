"""Gemini's wire format, at the addresses that LiteLLM builds from an `api_base`."""

import json
from typing import Any

import httpx2
import pytest

from tests.gateway.stack.simulated_provider.running import Running

HELLO: Any = [{"role": "user", "parts": [{"text": "Hello there"}]}]
INPUT = 8


def generate(provider: Running, method: str = "generateContent", base: str = "/google", **body: Any) -> httpx2.Response:
    return provider.http.post(f"{base}/models/gemini-sim:{method}", json={"contents": HELLO, **body})


@pytest.mark.parametrize("base", ["/google", "/google/v1beta"])
def test_an_answer_and_its_bill(provider: Running, base: str) -> None:
    made = generate(provider, base=base, generationConfig={"maxOutputTokens": 5}).json()
    assert made["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert made["candidates"][0]["content"]["parts"][0]["text"]
    assert made["usageMetadata"]["promptTokenCount"] == INPUT
    assert made["usageMetadata"]["candidatesTokenCount"] == 5
    line = provider.line()
    assert line["cost_nano"] == INPUT * 1250 + 5 * 10000
    assert line["id"] == made["responseId"]


def test_a_stream_says_the_same(provider: Running) -> None:
    whole = generate(provider).json()
    streamed = generate(provider, "streamGenerateContent?alt=sse").text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: ")]
    text = "".join(chunk["candidates"][0]["content"]["parts"][0]["text"] for chunk in chunks)
    assert text == whole["candidates"][0]["content"]["parts"][0]["text"]
    assert chunks[-1]["usageMetadata"] == whole["usageMetadata"]
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
    first, second = provider.lines()
    assert first["cost_nano"] == second["cost_nano"]


def test_tools_schemas_and_thought(provider: Running) -> None:
    function = {"name": "get_weather", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}
    tools = [{"function_declarations": [function]}]
    mode = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["get_weather"]}}
    for method in ("generateContent", "streamGenerateContent?alt=sse"):
        answer = generate(provider, method, tools=tools, toolConfig=mode)
        assert '"functionCall":{"name":"get_weather","args":{"city":"' in answer.text
    result = {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"x": 1}}}]}
    after = generate(provider, contents=[*HELLO, result], tools=tools).json()
    assert after["candidates"][0]["content"]["parts"][0]["text"]
    config = {"responseMimeType": "application/json", "responseSchema": {"type": "ARRAY", "items": {"type": "INTEGER"}}}
    made = generate(provider, generationConfig=config).json()
    assert all(isinstance(n, int) for n in json.loads(made["candidates"][0]["content"]["parts"][0]["text"]))
    provider.script({"model": "gemini-sim", "do": {"reasoning_tokens": 7, "cached_tokens": 2}})
    usage = generate(provider).json()["usageMetadata"]
    assert (usage["thoughtsTokenCount"], usage["cachedContentTokenCount"]) == (7, 2)
    assert usage["totalTokenCount"] == INPUT + usage["candidatesTokenCount"] + 7
    assert provider.lines()[-1]["output_tokens"] == usage["candidatesTokenCount"] + 7


def test_errors_have_its_shape(provider: Running) -> None:
    provider.script({"face": "google", "do": {"status": 429, "retry_after": 2}})
    answer = generate(provider)
    assert answer.status_code == 429
    assert answer.json()["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert generate(provider, contents=[]).json()["error"]["status"] == "INVALID_ARGUMENT"
    assert generate(provider, "streamGenerateContent").status_code == 400
    odd = [{"functionDeclarations": [{"name": "f", "parameters": "x"}]}]
    assert generate(provider, tools=odd).json()["error"]["status"] == "INVALID_ARGUMENT"
    assert generate(provider, "countTokens").json() == {"totalTokens": INPUT}
