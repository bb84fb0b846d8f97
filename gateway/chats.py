"""What every chat door has in common: it starts a run with a person's message, follows the run, and says how it ended.

What must hold:
Of what a client sends, only the new message counts. What was said before is the run's own conversation, in Postgres.
A client that leaves ends nothing: the run goes on, and is there under its id.
A run that waits for a person or for money does not hold a connection open.
A client's history is never believed. A decision counts if it names an approval that is stored and pending, with the digest of
what it shows, and if its sender may decide it: never by an agent's own key.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from agents.approvals.deciding import Decider, checked, may_see, no_approval
from agents.approvals.inputs import check_reason
from agents.approvals.record import Approval, ApprovalFilter, Decision
from agents.runs.chat import Called, Chat, Said, as_text
from agents.runs.events import Shown
from agents.runs.record import Run, State, WaitFor
from agents.runs.starting import MESSAGE, StartRequest
from agents.runs.store import RunStore
from agents.runs.watching import Watching
from gateway.callers import Caller
from llm_service.errors import BudgetExhausted, InvalidRequest, TreasurerError, UpstreamError
from llm_service.types import CallContext

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
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
    """What a run says, some at a time, until it has ended or waits for something else than time or runs. An empty list: nothing new."""
    events = watching.events(run_id, shown or Shown(), idle_s=IDLE_S)
    try:
        async for some in events:
            said = [each for event in some for each in chat.take(event)]
            if said or not some:
                yield said
            last = some[-1] if some else None
            if last is not None and last.name == "run.waiting" and not WaitFor(last.data["wait_for"]).is_short:
                return
    finally:
        await events.aclose()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a person answers to what a run has asked. `asked` is the question's id, as `question_id` makes it."""

    asked: str
    approve: bool
    reason: str | None = None
    arguments: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class GoesOn:
    """A run that was answered, what was shown of it until then, and for each answered call, by its position, whether it was approved."""

    run: Run
    shown: Shown
    answered: Mapping[int, bool]


def question_id(approval: Approval) -> str:
    """The id under which a chat front-end is asked: the approval's, with the digest of what is shown. A front-end sends the id back as
    it is, so its decision names what it has shown."""
    return f"{approval.id}.{approval.digest.hex()}"


async def go_on(
    runtime: ChatRuntime, caller: Caller, decider: Decider, agent: str, session: str, replies: Sequence[Reply]
) -> GoesOn:
    """Record decisions about what a run of a conversation has asked.

    Raises:
        NotFound: this conversation has no such question. InvalidRequest: an id or a reason is not one, or a question is
        answered twice.
        NotPermitted, Conflict, ApprovalExpired: as for a decision at /agents/approvals/ID; nothing is changed.
    """
    now, checked_replies = datetime.now(UTC), list[tuple[Approval, Decision]]()
    asked = [_read_question(reply.asked) for reply in replies]
    if len({approval_id for approval_id, _ in asked}) < len(asked):
        raise InvalidRequest("A question is answered twice here. The first decision counts, so answer it once.")
    for (approval_id, digest), reply in zip(asked, replies, strict=True):
        approval = await runtime.runs.approval(approval_id)
        run = await runtime.runs.find(approval.run_id)
        if not may_see(approval, decider) or (run.agent, run.session) != (agent, session):
            raise no_approval(approval_id)
        decision = Decision(reply.approve, digest, decider.shown, _reason_of(reply), reply.arguments)
        checked_replies.append((approval, checked(approval, decision, decider, now)))
    approval, _ = checked_replies[0]
    if any(other.run_id != approval.run_id for other, _ in checked_replies):
        raise InvalidRequest("These decisions are about several runs. Send those of one run at a time.")
    run = await runtime.runs.find(approval.run_id)
    caller.check_sees(run)
    shown = await _shown_of(runtime, run)
    for each, decision in checked_replies:
        await runtime.runs.decide(each.id, decision)
    await runtime.watching.live.watch([run.id])
    return GoesOn(run, shown, {each.position: decision.approve for each, decision in checked_replies})


def _reason_of(reply: Reply) -> str | None:
    if not reply.reason:
        return None if reply.approve else "A person has refused this call."
    try:
        return check_reason(reply.reason)
    except ValueError as error:
        raise InvalidRequest(f"This decision cannot be recorded: {error}.", param="reason") from None


async def _shown_of(runtime: ChatRuntime, run: Run) -> Shown:
    mark = (await runtime.runs.marks([run.id]))[run.id]
    return Shown(mark.position, mark.step_state, mark.step_fence, mark.state, mark.fence)


def _read_question(asked: str) -> tuple[UUID, bytes]:
    approval_id, _, digest = asked.partition(".")
    try:
        return UUID(approval_id), bytes.fromhex(digest)
    except ValueError:
        raise InvalidRequest(f"{asked[:80]!r} is not the id of a question that a run has asked.") from None


class Writer(Protocol[_T_co]):
    """Says what a run says in the events of one API."""

    def begin(self) -> Iterable[_T_co]:
        """The events that come first."""
        ...

    def write(self, said: Said, arguments: Any = None) -> Iterable[_T_co]:
        """The events for one thing that was said. `arguments` are those of a tool's call."""
        ...

    def end(self, run: Run, chat: Chat, questions: list[Approval]) -> Iterable[_T_co]:
        """The events for how the run has ended, or what it waits for."""
        ...


async def written(
    runtime: ChatRuntime, run: Run, shown: Shown | None, writer: Writer[_T], lines: Callable[[_T], bytes]
) -> AsyncGenerator[bytes]:
    """What a run says from here on, as a writer says it: a stream of server-sent events. `lines` writes one event."""
    chat = Chat()
    yield b"".join(map(lines, writer.begin()))
    said = follow(runtime.watching, run.id, chat, shown)
    try:
        async for some in said:
            if not some:
                yield b": nothing new\n\n"
            for each in some:
                arguments = await _arguments_of(runtime, run.id, each) if isinstance(each, Called) else None
                for event in writer.write(each, arguments):
                    yield lines(event)
    finally:
        await said.aclose()
    run = await runtime.runs.find(run.id)
    yield b"".join(map(lines, writer.end(run, chat, await _questions_of(runtime, run))))


async def _arguments_of(runtime: ChatRuntime, run_id: UUID, called: Called) -> Any:
    steps = await runtime.runs.outline(run_id, first=called.position, most=1)
    return steps[0].head.arguments if steps else None


async def _questions_of(runtime: ChatRuntime, run: Run) -> list[Approval]:
    """What a run that waits asks a person."""
    if run.wait_for is not WaitFor.APPROVAL:
        return []
    return await runtime.runs.approvals(ApprovalFilter(run_id=run.id))


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
