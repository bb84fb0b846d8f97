"""Run by LiteLLM Proxy's own Python (see test_hooks.py): the plugin against LiteLLM's real classes.

Prints one JSON object: the name of each check, and null or what went wrong. No pytest here.
"""
# ruff: noqa: E402, PT017 (the environment comes before the plugin, and there is no pytest here)
# pyright: basic, reportMissingImports=false, reportPrivateUsage=false

from __future__ import annotations

import asyncio
import importlib
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

SECRET = "a-secret-of-the-tests-that-has-32-characters"
FOLDER = Path(tempfile.mkdtemp(prefix="treasurer-plugin-"))
os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    TREASURER_GRANT_SECRET=SECRET,
    TREASURER_GRANT_DIR=str(FOLDER / "grants"),
    TREASURER_SPOOL_DIR=str(FOLDER / "spool"),
)

import litellm
from litellm import Router, stream_chunk_builder
from litellm.proxy._types import ProxyException
from litellm.types.router import Deployment
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices
from litellm.types.utils import Usage as LiteLLMUsage
from starlette.requests import Request

from llm_service.grants import Grant, UsedGrants, digest_of, for_service, sign
from llm_service.litellm_plugin import chunk_folding
from llm_service.litellm_plugin import hooks as plugin
from llm_service.litellm_plugin import shortcuts as shortcuts
from llm_service.litellm_plugin.beginnings import Beginnings
from llm_service.litellm_plugin.worker_streams import WorkerStreams
from llm_service.witness import Witness

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def granted(content: bytes, path: str = CHAT, **changes: Any) -> str:
    now = int(time.time())
    fields: dict[str, Any] = {
        "call_id": uuid4(), "attempt": 3, "agent_id": 7, "agent": "digest", "team": "research",
        "organisation": "default", "key_id": 1, "model": "gpt-4o", "path": path, "digest": digest_of(content),
        "issued_at": now, "expires_at": now + 60, "tags": ("news",), "user": "bob",
        **changes,
    }  # fmt: skip
    return sign(SECRET, Grant(**fields))


async def ask(
    token: str, content: bytes, path: str = CHAT, method: str = "POST", query: bytes = b"", **more: str
) -> Any:
    """As LiteLLM asks: the body is read from the wire once, and its parsed form is kept on the request."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        assert not sent, "the body was read from the wire twice"
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in more.items()}}
    headers = [(name.encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": headers}
    return await plugin.custom_auth(Request(scope, receive), token)


async def refused(
    status: int, words: str, token: str, content: bytes, path: str = CHAT, query: bytes = b"", **headers: str
) -> None:
    try:
        await ask(token, content, path, query=query, **headers)
    except ProxyException as error:
        assert error.code == str(status), error.code
        assert words in error.message, error.message
        assert not token or token not in error.message, "the message repeats the token"
    else:
        raise AssertionError("it was let in")


async def check_a_grant_opens_its_request_once() -> None:
    content = body()
    token = granted(content)
    identity = await ask(token, content)
    assert (identity.key_alias, identity.team_id, identity.org_id) == ("digest", "research", "default")
    assert identity.metadata["treasurer"]["attempt"] == 3
    assert identity.metadata["tags"] == ["news"]
    assert identity.rpm_limit is None, "the service has enforced the limits already"
    await refused(401, "used before", token, content)


async def check_a_crash_leaves_no_dump() -> None:
    assert max(resource.getrlimit(resource.RLIMIT_CORE)) <= 1


async def check_a_grant_of_another_time_shows_the_proxy_s_clock() -> None:
    content, now = body(), int(time.time())
    early: dict[str, Any] = {"issued_at": now + 3600, "expires_at": now + 3660}
    late: dict[str, Any] = {"issued_at": now - 3660, "expires_at": now - 3600}
    for times, words in ((early, "not valid yet"), (late, "expired")):
        try:
            await ask(granted(content, **times), content)
        except ProxyException as error:
            assert (error.code, words in error.message) == ("401", True), error.message
            assert error.headers["x-treasurer-refused"] == "clock", error.headers
            assert abs(float(error.headers["x-treasurer-time"]) - time.time()) < 60, error.headers
        else:
            raise AssertionError("it was let in")


async def check_what_is_no_grant_is_refused() -> None:
    for token in ("", "sk-tr-stolen", "sk-" + "m" * 40):
        await refused(401, "not a grant", token, body())


async def check_other_requests_are_refused() -> None:
    await refused(401, "another body", granted(body()), body(n=2))
    await refused(401, "another model", granted(body(), model="gpt-4o-mini"), body())
    await refused(401, "another path", granted(body()), body(), "/v1/embeddings")
    for path in ("/v1/models", "/health", "/key/generate", "/v1/responses", "/chat/completions"):
        await refused(401, "no grant opens this path", granted(body(), path), body(), path)


async def check_a_body_that_steers_litellm_is_refused() -> None:
    for field in ("fallbacks", "api_base", "extra_body", "num_retries", "max_output_tokens", "mock_response", "no-log"):
        content = body(**{field: "x"})
        await refused(400, field, granted(content), content)
    content = body(metadata={"a": "b"}, tools=[], service_tier="auto", reasoning_effort="low")
    await ask(granted(content), content)


async def check_what_steers_litellm_beside_the_body_is_refused() -> None:
    """LiteLLM takes a model from the query before the body's, and retries, timeouts and more from headers."""
    content = body()
    token = granted(content)
    await refused(401, "query", token, content, query=b"model=gpt-4o-audio-preview")
    await refused(401, "x-litellm-num-retries", token, content, x_litellm_num_retries="3")
    await refused(401, "x-litellm-timeout", token, content, x_litellm_timeout="3")
    await refused(401, "anthropic-beta", token, content, anthropic_beta="context-1m")
    await refused(401, "JSON", token, content, content_type="application/x-www-form-urlencoded")
    await ask(token, content, content_type="application/json; charset=utf-8")


