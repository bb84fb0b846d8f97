"""`treasurer runs`: the runs of agents: start them, list them, read their story, watch them, cancel, retry and fork them.

What must hold:
Whoever types a command here is a person who may decide: a step of which nobody knows whether it was done is done again.
The words of a model or of a caller are printed as plain text, so that they cannot control a terminal.
Money is printed exactly.
"""

from __future__ import annotations

import json as json_
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from gateway.cli.common import ExitCode, command_group, emit, fail
from gateway.cli.database import AsJson, administer, print_more
from gateway.cli.reports import printable
from llm_service.administration.paging import Page
from llm_service.money import format_dollars, parse_dollars

if TYPE_CHECKING:
    from agents.runs.events import Event
    from agents.runs.in_postgres import PostgresRuns
    from agents.runs.record import Run, Spent, Step
    from agents.runs.starting import RunStarter, StartRequest
    from agents.runs.store import RunStore

_T = TypeVar("_T")
#: Runs of one tree that a story shows at most.
_MOST_RELATIVES = 500
_SHOWN_CHARACTERS = 200

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
    session: Annotated[str | None, typer.Option("--session", help="The session that it belongs to.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag for reports; repeatable.")] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", min=-1000, max=1000, help="The highest is first.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="The same key again is the same run.")] = None,
    wait: Annotated[float, typer.Option("--wait", min=0, help="For how many seconds to wait for its end.")] = 0,
    json: AsJson = False,
) -> None:
    """Start an agent. A worker does the run; treasurer runs show prints its story."""
    import sys

    from agents.runs.record import Trigger
    from agents.runs.starting import StartRequest
    from llm_service.errors import InvalidRequest
    from llm_service.wire.bodies import parse_body
    from llm_service.wire.requests import attribution

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
    from llm_service.administration.transaction import ACTOR

    if request.agent in names_of_logic():  # so that an agent of the catalogue needs no preparation
        await AgentRegistration(pool).register(request.agent)
    starter = _starter(pool)
    run = await starter.start(replace(request, asked_by=ACTOR.get()))
    return await Watching(starter.store).until_settled(run.id, wait_s) if wait_s else run


def _starter(pool: Any) -> RunStarter:
    from agents.configuration.versions import AgentConfigurations
    from agents.runs.in_postgres import PostgresRuns
    from agents.runs.starting import RunStarter
    from llm_service.administration.principals import Principals

    return RunStarter(PostgresRuns(pool), Principals(pool), AgentConfigurations(pool))


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
        most=limit + 1,
    )
    found = _with_store(lambda store: store.page(wanted))
    page = Page(found[:limit])
    page.more = len(found) > limit
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
        "state": run.state if run.wait_for is None else f"{run.state} for {run.wait_for}",
        "asked by": printable(run.asked_by or ""),
        "for": printable(run.on_behalf_of or ""),
        "cost": format_dollars(run.cost_nano),
        "started": run.created_at,
        "why": printable(why),
    }


@commands.command("show")
def show(run: _Run, json: AsJson = False) -> None:
    """Print a run's story: who asked, its steps with times and costs, the runs below it, and why it stopped."""
    from agents.runs.views import run_view, step_view

    async def read(store: PostgresRuns) -> tuple[Run, Spent, list[Step], list[Run], dict[Any, list[Step]]]:
        from agents.runs.record import RunFilter

        found = await _find(store, run)
        tree = await store.page(RunFilter(root_id=found.root_id, most=_MOST_RELATIVES))
        below = _below(found, tree)
        steps = {each.id: await store.outline(each.id) for each in below}
        return found, await store.spent(found.id), await store.outline(found.id), below, steps

    found, spent, steps, below, steps_below = _with_store(read)
    if json:
        story = run_view(found, spent).model_dump(mode="json")
        story["steps"] = [step_view(step).model_dump(mode="json") for step in steps]
        story["below"] = [run_view(each).model_dump(mode="json") for each in below]
        emit([story], json=True)
        return
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width, so no line may be cut
        console.width = 10_000
    console.print(format_story(found, spent, steps, below, steps_below))


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

    _with_store(follow)


@commands.command("cancel")
def cancel(run: _Run, json: AsJson = False) -> None:
    """Cancel a run and all runs below it."""

    async def act(store: PostgresRuns) -> Run:
        return await store.cancel((await _find(store, run)).id)

    _print_state(_with_store(act), json=json)


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

    _print_state(_with_store(act), json=json)


def _with_store(action: Callable[[PostgresRuns], Awaitable[_T]]) -> _T:
    async def act(pool: Any) -> _T:
        from agents.runs.in_postgres import PostgresRuns

        return await action(PostgresRuns(pool))

    return administer(act)


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
    told = " Its worker stops it within seconds." if run.cancel_at is not None and not run.state.ended else ""
    typer.echo(f"Run {run.id} (number {run.number}) of agent {printable(run.agent)} is {run.state}.{told}")


# -- for people


def format_story(
    run: Run,
    spent: Spent,
    steps: Sequence[Step],
    below: Sequence[Run] = (),
    steps_below: dict[Any, list[Step]] | None = None,
) -> Tree:
    """A run's story as a tree: what is known of it, its steps, and the runs below it with theirs."""
    tree = Tree(_title(run), guide_style="dim")
    for label, text in facts(run, spent):
        tree.add(Text.assemble((f"{label:<9}", "dim"), text))
    _add_steps(tree, steps)
    branches = {run.id: tree}
    for each in below:
        branch = branches.get(each.parent_id or run.id, tree).add(_title(each))
        branches[each.id] = branch
        _add_steps(branch, (steps_below or {}).get(each.id, ()))
        if each.error is not None:
            branch.add(Text(_stopped(each.error), style="red"))
    return tree


