"""/agents: runs of agents, which are listed, looked at, watched, cancelled, retried and forked.

What must hold:
An agent's key sees the runs of its team, and nothing shows that another team's run exists. It acts on the runs of its own
agent only.
An agent's key never decides what a person has to decide of a run (invariant I8).
An administrator's key sees and does all.
A wrong request is answered by name and changes nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import Depends, Header, Query, Request, Response
from pydantic import AfterValidator, Field

from agents.approvals.record import MOST_ASKED, ApprovalFilter
from agents.runs.code_version import CODE_VERSION
from agents.runs.events import Shown, read_id
from agents.runs.record import Run, RunFilter, SessionPolicy, State
from agents.runs.starting import StartRequest
from agents.runs.store import RunStore
from agents.runs.views import RunView, StepListing, run_view, step_view
from agents.runs.watching import Watching
from gateway.asgi import unless_caller_leaves
from gateway.callers import Caller
from gateway.chats import IDLE_S
from gateway.routes.admin.common import Listing, listing
from gateway.routes.agents import MOST_ROWS, Who, agents_router, answer
from gateway.routes.run_events import EventResponse
from llm_service.administration.inputs import MAX_ID, Amount, AmountOrZero, Input, parse_past
from llm_service.administration.paging import page_of, to_fetch
from llm_service.errors import InvalidRequest, NotPermitted
from llm_service.ids import new_call_id
from llm_service.wire.requests import MAX_ATTRIBUTION, MAX_TAGS, attribution

MOST_WAIT_S = 300


class Starter(Protocol):
    """The part that records runs (`RunStarter` is one)."""

    async def start(self, request: StartRequest) -> Run: ...
    async def retry(self, run: Run, *, decides: bool = True, budget_nano: int | None = None) -> Run: ...


class RunsSettings(Protocol):
    """Part of `Settings`."""

    @property
    def stalled_timeout_s(self) -> float: ...


class RunsRuntime(Protocol):
    """The parts of a gateway that these routes need (`GatewayRuntime` has them)."""

    @property
    def runs(self) -> RunStore: ...
    @property
    def watching(self) -> Watching: ...
    @property
    def starter(self) -> Starter: ...
    @property
    def settings(self) -> RunsSettings: ...


def _runtime(request: Request) -> RunsRuntime:
    return request.app.state.runtime


Runtime = Annotated[RunsRuntime, Depends(_runtime)]
Key = Annotated[
    str | None,
    Header(
        alias="idempotency-key", description="The same key again is the same run; with another body it is a conflict."
    ),
]

router = agents_router("runs", ("agent", "state", "session", "user", "since", "limit", "after"))


def _attributed(value: str) -> str:
    if not value or not value.isprintable() or value != value.strip():
        raise ValueError(f"1 to {MAX_ATTRIBUTION} printable characters, without white space at the ends")
    return value


Attributed = Annotated[str, Field(max_length=MAX_ATTRIBUTION), AfterValidator(_attributed)]


class StartInput(Input):
    """A run to start. `input` is what the agent takes. `budget`: the most that the run and its children spend; `reserve`:
    what is held of it at the start; both in dollars, and at most what the agent's configuration says, unless an
    administrator asks. `session`: the conversation that the run goes on with; `on_session`: what becomes of the run while another
    one of the session has not ended (as the agent is configured, unless it is said here). `wait`: for how many seconds the
    answer waits for the run's end. `watch`: its events will be watched, so that its text is sent while it is written from
    the first step on."""

    input: dict[str, Any] = Field(default_factory=dict[str, Any])
    budget: Amount | None = None
    reserve: AmountOrZero | None = None
    user: Attributed | None = None
    session: Attributed | None = None
    on_session: Annotated[SessionPolicy, Field(strict=False)] | None = None
    tags: Annotated[list[Attributed], Field(max_length=MAX_TAGS)] = Field(default_factory=list[str])
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    wait: Annotated[float, Field(ge=0, le=MOST_WAIT_S, allow_inf_nan=False)] = 0
    watch: bool = False


class ForkInput(Input):
    """The number of the run's steps with which the new run begins. It does all later steps itself."""

    steps: Annotated[int, Field(ge=0, le=100_000)]


class RetryInput(Input):
    """`budget`: the most that the run and its children may spend from now on, in dollars. It is higher than before."""

    budget: Amount | None = None


# -- reading


_Text = Annotated[str | None, Query(max_length=256)]