async def check_reads_may_be_repeated() -> None:
    token = sign(SECRET, for_service("/model/info"))
    for _ in range(2):
        await ask(token, b"", "/model/info", "GET")
    content = body()
    await ask(
        sign(SECRET, for_service("/utils/token_counter", model="gpt-4o", body=content)), content, "/utils/token_counter"
    )


async def check_a_use_that_cannot_be_remembered_is_refused() -> None:
    used, plugin._used = plugin._used, UsedGrants(Path("/dev/null/grants"))
    try:
        await refused(503, "TREASURER_GRANT_DIR", granted(body()), body())
    finally:
        plugin._used = used


class Kept:
    """A writer that keeps what it gets."""

    def __init__(self) -> None:
        self.witnesses: list[Witness] = []

    def add(self, witness: Witness) -> None:
        self.witnesses.append(witness)


METADATA = {
    "user_api_key_metadata": {"treasurer": {"call_id": str(uuid4()), "attempt": 3}},
    "model_group": "gpt-4o",
    "model_info": {"id": "openai-gpt-4o"},
}
USAGE = LiteLLMUsage(
    prompt_tokens=100,
    completion_tokens=20,
    prompt_tokens_details={"cached_tokens": 40},
    completion_tokens_details={"reasoning_tokens": 5},
)


def event(**fields: Any) -> dict[str, Any]:
    return {
        "model": "gpt-4o", "custom_llm_provider": "openai", "litellm_params": {"metadata": METADATA}, **fields,
    }  # fmt: skip


async def succeed(kwargs: Any, response: Any) -> list[Witness]:
    kept = Kept()
    await plugin.WitnessLogger(kept).async_log_success_event(kwargs, response, None, None)  # type: ignore[arg-type]
    return kept.witnesses


async def check_a_success_is_witnessed() -> None:
    (witness,) = await succeed(event(response_cost=0.00040000000000000002), SimpleNamespace(usage=USAGE))
    assert (witness.outcome, witness.model, witness.provider, witness.status) == ("success", "gpt-4o", "openai", 200)
    assert (witness.deployment, witness.attempt, witness.cost_nano) == ("openai-gpt-4o", 3, 400_000)
    used = witness.usage
    assert (used.input_tokens, used.cached_tokens, used.output_tokens, used.reasoning_tokens) == (100, 40, 20, 5)


