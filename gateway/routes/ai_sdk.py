"""/agents/NAME/ai-sdk: an agent for front-ends of Vercel's AI SDK (`useChat`), over runs: its UI message stream, version 1.
https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol

What must hold, besides what `gateway/chats.py` promises:
A chat is a session. Of a request only the new message, or the answers to approvals, are read.
A chat that is taken up again shows the run under way from its start.
Stopping is a separate request, and ends the run. Closing the connection ends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from agents.approvals.record import Approval
from agents.recorded_json import to_json
from agents.runs.chat import Called, Chat, Instead, Said, Text, TextEnd
from agents.runs.record import Run, RunFilter, State
from agents.runs.views import RunView, run_view
from gateway.callers import Caller
from gateway.chats import Reply, answer_of, go_on, question_id, start_chat, written
from gateway.routes.admin.common import Listing, listing
from gateway.routes.agents import Who, agents_router, answer, owner_of
from gateway.routes.approvals import decider_of
from gateway.routes.run_events import StreamResponse
from llm_service.administration.paging import page_of
from llm_service.administration.transaction import searchable
from llm_service.errors import InvalidRequest, NotFound, TreasurerError
from llm_service.types import CallContext
from llm_service.wire.requests import MAX_ATTRIBUTION, attribution

if TYPE_CHECKING:
    from agents.runs.events import Shown
    from gateway.composition import GatewayRuntime

router = agents_router("ai-sdk", ())
_HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
#: More runs of one chat than can be under way.
_MOST_RUNS = 50
_STREAM: dict[str, Any] = {
    "description": "The AI SDK's UI message stream.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


class _Sent(BaseModel):
    """What a front-end sends. Fields that are not read may be anything."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Approved(_Sent):
    id: str
    approved: bool | None = None
    reason: str | None = None


class Part(_Sent):
    type: str
    text: str | None = None
    state: str | None = None
    approval: Approved | None = None


class UIMessage(_Sent):
    id: str
    role: Literal["system", "user", "assistant"]
    parts: list[Part]


class ChatInput(_Sent):
    """The id of the chat, and its messages, of which the last one is read."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ATTRIBUTION)]
    messages: Annotated[list[UIMessage], Field(min_length=1)]
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"


def _runtime(request: Request) -> GatewayRuntime:
    return request.app.state.runtime


@router.post("/{agent}/ai-sdk", responses={200: _STREAM})
async def chat(request: Request, agent: str, given: ChatInput, caller: Who) -> Response:
    """Start a run with the last message of a chat, or let one go on by answers to its approvals, and stream what it says."""
    runtime, last, session = _runtime(request), given.messages[-1], _session(given.id)
    if last.role == "assistant":
        goes_on = await go_on(runtime, caller, decider_of(owner_of(request)), agent, session, _replies(last))
        return _answer(runtime, goes_on.run, goes_on.shown, goes_on.answered)
    repeats = given.trigger == "submit-message"
    key = attribution(f"ai-sdk/{session}/{last.id}", "The message's id", "messages", 255) if repeats else None
    context = CallContext(session=session, idempotency_key=key)
    return _answer(runtime, await start_chat(runtime, caller, agent, _text(last), context, watched=True))


@router.get("/{agent}/ai-sdk/{chat}/stream", responses={200: _STREAM, 204: {"description": "No run is under way."}})
async def resume(request: Request, agent: str, chat: str, caller: Who) -> Response:
    """The stream of the chat's run that is under way, from its start."""
    runtime = _runtime(request)
    unended = await _under_way(runtime, caller, agent, chat)
    runs = [run for run in unended if run.wait_for is None or run.wait_for.is_short]
    return _answer(runtime, runs[-1]) if runs else Response(status_code=204)


@router.post("/{agent}/ai-sdk/{chat}/stop", response_model=Listing[RunView])
async def stop(request: Request, agent: str, chat: str, caller: Who) -> Response:
    """Cancel the runs of a chat that have not ended."""
    runtime = _runtime(request)
    caller.check_acts_for(agent)
    stopped = [await runtime.runs.cancel(run.id) for run in await _under_way(runtime, caller, agent, chat)]
    views = [run_view(run, await runtime.runs.spent(run.id)) for run in stopped]
    return answer(listing(page_of(views, _MOST_RUNS, lambda view: view), lambda run: run.number))


async def _under_way(runtime: GatewayRuntime, caller: Caller, agent: str, chat: str) -> list[Run]:
    """The chat's runs that have not ended, the newest first. Raises NotFound: the agent has no chat with this id."""
    wanted = RunFilter(agent=searchable(agent), team_id=caller.team_id, session=_session(chat), most=_MOST_RUNS)
    runs = await runtime.runs.page(wanted)
    if not runs:
        raise NotFound(f"Agent {agent[:80]!r} has no chat {chat[:80]!r}.", param="chat")
    return [run for run in runs if not run.state.ended]


