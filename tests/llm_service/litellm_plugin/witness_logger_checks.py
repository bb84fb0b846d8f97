"""LiteLLM's callbacks as witnesses. Run by run_checks.py."""

# pyright: basic, reportMissingImports=false, reportPrivateUsage=false

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import litellm
from litellm.types.utils import Usage as LiteLLMUsage

from llm_service.litellm_plugin.chunk_folding import MOST
from llm_service.litellm_plugin.drain import DrainLimits
from llm_service.litellm_plugin.events import grant_name
from llm_service.litellm_plugin.open_requests import OpenRequests
from llm_service.litellm_plugin.witness_logger import WitnessLogger, WitnessSink
from llm_service.litellm_plugin.worker_streams import WorkerStreams
from llm_service.witness import Witness
from tests.llm_service.litellm_plugin.checking import Door, Kept, body, chunk, granted, words

QUICK = DrainLimits(round_s=0.05, most_s=0.15)


def logger_to(sink: WitnessSink, limits: DrainLimits = QUICK, requests: OpenRequests | None = None) -> WitnessLogger:
    return WitnessLogger(sink, WorkerStreams(drain_limits=limits), requests or OpenRequests())


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
    await logger_to(kept).async_log_success_event(kwargs, response, None, None)
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
    """The service and the plugin read such a stream to its end, because LiteLLM's own count proves nothing."""
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
    logger = logger_to(Kept())
    content = body()
    for once, retries in ((True, 0), (False, None)):
        data: dict[str, Any] = {}
        await logger.async_pre_call_hook(
            await Door().ask(granted(content, once=once), content), None, data, "acompletion"
        )
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
    class Broken:
        def add(self, witness: Witness) -> None:
            raise ZeroDivisionError

    await logger_to(Broken()).async_log_success_event(event(), SimpleNamespace(usage=USAGE), None, None)


async def check_each_failed_attempt_is_witnessed() -> None:
    kept = Kept()
    logger = logger_to(kept)
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
    hook = logger_to(kept).async_post_call_streaming_iterator_hook
    assert [chunk async for chunk in hook(None, stream([1, 2]), {})] == [1, 2]
    assert kept.witnesses == []


async def endless(items: int) -> Any:
    for item in range(items):
        yield item
    await asyncio.sleep(3600)


async def left(source: Any, *, drains: bool = False) -> tuple[Kept, Any, dict[str, Any]]:
    """A stream whose reader leaves after its first chunk."""
    kept, details = Kept(), event(messages=[])
    logger = logger_to(kept)
    call = SimpleNamespace(model_call_details=details, start_time=None)
    key = SimpleNamespace(metadata={"treasurer": {"drain_on_disconnect": drains}})
    chunks = logger.async_post_call_streaming_iterator_hook(key, source, {"litellm_logging_obj": call})
    await chunks.__anext__()
    await chunks.aclose()
    return kept, logger, details


async def check_a_stream_that_its_caller_left_and_that_ends_soon_is_left_to_its_success() -> None:
    kept, logger, details = await left(stream([object()] * 500))
    assert kept.witnesses == []
    for _ in range(2):  # LiteLLM reports its own end, and then that the reader had left
        await logger.async_log_success_event(details, SimpleNamespace(usage=USAGE), None, None)
    assert [w.outcome for w in kept.witnesses] == ["success"]


async def check_a_stream_that_its_caller_left_and_that_goes_on_is_given_up_and_witnessed_once() -> None:
    kept, logger, details = await left(endless(3))
    assert [(w.outcome, w.status, w.cost_nano, w.counted) for w in kept.witnesses] == [("cancelled", 499, None, True)]
    await logger.async_log_success_event(details, SimpleNamespace(usage=USAGE), None, None)
    assert len(kept.witnesses) == 1, "LiteLLM's own event for the same end"


async def check_i1_a_stream_that_was_not_read_to_where_its_provider_had_come_is_witnessed_as_unread() -> None:
    async def faster() -> Any:
        while True:
            yield object()

    for source, unread in ((faster(), True), (endless(3), False)):
        kept, _, _ = await left(source)
        assert [(w.outcome, w.counted, w.unread) for w in kept.witnesses] == [("cancelled", True, unread)]
        assert json.loads(kept.witnesses[0].line())["unread"] is unread