def _title(run: Run) -> Text:
    colour = {"succeeded": "green", "failed": "red", "dead": "red", "expired": "red"}.get(run.state, "yellow")
    state = run.state if run.wait_for is None else f"{run.state} for {run.wait_for}"
    return Text.assemble(("run ", "bold"), str(run.id), f" (number {run.number}) of agent ", (printable(run.agent), "bold"), ": ", (state, colour))  # fmt: skip


def facts(run: Run, spent: Spent) -> list[tuple[str, str]]:
    """What is known of a run besides its steps: a word and a line for each."""
    version = run.configuration.get("version")
    found = [("asked by", _asked(run))]
    found.append(("version", f"configuration {'?' if version is None else version}, code {run.code_version}"))
    found.append(("time", _time(run)))
    of = "" if run.budget_nano is None else f" of {format_dollars(run.budget_nano)}"
    lost = f", {format_dollars(spent.lost_nano)} of it for answers that were lost" if spent.lost_nano else ""
    tree = f"; {format_dollars(spent.tree_nano)} with the runs below it" if spent.tree_nano != spent.cost_nano else ""
    found.append(("cost", f"{format_dollars(spent.cost_nano)}{of}{lost}{tree}"))
    if run.forked_from is not None:
        found.append(("fork", f"of run {run.forked_from}, with its first {run.forked_steps} steps"))
    if run.parent_id is not None:
        found.append(("parent", str(run.parent_id)))
    found.append(("input", _short(run.input)))
    if run.output is not None:
        found.append(("output", _short(run.output)))
    if run.error is not None:
        found.append(("stopped", _stopped(run.error)))
    return found


def _asked(run: Run) -> str:
    words = [printable(run.asked_by or "nobody known"), f"by {run.trigger}"]
    if run.on_behalf_of:
        words.append(f"for {printable(run.on_behalf_of)}")
    if run.session:
        words.append(f"in session {printable(run.session)}")
    if run.tags:
        words.append(f"tagged {printable(', '.join(run.tags))}")
    return ", ".join(words)


def _time(run: Run) -> str:
    words = [f"asked for at {run.created_at:%Y-%m-%d %H:%M:%S} UTC"]
    if run.started_at is not None:
        words.append(f"begun after {_seconds(run.started_at - run.created_at)}")
    if run.ended_at is not None and run.started_at is not None:
        words.append(f"ended after {_seconds(run.ended_at - run.started_at)} more")
    if run.fence > 1:
        words.append(f"taken up {run.fence} times")
    if not run.state.ended:
        words.append(f"may take until {run.deadline_at:%Y-%m-%d %H:%M:%S} UTC")
    return ", ".join(words)


def _stopped(error: dict[str, Any]) -> str:
    step = error.get("step")
    at = "" if step is None else f" (at step {step})"
    return printable(f"{error.get('code', 'error')}: {error.get('message', '')}{at}")


def _add_steps(tree: Tree, steps: Sequence[Step]) -> None:
    for step in steps:
        branch = tree.add(format_step(step))
        if step.head.arguments not in (None, {}):
            branch.add(Text(_short(step.head.arguments), style="dim"))
        if step.error is not None:
            branch.add(Text(_stopped(step.error), style="red"))


def format_step(step: Step) -> Text:
    """One step in a line: its position, what it was, how it ended, how long it took and what it cost."""
    head = step.head
    what = printable(head.tool or head.name)
    words = [f"{head.position:>3} {head.kind:<5} {what}"]
    if head.tool is not None:
        words.append(f"({head.policy})")
    if step.state != "done":
        words.append("to be done (again)" if step.again else str(step.state))
    if step.started_at is not None and step.ended_at is not None:
        words.append(_seconds(step.ended_at - step.started_at))
    if step.cost_nano:
        words.append(format_dollars(step.cost_nano))
    if step.lost_nano:
        words.append(f"({format_dollars(step.lost_nano)} lost)")
    if step.fence != 1:
        words.append("taken over" if step.fence == 0 else f"claim {step.fence}")
    return Text("  ".join(words))


def format_event(event: Event, *, json: bool) -> str:
    """An event in a line: JSON for programs, or words."""
    if json:
        return json_.dumps({"id": event.shown.id, "event": event.name, **event.data}, default=str)
    data = event.data
    words = [event.name]
    if "position" in data:
        words.append(f"{data['position']} {data['kind']} {printable(data['tool'] or data['name'])}")
    if data.get("cost_nano"):
        words.append(format_dollars(data["cost_nano"]))
    if data.get("wait_for"):
        words.append(f"for {data['wait_for']}")
    if "error" in data:
        words.append(_stopped(data["error"]))
    return "  ".join(words)


def _below(run: Run, tree: Sequence[Run]) -> list[Run]:
    """The runs below a run, parents before their children, of all runs of its tree."""
    known = {run.id}
    found: list[Run] = []
    for each in sorted(tree, key=lambda one: one.number):
        if each.parent_id in known:
            known.add(each.id)
            found.append(each)
    return found


def _seconds(span: timedelta) -> str:
    seconds = max(0.0, span.total_seconds())
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _short(value: object) -> str:
    text = printable(json_.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text):,} characters)"
