"""POST /agents/NAME/ag-ui: an agent for front-ends that speak AG-UI 1.0 (https://docs.ag-ui.com), over runs.

What must hold, besides what `gateway/chats.py` promises:
A thread is a session. Of a request only the new message and the answers to interrupts are read.
What a run asks a person is an interrupt, whose id names the approval and the digest of what is shown.
The same thread and run id are the same run, so a request that is sent again buys nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from ag_ui.core import (
    BaseEvent,
    Interrupt,
    ResumeEntry,
    RunAgentInput,
    RunErrorEvent,
    RunFinishedEvent,
    RunFinishedInterruptOutcome,
    RunFinishedSuccessOutcome,
    RunStartedEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)
from fastapi import Request, Response
from pydantic import ValidationError

from agents.approvals.record import Approval
from agents.recorded_json import to_json
from agents.runs.chat import Called, Chat, Instead, Said, Text, TextEnd
from agents.runs.record import Run, State
from gateway.chats import Reply, answer_of, go_on, question_id, start_chat, written
from gateway.routes.agents import Who, agents_router, owner_of
from gateway.routes.approvals import decider_of
from gateway.routes.run_events import StreamResponse
from llm_service.errors import InvalidRequest, TreasurerError
from llm_service.types import CallContext
from llm_service.wire.requests import attribution

if TYPE_CHECKING:
    from agents.runs.events import Shown
    from gateway.composition import GatewayRuntime

router = agents_router("ag-ui", ())

_STREAM: dict[str, Any] = {
    "description": "AG-UI's events, as server-sent events.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"type": "object", "additionalProperties": True}}},
}


@router.post("/{agent}/ag-ui", responses={200: _STREAM}, openapi_extra={"requestBody": _BODY})
async def run_agent(request: Request, agent: str, caller: Who) -> Response:
    """Start a run with the last message of a thread, or let one go on by answers to its interrupts, and stream what it says."""
    runtime: GatewayRuntime = request.app.state.runtime
    given = read_input(await request.body())
    thread = attribution(given.thread_id, "threadId", "threadId")
    if thread is None:
        raise InvalidRequest("A thread has an id: 'threadId'.", param="threadId")
    shown: Shown | None = None
    answered: Mapping[int, bool] = {}
    if given.resume:
        decider, replies = decider_of(owner_of(request)), [_reply(entry) for entry in given.resume]
        goes_on = await go_on(runtime, caller, decider, agent, thread, replies)
        run, shown, answered = goes_on.run, goes_on.shown, goes_on.answered
    else:
        key = attribution(f"ag-ui/{thread}/{given.run_id}", "runId", "runId", 255)
        context = CallContext(session=thread, idempotency_key=key)
        run = await start_chat(runtime, caller, agent, _message(given), context, watched=True)
    writer = Writer(run.id, given.thread_id, given.run_id, answered)
    stream = written(runtime, run, shown, writer, _lines)
    return StreamResponse(stream, runtime.settings.stalled_timeout_s, f"run {run.id}", _ERRORS)


def read_input(body: bytes) -> RunAgentInput:
    """The request. Raises InvalidRequest: it is not AG-UI's."""
    try:
        return RunAgentInput.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))[:80]
        raise InvalidRequest(
            f"This is not an input of AG-UI: {place or 'body'}: {first['msg']}.", param=place or None
        ) from None


def _message(given: RunAgentInput) -> str:
    last = given.messages[-1] if given.messages else None
    content: object = getattr(last, "content", None)
    parts: list[object] = [*cast("list[object]", content)] if isinstance(content, list) else [content]
    texts: list[object] = [part if isinstance(part, str) else getattr(part, "text", None) for part in parts]
    if last is None or last.role != "user" or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(
            "The last message has to be the user's, as text. An agent reads nothing else: what was said before is in its own "
            "conversation, and tools and their results are its own.",
            param="messages",
        )
    return "".join(map(str, texts))


def _reply(entry: ResumeEntry) -> Reply:
    if entry.status == "cancelled":
        return Reply(entry.interrupt_id, False, "A person has cancelled this call.")
    payload: object = entry.payload
    given = cast("dict[str, object]", payload) if isinstance(payload, dict) else {"approved": payload}
    approved, reason, edited = given.get("approved"), given.get("reason"), given.get("editedArgs")
    if not isinstance(approved, bool) or not isinstance(reason, str | None) or not isinstance(edited, dict | None):
        raise InvalidRequest(
            'An interrupt is answered with {"approved": true or false, "reason": …, "editedArgs": {…}}.', param="resume"
        )
    return Reply(entry.interrupt_id, approved, reason, cast("dict[str, Any] | None", edited))