async def check_neither_the_plugin_nor_litellm_keeps_every_chunk() -> None:
    """The plugin folds the chunks that LiteLLM's wrapper keeps, in LiteLLM's own list, while the stream runs."""

    class Wrapper:
        def __init__(self) -> None:
            self.chunks: list[Any] = []

        async def __aiter__(self) -> Any:
            for each in words(500):
                self.chunks.append(each)
                yield each

    wrapper, longest = Wrapper(), 0
    hook = logger_to(Kept()).async_post_call_streaming_iterator_hook
    text = ""
    async for each in hook(None, wrapper, {}):
        text += each.choices[0].delta.content
        longest = max(longest, len(wrapper.chunks))
    assert text == "".join(f" word{number}" for number in range(500))
    assert longest <= MOST


async def check_a_call_that_asks_its_provider_is_past_its_beginning() -> None:
    asked: list[str] = []
    streams = WorkerStreams()
    streams.provider_is_asked = asked.append  # type: ignore[method-assign]
    logger = WitnessLogger(Kept(), streams, OpenRequests())
    call_id = METADATA["user_api_key_metadata"]["treasurer"]["call_id"]
    logger.log_pre_api_call("gpt-4o", [], {"litellm_params": {"metadata": METADATA}})
    logger.log_pre_api_call("gpt-4o", [], {"metadata": METADATA})
    assert asked == [f"{call_id}.3"] * 2


async def check_a_stream_that_must_be_finished_is_read_to_its_end() -> None:
    async def slow() -> Any:
        for item in range(4):
            await asyncio.sleep(0.05)
            yield item

    kept, _, _ = await left(slow(), drains=True)
    assert kept.witnesses == []


async def check_a_stream_that_breaks_when_its_caller_has_left_is_witnessed() -> None:
    kept, _, _ = await left(stream([object()] * 3, ConnectionResetError("cut")))
    assert [(w.outcome, w.error) for w in kept.witnesses] == [("failure", "ConnectionResetError")]


class Wrapper:
    """A stream of LiteLLM's wrapper: the chunks that it passes on, those that it keeps, and the error at its end."""

    def __init__(self, kept: list[Any], error: Exception) -> None:
        self.chunks: list[Any] = []
        self._kept = kept
        self._error = error

    async def __aiter__(self) -> Any:
        for each in self._kept:
            self.chunks.append(each)
            yield each
        raise self._error


REPORT = LiteLLMUsage(prompt_tokens=100, completion_tokens=4)


async def broken(*chunks: Any) -> Witness:
    """The witness of a stream that breaks after these chunks."""
    kept = Kept()
    call = SimpleNamespace(
        model_call_details=event(messages=[]), start_time=None, response_cost_calculator=lambda result: 0.25
    )
    hook = logger_to(kept).async_post_call_streaming_iterator_hook
    try:
        async for _ in hook(None, Wrapper(list(chunks), ConnectionResetError()), {"litellm_logging_obj": call}):
            pass
    except ConnectionResetError:
        (witness,) = kept.witnesses
        return witness
    raise AssertionError("the error was swallowed")


async def check_i2_the_provider_s_own_end_is_the_witness_of_a_stream_that_breaks_after_it() -> None:
    end = chunk(content=None, finish_reason="stop")
    for chunks in (
        [*words(4), end, chunk(usage=REPORT)],  # as from OpenAI
        [*words(4), chunk(content=None, finish_reason="stop", usage=REPORT)],  # as from Anthropic
    ):
        witness = await broken(*chunks)
        seen = (witness.outcome, witness.exact, witness.status, witness.cost_nano)
        assert seen == ("success", True, 200, 250_000_000), seen
        assert (witness.usage.input_tokens, witness.usage.output_tokens) == (100, 4)
    early = chunk(content="word", usage=REPORT)
    for name, chunks in (
        ("no report", [*words(4), end]),
        ("a report before the end", [early, *words(4), end]),
        ("no end", [*words(4), early]),
        ("one of two choices has ended", [chunk(content="a", index=1), *words(4), end, chunk(usage=REPORT)]),
        ("a report of too little", [*words(400), end, chunk(usage=LiteLLMUsage(prompt_tokens=9, completion_tokens=1))]),
    ):
        witness = await broken(*chunks)
        assert (witness.outcome, witness.counted) == ("failure", True), name