@router.get("/runs", response_model=Listing[RunView])
async def list_runs(
    runtime: Runtime,
    caller: Who,
    agent: _Text = None,
    state: State | None = None,
    session: _Text = None,
    user: _Text = None,
    since: Annotated[str | None, Query(description="A time, or how long ago: 24h, 30d.", max_length=40)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 50,
    after: Annotated[
        int | None, Query(ge=1, le=MAX_ID, description="The number of the last run of the page before.")
    ] = None,
) -> Response:
    """Runs, the newest first: those of the key's team, or all for an administrator."""
    wanted = RunFilter(
        agent=attribution(agent, "agent", "agent"),
        team_id=caller.team_id,
        state=state,
        session=attribution(session, "session", "session"),
        user=attribution(user, "user", "user"),
        since=_moment(since),
        before=after,
        most=to_fetch(limit),
    )
    found = await runtime.runs.page(wanted)
    return answer(listing(page_of(found, limit, run_view), lambda run: run.number))


def _moment(since: str | None) -> datetime | None:
    if since is None:
        return None
    try:
        when = parse_past(since)
    except ValueError as error:
        raise InvalidRequest(f"since: {error}", param="since") from None
    return when if isinstance(when, datetime) else datetime.now(UTC) - when


@router.get("/runs/{run_id}", response_model=RunView)
async def get_run(runtime: Runtime, caller: Who, run_id: UUID) -> Response:
    """A run: who asked for it, its state, what it cost with all runs below it, its output, and why it stopped; which
    workers had it, and what it has asked people."""
    run = await _seen(runtime, caller, run_id)
    asked = await runtime.runs.approvals(ApprovalFilter(run_id=run_id, state=None, most=MOST_ASKED))
    return answer(run_view(run, await runtime.runs.spent(run_id), await runtime.runs.attempts(run_id), asked))


@router.get("/runs/{run_id}/steps", response_model=StepListing)
async def list_steps(runtime: Runtime, caller: Who, run_id: UUID) -> Response:
    """The steps of a run: model requests and tool calls, with their times, costs and arguments, without their results."""
    await _seen(runtime, caller, run_id)
    return answer(StepListing(data=[step_view(step) for step in await runtime.runs.outline(run_id)]))


async def _seen(runtime: RunsRuntime, caller: Caller, run_id: UUID) -> Run:
    run = await runtime.runs.find(run_id)
    caller.check_sees(run)
    return run


async def _shown(runtime: RunsRuntime, run: Run, status: int = 200, **headers: str) -> Response:
    return answer(run_view(run, await runtime.runs.spent(run.id)), status, **headers)


# -- starting


_STARTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The run has ended.", "model": RunView},
    202: {"description": "The run is under way, or waits; its address is in `location`.", "model": RunView},
}


@router.post("/{agent}/runs", status_code=202, responses=_STARTED, response_model=RunView)
async def start_run(
    runtime: Runtime, caller: Who, request: Request, agent: str, new: StartInput, key: Key = None
) -> Response:
    """Start an agent. It goes on whatever happens to this connection, or to the process that does it."""
    caller.check_acts_for(agent)
    run = await runtime.starter.start(
        StartRequest(
            agent,
            new.input,
            id=await runtime.watching.expected() if new.watch else None,
            key=trigger_key(caller, key),
            budget_nano=new.budget,
            reserve_nano=new.reserve,
            may_raise=caller.is_administrator,
            priority=new.priority,
            session=new.session,
            on_session=new.on_session,
            asked_by=caller.name,
            on_behalf_of=new.user,
            tags=tuple(dict.fromkeys(new.tags)),
        )
    )
    if new.wait and not run.state.ended:
        run = await unless_caller_leaves(runtime.watching.until_settled(run.id, new.wait), request.receive)
    return await _shown(runtime, run, 200 if run.state.ended else 202, location=f"/agents/runs/{run.id}")


# -- acting


@router.post("/runs/{run_id}/cancel", response_model=RunView)
async def cancel_run(runtime: Runtime, caller: Who, run_id: UUID) -> Response:
    """Cancel a run and all runs below it. A worker that has one stops within seconds; one that has ended stays as it is."""
    await _own(runtime, caller, run_id)
    return await _shown(runtime, await runtime.runs.cancel(run_id))


@router.post("/runs/{run_id}/retry", response_model=RunView)
async def retry_run(runtime: Runtime, caller: Who, run_id: UUID, new: RetryInput | None = None) -> Response:
    """Queue a run again that ended without success, or that waits. It continues at its last step.

    Only an administrator's key retries a run of which a person has to decide whether a step is done (again), and gives a
    run a larger budget.
    """
    run, budget_nano = await _own(runtime, caller, run_id), None if new is None else new.budget
    if budget_nano is not None and not caller.is_administrator:
        raise NotPermitted("Only an administrator's key raises the budget of a run.", param="budget")
    run = await runtime.starter.retry(run, decides=caller.is_administrator, budget_nano=budget_nano)
    return await _shown(runtime, run)


@router.post("/runs/{run_id}/fork", response_model=RunView, status_code=202)
async def fork_run(runtime: Runtime, caller: Who, run_id: UUID, new: ForkInput, key: Key = None) -> Response:
    """A new run that begins with the first steps of this one, as if it had done them."""
    await _own(runtime, caller, run_id)
    fork = await runtime.runs.fork(
        run_id,
        new.steps,
        new_call_id(),
        code_version=CODE_VERSION,
        asked_by=caller.name,
        key=trigger_key(caller, key),
        decides=caller.is_administrator,
    )
    return await _shown(runtime, fork, 202, location=f"/agents/runs/{fork.id}")


async def _own(runtime: RunsRuntime, caller: Caller, run_id: UUID) -> Run:
    run = await _seen(runtime, caller, run_id)
    caller.check_acts_for(run.agent)
    return run


def trigger_key(caller: Caller, key: str | None) -> str | None:
    """The key of the run that a caller's Idempotency-Key names. No other caller can use this key."""
    text = attribution(key, "The header Idempotency-Key", "idempotency-key", 255)
    return None if text is None else f"request/{caller.scope}/{text}"


# -- watching


_STREAM: dict[str, Any] = {
    "description": "Server-sent events: run.<state>, step.<state>, step.restarted.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


@router.get(
    "/runs/{run_id}/events", responses={200: _STREAM, 204: {"description": "The run has ended, and all is shown."}}
)
async def watch_run(
    runtime: Runtime,
    caller: Who,
    run_id: UUID,
    last_event_id: Annotated[str | None, Header(description="Go on after the event with this id.")] = None,
) -> Response:
    """The progress of a run, as server-sent events, until it has ended."""
    await _seen(runtime, caller, run_id)
    shown = Shown() if not last_event_id else read_id(last_event_id.strip())
    if not await runtime.watching.has_more(run_id, shown):
        return Response(status_code=204)  # so that a browser does not connect again
    events = runtime.watching.events(run_id, shown, idle_s=IDLE_S)
    return EventResponse(events, runtime.settings.stalled_timeout_s, f"the stream of run {run_id}")
