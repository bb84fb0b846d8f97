"""`treasurer approvals`: what runs ask people: list it, look at it, approve it or refuse it.

What must hold:
A person who types a command here has access to the database, and so is the operator, whom no agent's list of approvers binds.
A person approves what they have seen: without --digest, the call is printed and has to be confirmed.
The words of a model are printed as plain text, so that they cannot control a terminal.
"""

from __future__ import annotations

import json as json_
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gateway.cli.common import ExitCode, command_group, emit, fail
from gateway.cli.database import AsJson, checked, print_more, read_uuid, with_runs
from gateway.cli.reports import printable
from llm_service.administration.paging import page_of, to_fetch

if TYPE_CHECKING:
    from agents.approvals.record import Approval
    from agents.runs.in_postgres import PostgresRuns

commands = command_group("Approvals: what runs ask people before they act.")

_Id = Annotated[str, typer.Argument(metavar="APPROVAL", help="The approval's id.")]
_Digest = Annotated[
    str | None, typer.Option("--digest", help="The digest of what you were shown: decide without being asked again.")
]


@commands.command("list")
def list_approvals(
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only this run's: its id.")] = None,
    state: Annotated[
        str, typer.Option("--state", help="pending, approved, refused, expired or withdrawn.")
    ] = "pending",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 50,
    after: Annotated[
        int | None, typer.Option("--after", min=1, help="Continue after the approval with this number.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List approvals, the oldest first: those that are pending, unless another state is asked for."""
    from agents.approvals.record import ApprovalFilter, ApprovalState

    if state not in list(ApprovalState):
        fail(f"--state: {state!r} is not one of: {', '.join(ApprovalState)}.", ExitCode.USAGE)
    wanted = ApprovalFilter(
        agent=agent,
        run_id=None if run is None else read_uuid(run, "run"),
        state=ApprovalState(state),
        after=after or 0,
        most=to_fetch(limit),
    )
    found = with_runs(lambda store: store.approvals(wanted))
    page = page_of(found, limit, lambda each: each)
    print_more(page, lambda each: each.number)
    if json:
        emit([_view(each) for each in page], json=True)
        return
    rows = [
        {
            "number": each.number,
            "approval": each.id,
            "agent": printable(each.agent),
            "tool": printable(each.tool),
            "arguments": _short(each.arguments),
            "asked": each.asked_at,
            "expires": each.expires_at,
        }
        for each in page
    ]
    emit(rows, empty=f"There are no approvals that are {state}.")


@commands.command("show")
def show(approval: _Id, json: AsJson = False) -> None:
    """Print what a run asks, or what was decided."""
    approval_id = read_uuid(approval, "approval")
    _print(with_runs(lambda store: store.approval(approval_id)), json=json)


@commands.command("approve")
def approve(
    approval: _Id,
    arguments: Annotated[
        str | None, typer.Option("--arguments", help="JSON: the arguments to call the tool with instead.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; it is recorded.")] = None,
    digest: _Digest = None,
    json: AsJson = False,
) -> None:
    """Let a run make the call that it asks about, as it is or with other arguments."""
    changed = None if arguments is None else _object(arguments)
    _decide(approval, {"decision": "approve", "reason": reason, "arguments": changed}, digest, json=json)


@commands.command("refuse")
def refuse(
    approval: _Id,
    reason: Annotated[str, typer.Option("--reason", help="Why. The model reads it.")],
    digest: _Digest = None,
    json: AsJson = False,
) -> None:
    """Do not let a run make the call that it asks about. The run goes on, and the model reads why."""
    _decide(approval, {"decision": "refuse", "reason": reason}, digest, json=json)


def _decide(approval: str, said: dict[str, Any], digest: str | None, *, json: bool) -> None:
    from agents.approvals.inputs import DecisionInput

    approval_id = read_uuid(approval, "approval")
    if digest is None:
        found = with_runs(lambda store: store.approval(approval_id))
        digest = found.digest.hex()
        given = checked(DecisionInput, digest=digest, **said)
        typer.echo("\n".join(format_approval(found)), err=json)
        if said.get("arguments") is not None:
            typer.echo(f"  changed to  {_short(said['arguments'])}", err=json)
        typer.confirm(f"{said['decision'].capitalize()} this?", abort=True, err=json)
    else:
        given = checked(DecisionInput, digest=digest, **said)

    async def act(store: PostgresRuns) -> Approval:
        from datetime import UTC, datetime

        from agents.approvals import deciding
        from llm_service.administration.transaction import ACTOR

        who = deciding.Decider(ACTOR.get(), everything=True)
        shown = await store.approval(approval_id)
        return await store.decide(approval_id, deciding.checked(shown, given.by(who.shown), who, datetime.now(UTC)))

    decided = with_runs(act)
    if json:
        _print(decided, json=True)
        return
    typer.echo(f"Approval {decided.id} is {decided.state}. Run {decided.run_id} goes on.")


def format_approval(approval: Approval) -> list[str]:
    """An approval as text for people."""
    why = "it was not called yet" if approval.why == "before" else "it may have been called already"
    lines: dict[str, object] = {
        "agent": printable(approval.agent),
        "run": approval.run_id,
        "step": approval.position,
        "tool": f"{printable(approval.tool)} ({why})",
        "arguments": _long(approval.arguments),
        "digest": approval.digest.hex(),
        "approvers": ", ".join(map(printable, approval.approvers)) or "any administrator",
        "asked": f"{approval.asked_at:%Y-%m-%d %H:%M:%S} UTC",
        "expires": f"{approval.expires_at:%Y-%m-%d %H:%M:%S} UTC",
    }
    if approval.changed is not None:
        lines["changed to"] = _long(approval.changed)
    if approval.decided_by is not None:
        lines["decided by"] = f"{printable(approval.decided_by)}, {approval.decided_at:%Y-%m-%d %H:%M:%S} UTC"
    if approval.reason is not None:
        lines["reason"] = printable(approval.reason)
    return [
        f"Approval {approval.id} (number {approval.number}) is {approval.state}.",
        *(f"  {name:<10}  {value}" for name, value in lines.items()),
    ]


def _print(approval: Approval, *, json: bool) -> None:
    if json:
        emit([_view(approval)], json=True)
        return
    typer.echo("\n".join(format_approval(approval)))


def _view(approval: Approval) -> dict[str, Any]:
    from datetime import UTC, datetime

    from agents.approvals.views import approval_view

    return approval_view(approval, datetime.now(UTC)).model_dump(mode="json")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json_.loads(text)
    except (ValueError, RecursionError) as error:
        fail(f"--arguments: this is not JSON: {error}", ExitCode.USAGE)
    if not isinstance(value, dict):
        fail('--arguments: the arguments of a tool are an object, such as {"name": "old"}', ExitCode.USAGE)
    return cast("dict[str, Any]", value)


def _long(value: object) -> str:
    return printable(json_.dumps(value, ensure_ascii=False))


def _short(value: object) -> str:
    text = _long(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