async def check_what_was_not_sent_has_cost_nothing_before_the_first_chunk_of_a_stream() -> None:
    refused = type("HTTPStatusError", (Exception,), {})("500")
    for error, cost in ((refused, 0), (ConnectionResetError("cut"), None)):
        kept = Kept()
        call = SimpleNamespace(model_call_details=event(), start_time=None)
        hook = logger_to(kept).async_post_call_streaming_iterator_hook
        try:
            async for _ in hook(None, stream([], error), {"litellm_logging_obj": call}):
                pass
        except type(error):
            assert [(w.outcome, w.cost_nano) for w in kept.witnesses] == [("failure", cost)], error


async def check_litellm_s_own_figure_is_apart_from_what_the_provider_names_as_its_cost() -> None:
    async def passed(provider: Any) -> dict[str, Any]:
        last = chunk(usage=LiteLLMUsage(prompt_tokens=100, completion_tokens=4, cost=0.5))

        class Ended:
            def __init__(self) -> None:
                kept = LiteLLMUsage(prompt_tokens=100, completion_tokens=4, cost=provider)
                self.chunks = [*words(4), chunk(usage=kept)]

            async def __aiter__(self) -> Any:
                yield last

        (shown,) = [each async for each in logger_to(Kept()).async_post_call_streaming_iterator_hook(None, Ended(), {})]
        return json.loads(shown.model_dump_json(exclude_none=True, exclude_unset=True))["usage"]

    ours = await passed(None)
    assert (ours.get("cost"), ours["litellm_cost"], ours["prompt_tokens"]) == (None, 0.5, 100), ours
    theirs = await passed(0.125)
    assert (theirs["cost"], theirs["litellm_cost"]) == (0.125, 0.5), theirs


async def check_i1_a_stream_that_litellm_ended_itself_is_witnessed_as_unread() -> None:
    """LiteLLM stopped before the provider did: it refused to read on, or its time was over."""
    ends: list[tuple[Exception, bool]] = [
        (litellm.Timeout("too long", "gpt-4o", "openai"), True),
        (KeyError("a chunk that LiteLLM cannot read"), True),
        (TimeoutError(), True),
        (ConnectionResetError("cut"), False),
        (litellm.APIError(500, "overloaded", "openai", "gpt-4o"), False),
    ]
    for error, unread in ends:
        kept, _, _ = await left(stream([object()] * 3, error))
        assert [(w.outcome, w.unread) for w in kept.witnesses] == [("failure", unread)], error
        kept = Kept()
        call = SimpleNamespace(model_call_details=event(), start_time=None)
        hook = logger_to(kept).async_post_call_streaming_iterator_hook
        try:
            async for _ in hook(None, stream([object()], error), {"litellm_logging_obj": call}):
                pass
        except type(error):
            assert [(w.outcome, w.unread) for w in kept.witnesses] == [("failure", unread)], error
    refused = type("ConnectTimeout", (Exception,), {})("nobody there")
    kept, _, _ = await left(stream([object()], refused))
    assert not kept.witnesses[0].unread, "nothing was sent"


async def check_an_error_says_whether_anything_can_have_been_billed() -> None:
    requests = OpenRequests()
    logger = logger_to(Kept(), requests=requests)
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
    assert await told([], garbage) == "0", "a request that is not known here"
    for streamed in (False, True):
        requests.begin(grant_name(key.metadata))
        assert await told([], garbage, stream=streamed) == "1", "a cooldown"
        await logger.async_pre_call_deployment_hook({"metadata": METADATA}, None)
        assert await told([], garbage, stream=streamed) == "0", "a deployment was chosen"
        assert await told([], refused, stream=streamed) == "1"


async def check_an_error_says_whether_the_request_was_at_fault() -> None:
    logger = logger_to(Kept())
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
    hook = logger_to(kept).async_post_call_streaming_iterator_hook
    try:
        async for _ in hook(None, stream([], ValueError("cut")), {"litellm_logging_obj": call}):
            pass
    except ValueError:
        assert [(w.outcome, w.error) for w in kept.witnesses] == [("failure", "ValueError")]
    else:
        raise AssertionError("the error was swallowed")
