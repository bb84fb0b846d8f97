"""Every parameter that Treasurer lets pass reaches each kind of provider, or is refused by name before money is held.

Each is sent through a gateway and the real LiteLLM Proxy, and is read from the body that arrives at the simulated
provider. A new parameter, or a version of LiteLLM that drops one, fails here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, cast
from uuid import uuid4

import pytest

from gateway.stack.state import StackState
from llm_service.wire.requests import CHAT_PARAMETERS, EMBEDDINGS_PARAMETERS
from tests.integration.caller import Caller, open_caller

OPENAI, CLAUDE, GEMINI, OWN = "gpt-4.1-mini", "claude-haiku-4-5", "gemini-2.5-flash", "local/llama-3.3-70b"
THINKS, REASONS = "claude-sonnet-5-5", "gpt-5-mini"
_MODELS = (OPENAI, CLAUDE, GEMINI, OWN)


class Refused:
    """The call is refused with 400. `by`: the parameter that the error names, if it is not the first one in the
    request."""

    def __init__(self, by: str | None = None, code: str = "unsupported_parameter") -> None:
        self.by, self.code = by, code


NO = Refused()
#: These models would be given a tool that searches, and the price of that is not known.
NOT_PRICED = Refused(code="not_priced")
#: LiteLLM refuses the parameter, not the gateway, because only LiteLLM knows which models reason. Its message names it.
BY_LITELLM = Refused("")
#: The parameter is left out, because the provider lacks it and always does what it asks for.
LEFT_OUT: dict[str, Any] = {}

FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CUSTOM = [{"type": "custom", "custom": {"name": "c"}}]
CLAUDES_TOOL = {"tools": [{"name": "f"}]}
GEMINIS_TOOL = {"tools": [{"function_declarations": [FUNCTION]}]}
ONE_OF = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
THINKING = {"type": "enabled", "budget_tokens": 1024}


def gemini(**config: Any) -> dict[str, Any]:
    return {"generationConfig": config}


#: By parameter: values, each with the fields that arrive at OpenAI, Claude, Gemini and the operator's own server.
#: `...`: unchanged.
CHAT: dict[str, list[tuple[dict[str, Any], Any, Any, Any, Any]]] = {
    "stream": [({"stream": True}, ..., ..., LEFT_OUT, ...)],  # for Gemini, the address says that it is a stream
    "stream_options": [({"stream": True, "stream_options": {"include_usage": False}}, {"stream_options": {"include_usage": True}}, {"stream": True}, LEFT_OUT, {"stream_options": {"include_usage": True}})],
    "max_tokens": [({"max_tokens": 77}, ..., ..., gemini(max_output_tokens=77), ...)],
    "max_completion_tokens": [({"max_completion_tokens": 77}, ..., {"max_tokens": 77}, gemini(max_output_tokens=77), ...)],
    "user": [({"user": "ann"}, ..., {"metadata": {"user_id": "ann"}}, LEFT_OUT, LEFT_OUT)],  # Treasurer uses `user` too
    "safety_identifier": [({"safety_identifier": "s1"}, ..., NO, NO, ...)],
    "n": [({"n": 2}, ..., NO, gemini(candidate_count=2), ...), ({"n": 1}, ..., LEFT_OUT, gemini(candidate_count=1), ...)],
    "temperature": [({"temperature": 0.5}, ..., ..., gemini(temperature=0.5), ...)],
    "top_p": [({"top_p": 0.5}, ..., ..., gemini(top_p=0.5), ...)],
    "top_k": [({"top_k": 7}, ..., ..., gemini(top_k=7), ...)],
    "min_p": [({"min_p": 0.1}, ..., NO, NO, ...)],
    "stop": [({"stop": ["END"]}, ..., {"stop_sequences": ["END"]}, gemini(stop_sequences=["END"]), ...)],
    "seed": [({"seed": 5}, ..., NO, gemini(seed=5), ...)],
    "frequency_penalty": [({"frequency_penalty": 0.3}, ..., NO, gemini(frequency_penalty=0.3), ...), ({"frequency_penalty": 0}, ..., LEFT_OUT, gemini(frequency_penalty=0), ...)],
    "presence_penalty": [({"presence_penalty": 0.3}, ..., NO, gemini(presence_penalty=0.3), ...), ({"presence_penalty": 0}, ..., LEFT_OUT, gemini(presence_penalty=0), ...)],
    "repetition_penalty": [({"repetition_penalty": 1.1}, ..., NO, NO, ...)],
    "logit_bias": [({"logit_bias": {"5": 1}}, ..., NO, NO, ...), ({"logit_bias": {}}, ..., LEFT_OUT, LEFT_OUT, ...)],
    "logprobs": [({"logprobs": True}, ..., NO, gemini(responseLogprobs=True), ...), ({"logprobs": False}, ..., LEFT_OUT, gemini(responseLogprobs=False), ...)],
    "top_logprobs": [({"top_logprobs": 2, "logprobs": True}, ..., NO, NO, ...)],
    "tools": [({"tools": TOOLS}, ..., CLAUDES_TOOL, GEMINIS_TOOL, ...), ({"tools": CUSTOM}, ..., NO, NO, ...)],
    "tool_choice": [
        ({"tool_choice": "required", "tools": TOOLS}, ..., {"tool_choice": {"type": "any"}}, {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, ...),
        ({"tool_choice": "none", "tools": TOOLS}, ..., {"tool_choice": {"type": "none"}}, {"toolConfig": {"functionCallingConfig": {"mode": "NONE"}}}, ...),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": TOOLS}, ..., {"tool_choice": {"type": "tool", "name": "f"}}, {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowed_function_names": ["f"]}}}, ...),
        ({"tool_choice": ONE_OF, "tools": TOOLS}, ..., NO, NO, ...),
    ],
    "parallel_tool_calls": [
        ({"parallel_tool_calls": False, "tools": TOOLS}, ..., {"tool_choice": {"disable_parallel_tool_use": True}}, NO, ...),
        ({"parallel_tool_calls": True, "tools": TOOLS}, ..., {"tool_choice": {"disable_parallel_tool_use": False}}, GEMINIS_TOOL, ...),
    ],
    "functions": [({"functions": [FUNCTION]}, ..., NO, GEMINIS_TOOL, ...), ({"functions": []}, ..., LEFT_OUT, LEFT_OUT, ...)],
    "function_call": [({"function_call": {"name": "f"}, "functions": [FUNCTION]}, ..., NO, NO, ...)],
    "response_format": [
        ({"response_format": FORMAT}, ..., {"output_format": {"type": "json_schema", "schema": SCHEMA}}, gemini(response_json_schema=SCHEMA), ...),
        ({"response_format": {"type": "json_object"}}, ..., NO, gemini(response_mime_type="application/json"), ...),
        ({"response_format": {"type": "text"}}, ..., LEFT_OUT, gemini(response_mime_type="text/plain"), ...),
    ],
    "reasoning_effort": [({"reasoning_effort": "low"}, BY_LITELLM, {"thinking": THINKING}, gemini(thinkingConfig={"thinkingBudget": 1024}), ...)],
    "thinking": [({"thinking": THINKING}, NO, ..., gemini(thinkingConfig={"thinkingBudget": 1024}), NO), ({"thinking": {"type": "disabled"}}, NO, ..., NO, NO)],
    "verbosity": [({"verbosity": "low"}, BY_LITELLM, NO, NO, BY_LITELLM)],
    "prediction": [({"prediction": {"type": "content", "content": "hi"}}, ..., NO, NO, ...)],
    "service_tier": [
        ({"service_tier": "flex"}, ..., NO, {"serviceTier": "flex"}, ...),
        ({"service_tier": "priority"}, ..., NO, {"serviceTier": "priority"}, ...),
        ({"service_tier": "auto"}, ..., LEFT_OUT, LEFT_OUT, ...),
        ({"service_tier": "default"}, ..., LEFT_OUT, {"serviceTier": "standard"}, ...),
    ],
    "metadata": [({"metadata": {"a": "b"}}, ..., NO, NO, ...), ({"metadata": {"tags": ["t"]}}, LEFT_OUT, LEFT_OUT, LEFT_OUT, LEFT_OUT)],
    "store": [({"store": True}, ..., NO, NO, ...), ({"store": False}, ..., LEFT_OUT, LEFT_OUT, ...)],
    "modalities": [({"modalities": ["text"]}, ..., LEFT_OUT, gemini(responseModalities=["TEXT"]), ...)],
    "prompt_cache_key": [({"prompt_cache_key": "k1"}, ..., NO, NO, ...)],
    "prompt_cache_retention": [({"prompt_cache_retention": "24h"}, ..., NO, NO, ...)],
    "web_search_options": [({"web_search_options": {"search_context_size": "low"}}, NOT_PRICED, NOT_PRICED, NOT_PRICED, NOT_PRICED)],
    "prompt_cache_options": [({"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}, ..., NO, NO, ...)],
}  # fmt: skip
#: Parameters that each call has.
_ALWAYS = {"model", "messages"}
#: Parameters that some models of a provider treat differently.
OF_MODELS: list[tuple[str, dict[str, Any], Any]] = [
    (THINKS, {"thinking": {"type": "disabled"}}, NO),
    (THINKS, {"reasoning_effort": "none"}, NO),
    (THINKS, {"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
    (CLAUDE, {"reasoning_effort": "none"}, LEFT_OUT),  # this model thinks only when asked
    (GEMINI, {"reasoning_effort": "none"}, gemini(thinkingConfig={"thinkingBudget": 0})),
    (REASONS, {"reasoning_effort": "low"}, ...),
    (REASONS, {"verbosity": "low"}, ...),
    (REASONS, {"max_tokens": 77}, {"max_completion_tokens": 77}),
    (REASONS, {"metadata": {"a": "b"}, "prompt_cache_retention": "24h", "store": True}, ...),
]
CASES = [
    *[
        (model, given, arrives)
        for values in CHAT.values()
        for given, *all_ in values
        for model, arrives in zip(_MODELS, all_, strict=True)
    ],
    *OF_MODELS,
]
#: The fields of a body without the parameter, by provider. A parameter that is left out must add no other field.
_PLAIN: dict[str, set[str]] = {
    OPENAI: {"model", "messages", "max_tokens", "service_tier", "stream"},
    OWN: {"model", "messages", "max_tokens", "stream"},
    CLAUDE: {"model", "messages", "max_tokens"},
    GEMINI: {"contents", "generationConfig"},
}


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


async def send(
    caller: Caller, model: str, given: Mapping[str, Any], *, path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, dict[str, Any] | str, list[dict[str, Any]]]:
    """The answer's status and body, and the bodies that have arrived at the provider."""
    mark = uuid4().hex
    script = f'[[sim: {{"keep_request": true, "mark": "{mark}", "text": "ok"}}]]'
    content = {"messages": [{"role": "user", "content": f"Hi {script}"}]} if "chat" in path else {"input": script}
    body = {"model": model, **content, **given}
    if "chat" in path and "max_completion_tokens" not in given:
        body.setdefault("max_tokens", 2000)
    authorization = {"Authorization": f"Bearer {caller.secret}", **headers}
    async with caller.http.post(caller.stack.gateway_url + path, json=body, headers=authorization) as response:
        answer = await response.text() if given.get("stream") and response.status == 200 else await response.json()
        status = response.status
    async with caller.http.get(f"{caller.stack.provider_url}/_sim/requests?mark={mark}") as response:
        return status, answer, [kept["body"] for kept in (await response.json())["requests"]]