async def check_a_usage_that_contradicts_itself_proves_nothing() -> None:
    odd = LiteLLMUsage(prompt_tokens=10, completion_tokens=20, prompt_tokens_details={"cached_tokens": 40})
    (witness,) = await succeed(event(response_cost=0.1), SimpleNamespace(usage=odd))
    assert (witness.outcome, witness.usage.input_tokens, witness.usage.output_tokens) == ("success", 0, 0)


async def check_a_usage_that_contradicts_its_answer_proves_nothing() -> None:
    for said, output_tokens in (("x" * 2560, 20), ("x" * 2561, 0), ("cut \ud83d", 20)):
        choices = [SimpleNamespace(message=SimpleNamespace(content=said))]
        (witness,) = await succeed(event(response_cost=0.1), SimpleNamespace(usage=USAGE, choices=choices))
        assert witness.usage.output_tokens == output_tokens
        assert witness.usage.input_tokens == (100 if output_tokens else 0)


async def check_litellm_s_own_count_says_nothing_of_what_may_be_unseen() -> None:
    """The service reads such a stream to its end; so does the plugin. What only LiteLLM counted is no proof."""
    claim = {**METADATA["user_api_key_metadata"]["treasurer"], "drain_on_disconnect": True}
    metadata = {**METADATA, "user_api_key_metadata": {"treasurer": claim}}
    for counted in (True, False):
        kwargs = event(response_cost=0.1, litellm_params={"metadata": metadata}, treasurer_counted=counted)
        (witness,) = await succeed(kwargs, SimpleNamespace(usage=USAGE))
        assert (witness.usage.input_tokens, witness.cost_nano) == ((0, None) if counted else (100, 100_000_000))


async def check_what_litellm_counted_is_taken_for_the_dearest_that_was_asked_for() -> None:
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    asked = {"messages": [{"role": "user", "content": [part]}], "optional_params": {"service_tier": "priority"}}
    for counted in (True, False):
        kwargs = event(response_cost=0.1, treasurer_counted=counted, **asked)
        (witness,) = await succeed(kwargs, SimpleNamespace(usage=USAGE))
        told = (witness.usage.cache_write_1h_tokens, witness.service_tier)
        assert told == ((100, "priority") if counted else (0, None)), told


async def check_where_errors_are_billed_one_deployment_is_asked() -> None:
    logger = plugin.WitnessLogger(Kept())  # type: ignore[arg-type]
    content = body()
    for once, retries in ((True, 0), (False, None)):
        data: dict[str, Any] = {}
        await logger.async_pre_call_hook(await ask(granted(content, once=once), content), None, data, "acompletion")
        assert data.get("num_retries") == retries


async def check_a_price_that_litellm_lacks_is_unknown_and_not_zero() -> None:
    (witness,) = await succeed(event(), SimpleNamespace(usage=USAGE))
    assert witness.cost_nano is None


async def check_what_carries_no_grant_is_not_witnessed() -> None:
    assert await succeed(event(litellm_params={"metadata": {}}), SimpleNamespace(usage=USAGE)) == []


async def check_an_event_of_an_unknown_shape_fails_nobody() -> None:
    for kwargs in (event(litellm_params={"metadata": {**METADATA, "model_info": 5}}), {"litellm_params": 7}):
        assert await succeed(kwargs, None) == []


async def check_a_writer_that_fails_fails_nobody() -> None:
    broken = SimpleNamespace(add=lambda witness: 1 / 0)
    await plugin.WitnessLogger(broken).async_log_success_event(  # type: ignore[arg-type]
        event(), SimpleNamespace(usage=USAGE), None, None
    )


async def check_each_failed_attempt_is_witnessed() -> None:
    kept = Kept()
    logger = plugin.WitnessLogger(kept)  # type: ignore[arg-type]
    error = RuntimeError("Incorrect API key sk-secret; the prompt was …")
    error.status_code = 429  # type: ignore[attr-defined]
    for deployment in ("a", "b"):
        request = {"model": "openai/gpt-4o", "metadata": {**METADATA, "model_info": {"id": deployment}}}
        await logger.async_post_call_failure_deployment_hook(request, error, None)
    assert [(w.outcome, w.deployment, w.status) for w in kept.witnesses] == [
        ("failure", "a", 429),
        ("failure", "b", 429),
    ]
    assert {w.error for w in kept.witnesses} == {"RuntimeError"}, "a provider's message may hold a secret or a prompt"


