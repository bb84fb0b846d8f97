"""What every chat door has in common: it starts a run with a person's message, follows the run, and says how it ended.

What must hold:
Of what a client sends, only the new message counts. What was said before is the run's own conversation, in Postgres.
A client that leaves ends nothing: the run goes on, and is there under its id.
A run that waits for a person or for money does not hold a connection open.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol
from uuid import UUID

from agents.runs.chat import Chat, Said, as_text
from agents.runs.events import Shown
from agents.runs.record import Run, State, WaitFor
from agents.runs.starting import MESSAGE, StartRequest
from agents.runs.store import RunStore
from agents.runs.watching import Watching
from gateway.callers import Caller
from llm_service.errors import BudgetExhausted, TreasurerError, UpstreamError
from llm_service.types import CallContext

#: After so many seconds without anything new, a stream sends a comment, so that no proxy in between closes it as dead.
IDLE_S = 15.0


class ChatStarter(Protocol):
    """The part that records runs (`RunStarter` is one)."""

    async def start(self, request: StartRequest) -> Run: ...
    async def takes_messages(self, agent: str) -> bool: ...


class ChatRuntime(Protocol):
    """The parts of a gateway that chat doors need (`GatewayRuntime` has them)."""

    @property
    def runs(self) -> RunStore: ...
    @property
    def watching(self) -> Watching: ...
    @property
    def starter(self) -> ChatStarter: ...


async def start_chat(
    runtime: ChatRuntime, caller: Caller, agent: str, message: str, context: CallContext, *, watched: bool
) -> Run:
    """Start a run with a message. The context's session is the conversation, and its key makes a repetition the same run.

    Raises:
        NotPermitted: the key is another agent's. What `RunStarter.start` raises.
    """
    caller.check_acts_for(agent)
    key = context.idempotency_key
    return await runtime.starter.start(
        StartRequest(
            agent,
            {MESSAGE: message},
            id=await runtime.watching.expected() if watched else None,
            key=None if key is None else f"chat/{caller.scope}/{key}",
            session=context.session,
            asked_by=caller.name,
            on_behalf_of=context.user,
            tags=context.tags,
        )
    )


async def follow(
    watching: Watching, run_id: UUID, chat: Chat, shown: Shown | None = None
) -> AsyncGenerator[list[Said], None]:
    """What a run says, some at a time, until it has ended or waits for something else than time. An empty list: nothing new."""
    events = watching.events(run_id, shown or Shown(), idle_s=IDLE_S)
    try:
        async for some in events:
            said = [each for event in some for each in chat.take(event)]
            if said or not some:
                yield said
            last = some[-1] if some else None
            if last is not None and last.name == "run.waiting" and last.data["wait_for"] != WaitFor.TIME:
                return
    finally:
        await events.aclose()


def answer_of(run: Run) -> str:
    """What a run that has ended or waits tells the person who chats.

    Raises:
        BudgetExhausted: the run waits for money. UpstreamError: it did not succeed.
    """
    if run.state is State.SUCCEEDED:
        return as_text(run.output)
    error = run.error or {}
    message = str(error.get("message") or f"The run is {run.state}.")
    if run.state is State.WAITING and run.wait_for is not WaitFor.MONEY:
        return f"{message}\n\n{waits(run)}"
    raise failure_of(run, message, error)


def waits(run: Run) -> str:
    """What a person does about a run that waits."""
    return (
        f"Run {run.id} waits for {run.wait_for} and goes on after that, also if you leave. Its answer is then at "
        f"GET /agents/runs/{run.id}, or here, if this request is sent again with the same Idempotency-Key."
    )


def failure_of(run: Run, message: str, error: dict[str, Any]) -> TreasurerError:
    details = {"run": str(run.id), "state": str(run.state)}
    code = str(error.get("code") or f"run_{run.state}")
    if run.state is State.WAITING:
        return BudgetExhausted(
            f"{message} Run {run.id} waits for money. It goes on when its budget is reset or raised; to end it: "
            f"POST /agents/runs/{run.id}/cancel.",
            code=code,
            details=details,
        )
    failure = UpstreamError(f"Run {run.id} is {run.state}: {message}", code=code, details=details)
    failure.should_retry = False
    return failure
