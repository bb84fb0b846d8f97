"""`treasurer runs`: the runs of agents: start them, list them, read their story, watch them, cancel, retry and fork them.

What must hold:
A person who types a command here may decide that a step is done again although nobody knows whether it was done.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gateway.cli.common import ExitCode, command_group, emit, fail
from gateway.cli.database import AsJson, administer, print_more, with_runs
from gateway.cli.reports import printable
from gateway.cli.run_story import History, format_event, format_state, format_story, runs_below
from llm_service.administration.paging import page_of, to_fetch
from llm_service.money import format_dollars, parse_dollars

if TYPE_CHECKING:
    from uuid import UUID

    from agents.runs.in_postgres import PostgresRuns
    from agents.runs.record import Run, Spent, Step
    from agents.runs.starting import RunStarter, StartRequest
    from agents.runs.store import RunStore
    from agents.runs.tracing import RunTraces

#: Runs of one tree that a story shows at most.
_MOST_RELATIVES = 500

commands = command_group("Runs of agents: what they did, what it cost, and what becomes of them.")

_Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or its number.")]


@commands.command("start")
def start(
    agent: Annotated[str, typer.Argument(metavar="AGENT")],
    given: Annotated[
        str, typer.Option("--input", metavar="JSON", help="What the agent takes, as a JSON object; -: standard input.")
    ] = "{}",
    budget: Annotated[str | None, typer.Option("--budget", help="The most that it may spend, in dollars.")] = None,
    reserve: Annotated[str | None, typer.Option("--reserve", help="What is held of it at the start.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Whom the run is for, in reports.")] = None,
    session: Annotated[
        str | None, typer.Option("--session", help="The session that it belongs to: it reads what was said there.")
    ] = None,
    on_session: Annotated[
        str | None,
        typer.Option("--on-session", help="queue, reject or replace, while another run of the session has not ended."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag for reports; repeatable.")] = None,
    priority: Annotated[int | None, typer.Option("--priority", min=-100, max=100, help="The highest is first.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="The same key again is the same run.")] = None,
    wait: Annotated[float, typer.Option("--wait", min=0, help="For how many seconds to wait for its end.")] = 0,
    json: AsJson = False,
) -> None:
    """Start an agent. A worker does the run; treasurer runs show prints its story."""
    import sys

    from agents.runs.record import SessionPolicy, Trigger
    from agents.runs.starting import StartRequest
    from llm_service.errors import InvalidRequest
    from llm_service.wire.bodies import parse_body
    from llm_service.wire.requests import attribution

    if on_session is not None and on_session not in list(SessionPolicy):
        fail(f"--on-session: {on_session!r} is not one of: {', '.join(SessionPolicy)}.", ExitCode.USAGE)
    try:
        request = StartRequest(
            agent,
            parse_body((sys.stdin.read() if given == "-" else given).encode()),
            Trigger.COMMAND,
            key=None if (text := attribution(key, "--key", "key", 255)) is None else f"command/{text}",
            budget_nano=None if budget is None else parse_dollars(budget),
            reserve_nano=None if reserve is None else parse_dollars(reserve),
            may_raise=True,
            priority=priority,
            session=attribution(session, "--session", "session"),
            on_session=None if on_session is None else SessionPolicy(on_session),
            on_behalf_of=attribution(user, "--user", "user"),
            tags=tuple(dict.fromkeys(name for each in tag or () if (name := attribution(each, "--tag", "tag")))),
        )
    except InvalidRequest as error:
        fail(error.message, ExitCode.USAGE)
    run = administer(lambda pool: _start(pool, request, wait))
    if wait and not json:
        show(str(run.id))
    else:
        _print_state(run, json=json)


async def _start(pool: Any, request: StartRequest, wait_s: float) -> Run:
    from dataclasses import replace

    from agents.registration import AgentRegistration
    from agents.registry import names_of_logic
    from agents.runs.watching import Watching
    from gateway.settings import load_settings
    from gateway.tracing import run_traces
    from llm_service.administration.transaction import ACTOR

    if request.agent in names_of_logic():  # so that an agent of the catalogue needs no preparation
        await AgentRegistration(pool).register(request.agent)
    async with run_traces(load_settings()) as traces:
        starter = _starter(pool, traces)
        run = await starter.start(replace(request, asked_by=ACTOR.get()))
    return await Watching(starter.store).until_settled(run.id, wait_s) if wait_s else run


def _starter(pool: Any, traces: RunTraces | None = None) -> RunStarter:
    from agents.configuration.versions import AgentConfigurations
    from agents.runs.in_postgres import PostgresRuns
    from agents.runs.starting import RunStarter
    from agents.runs.tracing import NO_TRACES
    from llm_service.administration.principals import Principals

    return RunStarter(PostgresRuns(pool, traces or NO_TRACES), Principals(pool), AgentConfigurations(pool))


@commands.command("list")
def list_runs(
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's.")] = None,
    state: Annotated[
        str | None,
        typer.Option("--state", help="queued, running, waiting, succeeded, failed, cancelled, expired or dead."),
    ] = None,
    session: Annotated[str | None, typer.Option("--session", help="Only this session's.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only for this user.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="How long ago at most, such as 24h or 30d.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 50,
    after: Annotated[
        int | None, typer.Option("--after", min=1, help="Continue after the run with this number.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List runs, the newest first."""
    from datetime import UTC

    from agents.runs.record import RunFilter, State
    from agents.runs.views import run_view
    from llm_service.administration.inputs import parse_duration

    if state is not None and state not in list(State):
        fail(f"--state: {state!r} is not one of: {', '.join(State)}.", ExitCode.USAGE)
    try:
        from_when = None if since is None else datetime.now(UTC) - parse_duration(since)
    except ValueError as error:
        fail(f"--since: {error}", ExitCode.USAGE)
    wanted = RunFilter(
        agent=agent,
        state=None if state is None else State(state),
        session=session,
        user=user,
        since=from_when,
        before=after,
        most=to_fetch(limit),
    )
    found = with_runs(lambda store: store.page(wanted))
    page = page_of(found, limit, lambda run: run)
    print_more(page, lambda run: run.number)
    if json:
        emit([run_view(run).model_dump(mode="json") for run in page], json=True)
        return
    emit([_row(run) for run in page], empty="There are no runs.")