async def stream(items: list[Any], error: Exception | None = None) -> Any:
    for item in items:
        yield item
    if error is not None:
        raise error


async def check_a_stream_that_ends_is_left_to_its_success() -> None:
    kept = Kept()
    hook = plugin.WitnessLogger(kept).async_post_call_streaming_iterator_hook  # type: ignore[arg-type]
    assert [chunk async for chunk in hook(None, stream([1, 2]), {})] == [1, 2]
    assert kept.witnesses == []


async def endless(items: int) -> Any:
    for item in range(items):
        yield item
    await asyncio.sleep(3600)


async def left(source: Any, *, drains: bool = False) -> tuple[Kept, Any, dict[str, Any]]:
    """A stream whose reader leaves after its first chunk."""
    kept, details = Kept(), event(messages=[])
    logger = plugin.WitnessLogger(kept)  # type: ignore[arg-type]
    call = SimpleNamespace(model_call_details=details, start_time=None)
    key = SimpleNamespace(metadata={"treasurer": {"drain_on_disconnect": drains}})
    chunks = logger.async_post_call_streaming_iterator_hook(key, source, {"litellm_logging_obj": call})
    await chunks.__anext__()
    await chunks.aclose()
    return kept, logger, details


async def check_a_stream_that_its_caller_left_and_that_ends_soon_is_left_to_its_success() -> None:
    kept, logger, details = await left(stream([object()] * 500))
    assert kept.witnesses == []
    for _ in range(2):  # LiteLLM tells its own end, and then that the reader had left
        await logger.async_log_success_event(details, SimpleNamespace(usage=USAGE), None, None)
    assert [w.outcome for w in kept.witnesses] == ["success"]


async def check_a_stream_that_its_caller_left_and_that_goes_on_is_given_up_and_witnessed_once() -> None:
    plugin._LINGER_S = 0.05
    kept, logger, details = await left(endless(3))
    assert [(w.outcome, w.status, w.cost_nano, w.counted) for w in kept.witnesses] == [("cancelled", 499, None, True)]
    await logger.async_log_success_event(details, SimpleNamespace(usage=USAGE), None, None)
    assert len(kept.witnesses) == 1, "LiteLLM's own event for the same end"


async def check_i1_a_stream_that_was_not_read_to_where_its_provider_had_come_is_witnessed_as_unread() -> None:
    plugin._LINGER_S, plugin._BEHIND_S = 0.05, 0.15

    async def faster() -> Any:
        while True:
            yield object()

    for source, unread in ((faster(), True), (endless(3), False)):
        kept, _, _ = await left(source)
        assert [(w.outcome, w.counted, w.unread) for w in kept.witnesses] == [("cancelled", True, unread)]
        assert json.loads(kept.witnesses[0].line())["unread"] is unread


def chunk(**delta: Any) -> ModelResponseStream:
    more = {name: delta.pop(name) for name in ("finish_reason", "index") if name in delta}
    usage = delta.pop("usage", None)
    made = ModelResponseStream(
        id="c", created=1, model="gpt-4o", choices=[StreamingChoices(delta=Delta(**delta), **more)]
    )
    if usage is not None:
        made.usage = usage
    return made


def used(tokens: int) -> LiteLLMUsage:
    return LiteLLMUsage(prompt_tokens=7, completion_tokens=tokens, total_tokens=7 + tokens)


def calling(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"index": index, "id": f"call_{index}" if name else None, "type": "function", "function": function}


