"""An agent as a model: `model: "agent/NAME"` at /v1/chat/completions starts a run of the agent, for any client of OpenAI's API.

What must hold, besides what `gateway/chats.py` promises:
Only the last message is read, which is the user's. The conversation is the session that the request names, by the header
x-treasurer-session or else by its user.
What a request asks of a model that an agent decides itself (temperature, most tokens) is left out. What would change what
the agent does (tools, a format of the answer) is refused by name.
A run that waits for a person answers with a message that says so. One that waits for money is a refusal.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, Protocol, cast

from agents.recorded_json import to_json
from agents.runs.chat import Chat, Instead, Text
from agents.runs.record import Run, State
from gateway.callers import Caller
from gateway.chats import ChatRuntime, answer_of, follow, start_chat
from gateway.routes.openai import AGENT
from llm_service.call.response_headers import COST
from llm_service.errors import InvalidRequest, TreasurerError, UpstreamTimeout
from llm_service.money import format_decimal
from llm_service.runs.usage import Tokens
from llm_service.types import Answer, CallContext, Principal
from llm_service.wire.requests import ParsedRequest

_RUN = "x-treasurer-run"
#: These are the agent's affair. Front-ends send them with each request, so they are left out and not refused.
_LEFT_OUT = frozenset(
    {"temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "max_tokens", "max_completion_tokens", "store",
     "parallel_tool_calls", "reasoning_effort", "verbosity", "service_tier", "prompt_cache_key", "metadata"}
)  # fmt: skip
_READ = frozenset({"model", "messages", "stream", "stream_options", "user", "n"})


class Counts(Protocol):
    """The part that reads what a run has used (`TokenCounts` is one)."""

    async def of_run(self, agent_id: int, run: str, since: Any) -> Tokens: ...


class Settings(Protocol):
    """Part of `Settings`."""

    @property
    def call_timeout_s(self) -> float: ...


class AgentModelRuntime(ChatRuntime, Protocol):
    """The parts of a gateway that this door needs (`GatewayRuntime` has them)."""

    @property
    def token_counts(self) -> Counts: ...
    @property
    def settings(self) -> Settings: ...


async def answer_by_agent(
    runtime: AgentModelRuntime, request: ParsedRequest, principal: Principal, context: CallContext
) -> Answer | RunStream:
    """Start a run with the request's last message, and answer what it answers.

    Raises:
        InvalidRequest: an agent cannot serve this request. NotPermitted: the key is another agent's.
        TreasurerErrors: why the run cannot start, or did not succeed.
    """
    message = message_of(request)
    if context.envelope is not None or context.keep_answer_s is not None:
        raise InvalidRequest(
            "A run does not call an agent as a model: its agent would spend outside of the run's budget.", param="model"
        )
    user = context.user or request.user
    tags = tuple(dict.fromkeys((*context.tags, *request.tags)))
    context = replace(context, user=user, session=context.session or user, tags=tags)
    agent = request.model.removeprefix(AGENT)
    run = await start_chat(runtime, Caller(principal), agent, message, context, watched=request.stream)
    if request.stream:
        return RunStream(runtime, run, principal, request)
    limit_s = runtime.settings.call_timeout_s
    run = await runtime.watching.until_settled(run.id, limit_s)
    if not run.state.ended and (run.wait_for is None or run.wait_for.is_short):
        raise _too_slow(run, limit_s)
    text = answer_of(run)
    usage = _usage(await runtime.token_counts.of_run(principal.agent_id, str(run.id), run.created_at))
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    body = _head(run, "chat.completion") | {"choices": [choice], "usage": usage, "treasurer": _story(run)}
    headers = {"content-type": "application/json", _RUN: str(run.id), COST: format_decimal(run.cost_nano)}
    return Answer(200, to_json(body).encode(), headers, run.id, run.cost_nano)


def message_of(request: ParsedRequest) -> str:
    """The user's new message. Raises InvalidRequest: an agent cannot serve this request."""
    for name in request.data:
        if name not in _READ and name not in _LEFT_OUT and request.data[name] not in (None, [], False):
            raise InvalidRequest(
                f"An agent as a model takes no {name[:80]!r}: its configuration says how it works.", param=name[:80]
            )
    if request.choices != 1:
        raise InvalidRequest("An agent as a model answers once: leave out 'n'.", param="n")
    last = cast("list[dict[str, Any]]", request.data["messages"])[-1]
    content: object = last.get("content")
    parts: list[Any] = cast("list[Any]", content) if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if last.get("role") != "user" or len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(
            "An agent reads the last message only, which has to be the user's, as text. What was said before is in its own "
            "conversation.",
            param=f"messages[{len(request.data['messages']) - 1}]",
        )
    return "".join(texts)


class RunStream:
    """What a run says, as chunks of a chat completion."""

    def __init__(self, runtime: AgentModelRuntime, run: Run, principal: Principal, request: ParsedRequest) -> None:
        self.status, self.call_id = 200, run.id
        self.cost_nano: int | None = None
        self.headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            _RUN: str(run.id),
        }
        self._runtime, self._run, self._principal = runtime, run, principal
        self._wants_usage = request.wants_usage
        self._events = self._chunks()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def settled(self) -> None:
        """Does nothing: a run's cost is in its record."""

    async def aclose(self) -> None:
        """Stop watching. The run goes on."""
        await self._events.aclose()

    async def _chunks(self) -> AsyncGenerator[bytes]:
        chat = Chat()
        yield self._chunk({"role": "assistant", "content": ""})
        said = follow(self._runtime.watching, self._run.id, chat)
        try:
            async for some in said:
                if not some:
                    yield b": nothing new\n\n"
                for each in some:
                    match each:
                        case Text(_, text):
                            yield self._chunk({"content": text})
                        case Instead():
                            yield self._chunk({"content": "\n\n[The answer was begun anew.]\n\n"})
                        case _:
                            pass
        finally:
            await said.aclose()
        run = await self._runtime.runs.find(self._run.id)
        text = answer_of(run)
        rest = chat.rest(text) if run.state is State.SUCCEEDED else "\n\n" * bool(chat.text) + text
        if rest:
            yield self._chunk({"content": rest})
        yield self._chunk({}, "stop", treasurer=_story(run))
        if self._wants_usage:
            counts = self._runtime.token_counts
            tokens = await counts.of_run(self._principal.agent_id, str(run.id), run.created_at)
            yield _event(_head(run, "chat.completion.chunk") | {"choices": [], "usage": _usage(tokens)})
        yield b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _event(_head(self._run, "chat.completion.chunk") | {"choices": [choice]} | more)


def _head(run: Run, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{run.id}",
        "object": kind,
        "created": int(run.created_at.timestamp()),
        "model": AGENT + run.agent,
    }


def _story(run: Run) -> dict[str, Any]:
    """What is known of the run, in a field that other clients skip."""
    details: dict[str, Any] = (run.error or {}).get("details") or {}
    story = {"run": str(run.id), "state": run.state, "cost": format_decimal(run.cost_nano)}
    return story | ({"wait_for": run.wait_for, **details} if run.state is State.WAITING else {})


def _usage(tokens: Tokens) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + to_json(content).encode() + b"\n\n"


def _too_slow(run: Run, limit_s: float) -> TreasurerError:
    error = UpstreamTimeout(
        f"Run {run.id} is {run.state}, and has not ended within {limit_s:g} s. It goes on: its answer is at "
        f"GET /agents/runs/{run.id}, or here, if this request is sent again with the same Idempotency-Key.",
        code="run_under_way",
        details={"run": str(run.id), "state": str(run.state)},
    )
    error.should_retry = False
    return error