def _session(chat: str) -> str:
    session = attribution(chat, "The chat's id", "id")
    if session is None:
        raise InvalidRequest("A chat has an id.", param="id")
    return session


def _text(message: UIMessage) -> str:
    if message.role != "user" or not all(part.type == "text" and part.text is not None for part in message.parts):
        raise InvalidRequest("The last message has to be the user's, of parts of text.", param="messages")
    return "".join(part.text or "" for part in message.parts)


def _replies(message: UIMessage) -> list[Reply]:
    replies = [
        Reply(part.approval.id, part.approval.approved, part.approval.reason)
        for part in message.parts
        if part.state == "approval-responded" and part.approval is not None and part.approval.approved is not None
    ]
    if not replies:
        raise InvalidRequest(
            "The last message is the agent's, and answers no approval. An agent reads the user's messages only.",
            param="messages",
        )
    return replies


# -- what it answers


def _answer(
    runtime: GatewayRuntime, run: Run, shown: Shown | None = None, answered: Mapping[int, bool] = MappingProxyType({})
) -> Response:
    stream = written(runtime, run, shown, Writer(run, answered), _lines)
    return StreamResponse(stream, runtime.settings.stalled_timeout_s, f"run {run.id}", _ERRORS, _HEADERS)


class Writer:
    """What a run says, as parts of the AI SDK's stream. A run is one message. `answered`: the calls about which
    the request decides, by position, and whether it approves."""

    def __init__(self, run: Run, answered: Mapping[int, bool]) -> None:
        self._id, self._answered = str(run.id), answered
        self._open: str | None = None
        self._texts = 0

    def begin(self) -> Iterator[dict[str, Any]]:
        """The parts that come first."""
        yield {"type": "start", "messageId": self._id, "messageMetadata": {"run": self._id}}
        yield {"type": "start-step"}
        for position, approved in self._answered.items():
            if not approved:
                yield {"type": "tool-output-denied", "toolCallId": self._call(position)}

    def write(self, said: Said, arguments: Any = None) -> Iterator[dict[str, Any]]:
        """The parts for one thing that was said. `arguments` are those of a tool's call."""
        match said:
            case Text(_, text):
                yield from self._say(text)
            case Instead() | TextEnd():
                yield from self._close()
            case Called(position, tool):
                if not self._answered.get(position, True):
                    return
                yield from self._close()
                if position not in self._answered:  # else the front-end has the call from the approval
                    yield self._input(position, tool, arguments)
                # What a tool returned belongs to the run. The front-end learns that the call is over.
                yield {
                    "type": "tool-output-available",
                    "toolCallId": self._call(position),
                    "output": "done",
                    "dynamic": True,
                }

    def end(self, run: Run, chat: Chat, questions: list[Approval]) -> Iterator[dict[str, Any] | None]:
        """The parts for how the run has ended, or what it waits for; and None, for the end of the stream."""
        failed = False
        if questions:
            yield from self._close()
        for each in questions:
            yield self._input(each.position, each.tool, each.arguments)
            call_id = self._call(each.position)
            yield {"type": "tool-approval-request", "approvalId": question_id(each), "toolCallId": call_id}
        if not questions:
            try:
                text = answer_of(run)
                rest = chat.rest(run.output) if run.state is State.SUCCEEDED else text
                if rest:
                    yield from self._say(rest)
                yield from self._close()
            except TreasurerError as error:
                failed = True
                yield from self._close()
                yield _error(error)
        yield {"type": "finish-step"}
        yield {"type": "finish", "finishReason": "error" if failed else "tool-calls" if questions else "stop"}
        yield None

    def _say(self, text: str) -> Iterator[dict[str, Any]]:
        if self._open is None:
            self._texts += 1
            self._open = f"{self._id}.text.{self._texts}"
            yield {"type": "text-start", "id": self._open}
        yield {"type": "text-delta", "id": self._open, "delta": text}

    def _close(self) -> Iterator[dict[str, Any]]:
        text, self._open = self._open, None
        if text is not None:
            yield {"type": "text-end", "id": text}

    def _call(self, position: int) -> str:
        return f"{self._id}.{position}"

    def _input(self, position: int, tool: str, arguments: Any) -> dict[str, Any]:
        call_id = self._call(position)
        return {
            "type": "tool-input-available",
            "toolCallId": call_id,
            "toolName": tool,
            "input": arguments or {},
            "dynamic": True,
        }


def _lines(part: dict[str, Any] | None) -> bytes:
    return b"data: " + (b"[DONE]" if part is None else to_json(part).encode()) + b"\n\n"


def _error(error: TreasurerError) -> dict[str, Any]:
    return {"type": "error", "errorText": error.message}


class _AISDKErrors:
    def event(self, error: TreasurerError) -> bytes:
        return _lines(_error(error))


_ERRORS = _AISDKErrors()