def holds(body: object, wanted: object) -> bool:
    """Whether all that is wanted is in the body; objects may have more fields."""
    if isinstance(wanted, dict) and isinstance(body, dict):
        fields = cast("dict[str, object]", body)
        return all(
            name in fields and holds(fields[name], value) for name, value in cast("dict[str, object]", wanted).items()
        )
    if isinstance(wanted, list) and isinstance(body, list):
        items, others = cast("list[object]", wanted), cast("list[object]", body)
        return len(items) == len(others) and all(holds(*pair) for pair in zip(others, items, strict=True))
    return body == wanted


def test_each_parameter_has_a_case() -> None:
    assert CHAT.keys() | _ALWAYS == CHAT_PARAMETERS
    assert all(name in given for name, values in CHAT.items() for given, *_ in values)


@pytest.mark.parametrize(
    ("model", "given", "arrives"), CASES, ids=[f"{model}-{str(given)[:60]}" for model, given, _ in CASES]
)
async def test_a_parameter_arrives_or_is_refused_by_name(
    caller: Caller, model: str, given: dict[str, Any], arrives: Any
) -> None:
    status, answer, bodies = await send(caller, model, given)
    if isinstance(arrives, Refused):
        assert (status, bodies) == (400, [])
        assert isinstance(answer, dict)
        param = next(iter(given))
        error = answer["error"]
        assert param in error["message"]
        if arrives.by is None:  # Treasurer refused the call, so nothing was held
            assert (error["param"], error["code"]) == (param, arrives.code)
            assert await caller.pool.fetchval("SELECT count(*) FROM ledger WHERE agent_id = $1", caller.agent_id) == 0
        return
    assert (status, len(bodies)) == (200, 1), answer
    (body,) = bodies
    wanted = given if arrives is ... else arrives
    assert holds(body, wanted), body
    if arrives is LEFT_OUT and "stream" not in given:
        assert body.keys() == _PLAIN[model], body