def _row(run: Run) -> dict[str, object]:
    why = "" if run.error is None else f"{run.error.get('code', '')}"
    return {
        "number": run.number,
        "run": run.id,
        "agent": printable(run.agent),
        "state": format_state(run),
        "asked by": printable(run.asked_by or ""),
        "for": printable(run.on_behalf_of or ""),
        "cost": format_dollars(run.cost_nano),
        "started": run.created_at,
        "why": printable(why),
    }


@commands.command("show")
def show(run: _Run, json: AsJson = False) -> None:
    """Print a run's story: who asked, its steps with times and costs, who had it, what it asked whom, the runs below it, and
    why it stopped."""
    from agents.runs.views import run_view, step_view

    async def read(store: PostgresRuns) -> tuple[Run, Spent, list[Run], dict[UUID, list[Step]], dict[UUID, History]]:
        from agents.approvals.record import MOST_ASKED, ApprovalFilter
        from agents.runs.record import RunFilter

        found = await _find(store, run)
        below = runs_below(found, await store.page(RunFilter(root_id=found.root_id, most=_MOST_RELATIVES)))
        shown = [found] if json else [found, *below]  # JSON has the steps of the run itself only
        steps = {each.id: await store.outline(each.id) for each in shown}
        history = {
            each.id: History(
                await store.attempts(each.id),
                await store.approvals(ApprovalFilter(run_id=each.id, state=None, most=MOST_ASKED)),
            )
            for each in shown
        }
        return found, await store.spent(found.id), below, steps, history

    found, spent, below, steps, history = with_runs(read)
    if json:
        story = run_view(found, spent, history[found.id].attempts, history[found.id].asked).model_dump(mode="json")
        story["steps"] = [step_view(step).model_dump(mode="json") for step in steps[found.id]]
        story["below"] = [run_view(each).model_dump(mode="json") for each in below]
        emit([story], json=True)
        return
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width, so no line may be cut
        console.width = 10_000
    console.print(format_story(found, spent, steps, below, history))


@commands.command("tail")
def tail(run: _Run, json: AsJson = False) -> None:
    """Print what becomes of a run, event by event, until it has ended."""

    async def follow(store: PostgresRuns) -> None:
        from agents.runs.events import Shown
        from agents.runs.watching import Watching

        found = await _find(store, run)
        async for events in Watching(store).events(found.id, Shown(), idle_s=3600):
            for event in events:
                print(format_event(event, json=json), flush=True)

    with_runs(follow)


@commands.command("cancel")
def cancel(run: _Run, json: AsJson = False) -> None:
    """Cancel a run and all runs below it."""

    async def act(store: PostgresRuns) -> Run:
        return await store.cancel((await _find(store, run)).id)

    _print_state(with_runs(act), json=json)


@commands.command("retry")
def retry(
    run: _Run,
    budget: Annotated[
        str | None, typer.Option("--budget", help="The most that it may spend from now on, in dollars.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Queue a run again that ended without success, or that waits: it goes on at its last step.

    By this you decide that a step that failed, or that may have been done, is done (again).
    """
    budget_nano = None if budget is None else parse_dollars(budget)

    async def act(pool: Any) -> Run:
        starter = _starter(pool)
        return await starter.retry(await _find(starter.store, run), budget_nano=budget_nano)

    _print_state(administer(act), json=json)


@commands.command("fork")
def fork(
    run: _Run,
    steps: Annotated[int, typer.Option("--steps", min=0, help="With how many of its steps the new run begins.")],
    json: AsJson = False,
) -> None:
    """Start a new run that begins with the first steps of another, as if it had done them."""

    async def act(store: PostgresRuns) -> Run:
        from agents.runs.code_version import CODE_VERSION
        from llm_service.administration.transaction import ACTOR
        from llm_service.ids import new_call_id

        found = await _find(store, run)
        return await store.fork(found.id, steps, new_call_id(), code_version=CODE_VERSION, asked_by=ACTOR.get())

    _print_state(with_runs(act), json=json)


async def _find(store: RunStore, reference: str) -> Run:
    """The run of an id or a number. Raises NotFound."""
    from uuid import UUID

    from agents.runs.record import RunFilter
    from llm_service.errors import NotFound

    if reference.isascii() and reference.isdigit() and len(reference) < 19:
        found = await store.page(RunFilter(before=int(reference) + 1, most=1))
        if not found or found[0].number != int(reference):
            raise NotFound(f"There is no run with the number {reference}.", param="run")
        return found[0]
    try:
        run_id = UUID(reference)
    except ValueError:
        fail(f"{reference[:80]!r} is neither a run's id nor its number.", ExitCode.USAGE)
    return await store.find(run_id)


def _print_state(run: Run, *, json: bool) -> None:
    from agents.runs.views import run_view

    if json:
        emit([run_view(run).model_dump(mode="json")], json=True)
        return
    more = " Its worker stops it within seconds." if run.cancel_at is not None and not run.state.ended else ""
    typer.echo(f"Run {run.id} (number {run.number}) of agent {printable(run.agent)} is {run.state}.{more}")