STREAMS: dict[str, list[ModelResponseStream]] = {
    "text": [chunk(content=f" word{number}") for number in range(500)],
    "thought": [chunk(reasoning_content=f" hm{number}") for number in range(300)]
    + [chunk(content=f" word{number}") for number in range(300)],
    "calls": [
        chunk(tool_calls=[calling(index, "" if number == 0 else f"{number},", "f" if number == 0 else None)])
        for index in range(3)
        for number in range(200)
    ],
    "usage each time": [chunk(content=f" word{number}", usage=used(number + 1)) for number in range(500)],
    "usage at both ends": [chunk(content="", usage=used(1))]
    + [chunk(content=f" word{number}") for number in range(500)]
    + [chunk(content="", finish_reason="length"), chunk(content="", usage=used(500))],
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


async def check_neither_the_plugin_nor_litellm_keeps_every_chunk() -> None:
    """What LiteLLM's wrapper keeps of a stream is folded while it comes, in the list that LiteLLM has."""

    class Wrapper:
        def __init__(self) -> None:
            self.chunks: list[Any] = []

        async def __aiter__(self) -> Any:
            for each in STREAMS["text"]:
                self.chunks.append(each)
                yield each

    wrapper, longest = Wrapper(), 0
    hook = plugin.WitnessLogger(Kept()).async_post_call_streaming_iterator_hook  # type: ignore[arg-type]
    text = ""
    async for each in hook(None, wrapper, {}):
        text += each.choices[0].delta.content
        longest = max(longest, len(wrapper.chunks))
    assert text == "".join(f" word{number}" for number in range(500))
    assert longest <= chunk_folding.MOST


async def check_a_stream_too_many_is_refused_and_its_place_is_not_lost() -> None:
    plugin._streams = WorkerStreams(2)

    async def served(content: bytes, over: asyncio.Event) -> None:
        await ask(granted(content), content)
        await over.wait()

    content, over = body(stream=True), asyncio.Event()
    requests = [asyncio.create_task(served(content, over)) for _ in range(2)]
    while plugin._streams.under_way < 2:
        await asyncio.sleep(0)
    token = granted(content)
    try:
        await ask(token, content)
    except ProxyException as error:
        told = {name: value for name, value in error.headers.items() if name != "x-treasurer-time"}
        assert (error.code, told) == ("503", {"x-treasurer-refused": "proxy_busy", "retry-after": "1"})
    else:
        raise AssertionError("it was let in")
    await refused(503, "streams under way", token, content)  # its grant is not used up
    await ask(granted(body()), body())  # a whole answer needs no place
    over.set()
    await asyncio.gather(*requests)
    await asyncio.sleep(0)
    assert plugin._streams.under_way == 0
    await asyncio.create_task(served(content, over))


async def check_a_stream_that_asks_its_provider_lets_the_next_one_begin() -> None:
    plugin._streams._beginnings = Beginnings(1, 3600)

    async def served(over: asyncio.Event, **claim: Any) -> dict[str, Any]:
        content = body(stream=True)
        identity = await ask(granted(content, **claim), content)
        waiting.discard(claim["call_id"])
        await over.wait()
        return identity.metadata

    first, second, over = uuid4(), uuid4(), asyncio.Event()
    waiting = {first, second}
    requests = [asyncio.create_task(served(over, call_id=name)) for name in (first, second)]
    while first in waiting:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert waiting == {second}
    key = {"treasurer": {"call_id": str(first), "attempt": 3}}
    asked = {"litellm_params": {"metadata": {"user_api_key_metadata": key}}}
    plugin.WitnessLogger(Kept()).log_pre_api_call("gpt-4o", [], asked)  # type: ignore[arg-type]
    while waiting:
        await asyncio.sleep(0)
    over.set()
    await asyncio.gather(*requests)


async def check_a_stream_that_must_be_finished_is_read_to_its_end() -> None:
    plugin._LINGER_S = 0.01

    async def slow() -> Any:
        for item in range(4):
            await asyncio.sleep(0.05)
            yield item

    kept, _, _ = await left(slow(), drains=True)
    assert kept.witnesses == []


async def check_a_stream_that_breaks_when_its_caller_has_left_is_witnessed() -> None:
    kept, _, _ = await left(stream([object()] * 3, ValueError("cut")))
    assert [(w.outcome, w.error) for w in kept.witnesses] == [("failure", "ValueError")]


async def check_i1_a_stream_that_litellm_ended_itself_is_witnessed_as_unread() -> None:
    """It has read as far as it wanted to, or had the time to."""
    ends: list[tuple[Exception, bool]] = [
        (litellm.Timeout("too long", "gpt-4o", "openai"), True),
        (litellm.InternalServerError("The model is repeating the same chunk = ha.", "openai", "gpt-4o"), True),
        (TimeoutError(), True),
        (ConnectionResetError("cut"), False),
        (litellm.APIError(500, "overloaded", "openai", "gpt-4o"), False),
    ]
    for error, unread in ends:
        kept, _, _ = await left(stream([object()] * 3, error))
        assert [(w.outcome, w.unread) for w in kept.witnesses] == [("failure", unread)], error
        kept = Kept()
        call = SimpleNamespace(model_call_details=event(), start_time=None)
        hook = plugin.WitnessLogger(kept).async_post_call_streaming_iterator_hook  # type: ignore[arg-type]
        try:
            async for _ in hook(None, stream([object()], error), {"litellm_logging_obj": call}):
                pass
        except type(error):
            assert [(w.outcome, w.unread) for w in kept.witnesses] == [("failure", unread)], error
    refused = type("ConnectTimeout", (Exception,), {})("nobody there")
    kept, _, _ = await left(stream([object()], refused))
    assert not kept.witnesses[0].unread, "nothing was sent"


async def check_an_error_says_whether_anything_can_have_been_billed() -> None:
    logger = plugin.WitnessLogger(Kept())  # type: ignore[arg-type]
    refused, garbage = type("HTTPStatusError", (Exception,), {})("500"), ValueError("garbage")
    key = SimpleNamespace(metadata=METADATA["user_api_key_metadata"])

    async def told(attempts: list[tuple[bool, Exception]], last: Exception, **request: Any) -> str:
        for sent, error in attempts:
            details = {"api_call_start_time": 1} if sent else {}
            call = SimpleNamespace(model_call_details=details, start_time=None)
            failed = {"model": "openai/gpt-4o", "metadata": METADATA, "litellm_logging_obj": call}
            await logger.async_post_call_failure_deployment_hook(failed, error, None)
        await logger.async_post_call_failure_hook(request, last, key)
        headers = await logger.async_post_call_response_headers_hook(request, None, None)
        assert headers is not None
        assert await logger.async_post_call_response_headers_hook(request, None, object()) is None
        return headers["x-treasurer-free"]

    assert await told([(True, refused)], refused) == "1"
    assert await told([(True, garbage)], garbage) == "0"
    assert await told([(False, garbage)], garbage) == "1", "a parameter that LiteLLM refuses"
    assert await told([(True, garbage), (True, refused)], refused) == "0", "the first deployment may have billed"
    assert await told([], garbage) == "1", "a cooldown"
    assert await told([], garbage, stream=True) == "0"
    assert await told([], refused, stream=True) == "1"


async def check_an_error_says_whether_the_request_was_at_fault() -> None:
    logger = plugin.WitnessLogger(Kept())  # type: ignore[arg-type]
    key = SimpleNamespace(metadata=METADATA["user_api_key_metadata"])

    async def told(cause: BaseException, *, sent: bool = False, status: int = 500) -> str:
        call = SimpleNamespace(model_call_details={"api_call_start_time": 1} if sent else {}, start_time=None)
        error = RuntimeError("litellm's own")
        error.status_code, error.__cause__ = status, cause  # type: ignore[attr-defined]
        request: dict[str, Any] = {}
        failed = {"model": "openai/gpt-4o", "metadata": METADATA, "litellm_logging_obj": call}
        await logger.async_post_call_failure_deployment_hook(failed, error, None)
        await logger.async_post_call_failure_hook(request, error, key)
        return (await logger.async_post_call_response_headers_hook(request, None, None))["x-treasurer-unreadable"]  # type: ignore[index]

    assert await told(KeyError("name")) == "1"
    assert await told(ValueError("Unsupported response_format type")) == "1"
    assert await told(KeyError("name"), sent=True) == "0", "over an answer"
    assert await told(KeyError("name"), status=429) == "0"
    assert await told(ConnectionError("no token")) == "0", "the operator's"
    assert await told(type("TransportError", (Exception,), {"__module__": "google.auth.exceptions"})("x")) == "0"


async def check_a_stream_that_breaks_is_witnessed_and_breaks() -> None:
    kept = Kept()
    call = SimpleNamespace(model_call_details=event(), start_time=None)
    hook = plugin.WitnessLogger(kept).async_post_call_streaming_iterator_hook  # type: ignore[arg-type]
    try:
        async for _ in hook(None, stream([], ValueError("cut")), {"litellm_logging_obj": call}):
            pass
    except ValueError:
        assert [(w.outcome, w.error) for w in kept.witnesses] == [("failure", "ValueError")]
    else:
        raise AssertionError("the error was swallowed")


async def check_what_cannot_be_imported_is_not_tried_again() -> None:
    module = "litellm.integrations.otel.logger"
    try:
        importlib.import_module("opentelemetry.sdk")
    except ImportError:
        assert sys.modules[module] is None
        try:
            importlib.import_module(module)
        except ImportError:
            return
        raise AssertionError("it says that it could") from None
    assert sys.modules[module] is not None, "where it can be imported it is left alone"


async def check_a_module_that_breaks_in_any_way_breaks_nothing_else() -> None:
    (FOLDER / "breaks_when_read.py").write_text("raise RuntimeError('a wrong version of something')\n")
    sys.path.insert(0, str(FOLDER))
    shortcuts._fail_at_once("breaks_when_read")
    assert "breaks_when_read" not in sys.modules, "LiteLLM may try it, as it did"


async def check_a_deployment_with_limits_is_counted_and_one_without_is_looked_at_once() -> None:
    def deployment(name: str, **limits: int) -> dict[str, Any]:
        parameters = {"model": f"openai/{name}", "api_key": "x", **limits}
        return {"model_name": name, "litellm_params": parameters, "model_info": {"id": name}}

    router = Router(model_list=[deployment("gpt-4o"), deployment("gpt-4o-mini", tpm=1000)])
    looked: list[str] = []
    look = router.get_router_model_info

    def looking(deployment: Any, received_model_name: str, *rest: Any) -> Any:
        looked.append(received_model_name)
        return look(deployment, received_model_name, *rest)

    router.get_router_model_info = looking  # type: ignore[method-assign]

    async def count(name: str, tokens: int = 5) -> str | None:
        return await router._increment_deployment_usage(
            deployment_id=name, deployment_name=f"openai/{name}", model_group=name, total_tokens=tokens,
            rpm_increment=1, parent_otel_span=None,
        )  # fmt: skip

    for _ in range(3):
        assert await count("gpt-4o") is None
        assert await count("gpt-4o-mini") is not None
    assert looked.count("gpt-4o") == 1
    assert looked.count("gpt-4o-mini") == 3
    key = await count("gpt-4o-mini")
    assert router.cache.in_memory_cache.get_cache(key) == 20
    router.upsert_deployment(Deployment(**deployment("gpt-4o", rpm=7)))
    assert await count("gpt-4o") is not None, "it has a limit now"
    assert await count("nobody") is None


async def check_settings_of_teams_are_read_where_there_are_some() -> None:
    read: list[str] = []

    def load(_config: Any, team_id: str) -> dict[str, str]:
        read.append(team_id)
        return {"team_id": team_id}

    quick = shortcuts._reading_where_there_are_teams(load)
    teams = {"litellm_settings": {"default_team_settings": [{"team_id": "a"}]}}
    assert quick(SimpleNamespace(config=teams), team_id="a") == {"team_id": "a"}
    for none in ({}, None, {"litellm_settings": None}, {"litellm_settings": {}}):
        assert quick(SimpleNamespace(config=none), "a") == {}
    assert read == ["a"]


def a_proxy_with(*deployments: dict[str, Any], **more: Any) -> Any:
    """LiteLLM's router, and its own page as far as prices go."""
    router = Router(model_list=[json.loads(json.dumps(each)) for each in deployments], **more)

    def shown(model: dict[str, Any]) -> dict[str, Any]:
        named = {key: value for key, value in model["litellm_params"].items() if "cost" in key}
        return model | {"model_info": {**model["model_info"], **named}}

    return SimpleNamespace(llm_router=router, _get_proxy_model_info=shown)


def house(cost: float, name: str = "house", number: str = "h1") -> dict[str, Any]:
    parameters = {"model": "openai/house", "api_base": "http://127.0.0.1:1", "api_key": "k"}
    costs = {"input_cost_per_token": cost, "output_cost_per_token": cost}
    return {"model_name": name, "litellm_params": parameters | costs, "model_info": {"id": number}}


async def check_i1_a_call_of_other_prices_is_refused_and_its_grant_is_used_up() -> None:
    sys.modules["litellm.proxy.proxy_server"] = proxy = a_proxy_with(  # type: ignore[assignment]
        house(1e-7), house(1e-7, number="h2"), house(1e-7, "wild/*", "w"), model_group_alias={"home": "house"}
    )
    try:
        stamped = {each["model_info"]["id"]: each["model_info"] for each in proxy.llm_router.model_list}
        listing = granted(b"", "/model/info", model=None)
        await ask(listing, b"", "/model/info", method="GET")
        version = stamped["h1"]["treasurer_prices"]
        assert version == stamped["h2"]["treasurer_prices"]
        assert "treasurer_prices" not in stamped["w"], "a wildcard's prices are not known"
        content = body(model="house")
        now = granted(content, model="house", prices=version)
        await ask(now, content)
        await refused(401, "used before", now, content)
        await ask(granted(content, model="house"), content)  # of a gateway of the version before
        alias = body(model="home")
        await ask(granted(alias, model="home", prices=version), alias)
        gone = body(model="gone")
        await refused(409, "have changed", granted(gone, model="gone", prices=version), gone)

        sys.modules["litellm.proxy.proxy_server"] = a_proxy_with(house(1e-5), house(1e-7, number="h2"))  # type: ignore[assignment]
        stale = granted(content, model="house", prices=version)
        try:
            await ask(stale, content)
        except ProxyException as error:
            assert (error.code, error.headers["x-treasurer-refused"]) == ("409", "prices_changed"), error.headers
        else:
            raise AssertionError("it was let in")
        await refused(401, "used before", stale, content)  # as a balancer's second sending
        await ask(granted(content, model="house"), content)
    finally:
        del sys.modules["litellm.proxy.proxy_server"]


async def check_the_statuses_that_the_router_retries_are_shown_as_it_is_configured() -> None:
    policy = {"house": {"RateLimitErrorRetries": 1, "ServiceUnavailableErrorRetries": 2, "TimeoutErrorRetries": 0}}
    for configured, shown in (
        ({"model_group_retry_policy": policy, "num_retries": 0}, [429, 503]),
        ({"num_retries": 0}, []),
        ({"num_retries": 1}, [400, 401, 404, 408, 429, 500, 503]),
    ):
        sys.modules["litellm.proxy.proxy_server"] = proxy = a_proxy_with(  # type: ignore[assignment]
            house(1e-7), house(1e-7, number="h2"), **configured
        )
        try:
            await ask(granted(b"", "/model/info", model=None), b"", "/model/info", method="GET")
            stamped = [each["model_info"]["treasurer_retries"] for each in proxy.llm_router.model_list]
            assert stamped == [shown, shown], (configured, stamped)
        finally:
            del sys.modules["litellm.proxy.proxy_server"]


async def check_a_litellm_that_shows_its_prices_in_another_way_is_served_without_versions() -> None:
    proxy = a_proxy_with(house(1e-7))
    del proxy._get_proxy_model_info
    sys.modules["litellm.proxy.proxy_server"] = proxy  # type: ignore[assignment]
    try:
        content = body(model="house")
        await ask(granted(content, model="house"), content)
        assert "treasurer_prices" not in proxy.llm_router.model_list[0]["model_info"]
    finally:
        del sys.modules["litellm.proxy.proxy_server"]


def main() -> None:
    results: dict[str, str | None] = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            plugin._streams = WorkerStreams()  # one for each event loop
            try:
                asyncio.run(check())
                results[name] = None
            except BaseException:  # noqa: BLE001 (each is reported)
                results[name] = traceback.format_exc()
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