async def test_i1_a_parameter_that_goes_past_litellm_is_paid_for_like_any_call(caller: Caller) -> None:
    given = {"metadata": {"a": "b", "tags": ["night"]}, "prompt_cache_retention": "24h", "store": True}
    status, _, (body,) = await send(caller, OPENAI, given)
    assert (status, body["metadata"], body["prompt_cache_retention"]) == (200, {"a": "b"}, "24h")
    (entry,) = await caller.agrees(1)
    assert list(entry["tags"]) == ["night"]


async def test_user_and_tags_as_litellms_users_send_them_are_the_calls(caller: Caller) -> None:
    for model in (OPENAI, CLAUDE, GEMINI, OWN):
        given = {"user": "ann", "metadata": {"tags": ["job 7", "night"]}}
        status, _, _ = await send(caller, model, given, **{"x-treasurer-tags": "night,lab"})
        assert status == 200
    entries = await caller.ledger()
    assert [(entry["user_id"], list(entry["tags"])) for entry in entries] == [("ann", ["night", "lab", "job 7"])] * 4


EMBEDDINGS: dict[str, list[tuple[dict[str, Any], Any]]] = {
    "user": [({"user": "ann"}, ...)],
    "dimensions": [({"dimensions": 64}, ...)],
    "encoding_format": [({"encoding_format": "float"}, ...), ({"encoding_format": "base64"}, ...)],
    "metadata": [({"metadata": {"a": "b"}}, NO), ({"metadata": {"tags": ["t"]}}, LEFT_OUT)],
}


async def test_each_parameter_of_embeddings_arrives_or_is_refused(caller: Caller) -> None:
    assert EMBEDDINGS.keys() | {"model", "input"} == EMBEDDINGS_PARAMETERS
    for given, arrives in (case for cases in EMBEDDINGS.values() for case in cases):
        status, answer, bodies = await send(caller, "text-embedding-3-small", given, path="/v1/embeddings")
        if arrives is NO:
            assert isinstance(answer, dict)
            assert (status, answer["error"]["param"], bodies) == (400, next(iter(given)), [])
        else:
            assert status == 200
            assert holds(bodies[0], given if arrives is ... else arrives), (given, bodies)