# -- what it answers


class Writer:
    """What a run says, as AG-UI's events. `thread` and `name` are the ids that the front-end has given to the thread and to
    the run. `answered`: the positions of the calls about which the request decides, and whether it approves."""

    def __init__(self, run_id: UUID, thread: str, name: str, answered: Mapping[int, bool]) -> None:
        self._run_id, self._thread, self._name, self._answered = run_id, thread, name, answered
        self._open: str | None = None  # the id of the message that is being written
        self._messages = 0

    def begin(self) -> list[BaseEvent]:
        """The event that comes first."""
        return [RunStartedEvent(thread_id=self._thread, run_id=self._name)]

    def write(self, said: Said, arguments: Any = None) -> list[BaseEvent]:
        """The events for one thing that was said. `arguments` are those of a tool's call."""
        match said:
            case Text(_, text):
                return [*self._start_message(), TextMessageContentEvent(message_id=self._open or "", delta=text)]
            case Instead() | TextEnd():
                return self._close()
            case Called(position, tool):
                call_id = f"{self._run_id}.{position}"
                outcome = "done" if self._answered.get(position, True) else "refused"
                return [
                    *self._close(),
                    ToolCallStartEvent(tool_call_id=call_id, tool_call_name=tool),
                    ToolCallArgsEvent(tool_call_id=call_id, delta=to_json(arguments or {})),
                    ToolCallEndEvent(tool_call_id=call_id),
                    # What a tool returned belongs to the run. The front-end learns that the call is over.
                    ToolCallResultEvent(message_id=f"{call_id}.result", tool_call_id=call_id, content=outcome),
                ]

    def end(self, run: Run, chat: Chat, questions: list[Approval]) -> list[BaseEvent]:
        """The events for how the run has ended, or what it waits for."""
        finished = partial(RunFinishedEvent, thread_id=self._thread, run_id=self._name)
        if questions:
            outcome = RunFinishedInterruptOutcome(interrupts=[_interrupt(each) for each in questions])
            return [*self._close(), finished(outcome=outcome)]
        if run.state is not State.SUCCEEDED:
            try:
                message, code = answer_of(run), f"run_waits_for_{run.wait_for}"
            except TreasurerError as error:
                message, code = error.message, error.code
            return [*self._close(), RunErrorEvent(message=message, code=code)]
        rest = chat.rest(run.output)
        texts = (
            [*self._start_message(), TextMessageContentEvent(message_id=self._open or "", delta=rest)] if rest else []
        )
        return [*texts, *self._close(), finished(outcome=RunFinishedSuccessOutcome(), result=run.output)]

    def _start_message(self) -> list[BaseEvent]:
        if self._open is not None:
            return []
        self._messages += 1
        self._open = f"{self._run_id}.message.{self._messages}"
        return [TextMessageStartEvent(message_id=self._open, role="assistant")]

    def _close(self) -> list[BaseEvent]:
        message, self._open = self._open, None
        return [] if message is None else [TextMessageEndEvent(message_id=message)]


def _interrupt(approval: Approval) -> Interrupt:
    edited = approval.schema or {"type": "object"}
    return Interrupt(
        id=question_id(approval),
        reason="tool_approval",
        message=f"The agent asks to call the tool {approval.tool}.",
        response_schema={
            "type": "object",
            "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string"}, "editedArgs": edited},
            "required": ["approved"],
        },
        expires_at=approval.expires_at.isoformat(),
        metadata={
            "run": str(approval.run_id),
            "approval": str(approval.id),
            "tool": approval.tool,
            "arguments": approval.arguments,
            "why": approval.why,
        },
    )


def _lines(event: BaseEvent) -> bytes:
    return b"data: " + to_json(event.model_dump(mode="json", by_alias=True)).encode() + b"\n\n"


class _AGUIErrors:
    def event(self, error: TreasurerError) -> bytes:
        return _lines(RunErrorEvent(message=error.message, code=error.code))


_ERRORS = _AGUIErrors()
