"""`treasurer route`: how calls for a model are served when it fails, is slow, or becomes too dear."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.common import emit
from gateway.cli.database import (
    AfterId,
    AsJson,
    Limit,
    OfAgent,
    OfOrganisation,
    OfTeam,
    administer,
    checked,
    print_more,
)
from gateway.stack.state import NotRunning, running_state
from llm_service.administration import routes
from llm_service.administration.paging import DEFAULT
from llm_service.money import format_dollars

commands = typer.Typer(
    no_args_is_help=True, help="Routes: which models stand in for another, when, and how long to wait."
)


@commands.command("set")
def set_route(
    model: Annotated[str, typer.Option("--model", help="The model that callers ask for, or a pattern.")],
    organisation: OfOrganisation = None,
    team: OfTeam = None,
    agent: OfAgent = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            "--fallback",
            metavar="MODEL[:CONDITIONS]",
            help="Stands in, in this order. Conditions: error,timeout,rate_limit,breaker_open,context_too_long,"
            "content_filter,near_limit. Default: the first five.",
        ),
    ] = None,
    retries: Annotated[
        int | None, typer.Option("--retries", help="More attempts at the same model. Default: 0.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option("--max-attempts", help="Of a call, in all. Default: 4.")] = None,
    max_elapsed: Annotated[
        float | None, typer.Option("--max-elapsed", help="No attempt begins after so many seconds. Default: 60.")
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option("--max-cost", help="Dollars that a call may cost, all attempts together.")
    ] = None,
    downgrade: Annotated[
        list[str] | None, typer.Option("--downgrade", metavar="MODEL", help="Serves near a budget's limit.")
    ] = None,
    downgrade_at: Annotated[
        float, typer.Option("--downgrade-at", metavar="PERCENT", help="Of any budget that applies.")
    ] = 80.0,
    min_quality: Annotated[
        int, typer.Option("--min-quality", help="The least treasurer_quality of a downgrade (config/litellm.yaml).")
    ] = 0,
    connect: Annotated[float | None, typer.Option("--connect", help="Seconds to reach LiteLLM Proxy.")] = None,
    first_token: Annotated[
        float | None, typer.Option("--first-token", help="Seconds to a stream's first token.")
    ] = None,
    silence: Annotated[float | None, typer.Option("--silence", help="Seconds between two events of a stream.")] = None,
    total: Annotated[float | None, typer.Option("--total", help="Seconds to an answer's end, of one attempt.")] = None,
    queue: Annotated[
        float | None, typer.Option("--queue", help="Seconds that a call may wait for held money, pace or a rate limit.")
    ] = None,
    on_leave: Annotated[
        str | None,
        typer.Option("--on-leave", help="A stream that its caller leaves: cancel or finish. Default: cancel."),
    ] = None,
    bills_errors: Annotated[
        bool | None,
        typer.Option("--bills-errors/--no-bills-errors", help="The provider bills its own errors (5xx), too."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Set a route, in place of the one that the same subject and model had."""
    timeouts = {"connect_s": connect, "first_token_s": first_token, "silence_s": silence, "total_s": total}
    given = {name: value for name, value in timeouts.items() if value is not None}
    cheaper = {"at_percent": downgrade_at, "models": downgrade, "min_quality": min_quality} if downgrade else None
    new = checked(
        routes.SetRoute,
        model=model,
        organisation=organisation,
        team=team,
        agent=agent,
        fallbacks=[_fallback(each) for each in fallback] if fallback else None,
        retries=retries,
        max_attempts=max_attempts,
        max_elapsed_s=max_elapsed,
        max_cost=max_cost,
        downgrade=cheaper,
        timeouts=given or None,
        queue_s=queue,
        on_leave=on_leave,
        bills_errors=bills_errors,
    )
    made = administer(lambda pool: routes.set_route(pool, new))
    print_routes([made], json)
    warn_of_unknown_models([model, *(each.model for each in new.fallbacks or ()), *(downgrade or ())])


@commands.command("list")
def list_routes(limit: Limit = DEFAULT, after: AfterId = None, json: AsJson = False) -> None:
    """Routes, the oldest first."""
    found = administer(lambda pool: routes.list_routes(pool, limit=limit, after=after))
    print_routes(found, json)
    print_more(found, lambda row: row.id)


@commands.command("remove")
def remove_route(route_id: Annotated[int, typer.Argument(metavar="ID")], json: AsJson = False) -> None:
    """Remove a route by its id (treasurer route list)."""
    gone = administer(lambda pool: routes.remove_route(pool, route_id))
    if json:
        emit([gone.model_dump()], json=True)
        return
    typer.echo(f"Route {gone.id} ({gone.scope} {gone.subject}, {gone.model}) is removed.")


def warn_of_unknown_models(names: list[str]) -> None:
    """A slip in a model's name, or in a condition, would otherwise be found out when the model is needed."""
    try:
        state = running_state()
    except NotRunning:
        return  # models may be named before there are any
    known = {*state.real, *state.simulated}
    for name in names:
        if name not in known and not any(sign in name for sign in "*?["):
            typer.echo(f"note: the running stack has no model {name!r} yet; chains pass it over.", err=True)


def _fallback(text: str) -> dict[str, Any]:
    """`MODEL`, or `MODEL:error,timeout`. A model's name may hold a colon of its own: the last one counts."""
    model, colon, conditions = text.rpartition(":")
    known = {condition.value for condition in routes.Condition}
    if colon and known.issuperset(conditions.split(",")):
        return {"model": model, "on": conditions.split(",")}
    return {"model": text}


def format_policy(policy: dict[str, Any]) -> str:
    """A policy in a line."""
    parts: list[str] = []
    if policy.get("retries"):
        parts.append(f"{policy['retries']} more at the same model")
    for fallback in policy.get("fallbacks", ()):
        after = f" after {', '.join(fallback['on'])}" if fallback.get("on") else ""
        parts.append(f"then {fallback['model']}{after}")
    if (downgrade := policy.get("downgrade")) is not None:
        floor = f" of quality {downgrade['min_quality']} or more" if downgrade.get("min_quality") else ""
        parts.append(f"{' or '.join(downgrade['models'])}{floor} from {downgrade['at_share'] / 100:g} % of a budget")
    if "max_cost_nano" in policy:
        parts.append(f"at most {format_dollars(policy['max_cost_nano'])} a call")
    parts += [f"{name} {policy[name]:g}" for name in ("max_attempts", "max_elapsed_s", "queue_s") if name in policy]
    parts += [f"{name} {value:g}" for name, value in policy.get("timeouts", {}).items()]
    if "on_leave" in policy:
        parts.append(f"{policy['on_leave']} what callers leave")
    if policy.get("bills_errors"):
        parts.append("errors are billed")
    return "; ".join(parts)


def print_routes(found: list[routes.Route], json: bool) -> None:
    if json:
        emit([row.model_dump() for row in found], json=True)
        return
    rows = [
        {
            "id": row.id,
            "scope": row.scope,
            "subject": row.subject,
            "model": row.model,
            "policy": format_policy(row.policy),
        }
        for row in found
    ]
    emit(rows, empty="There are no routes: each call has one attempt at the model that it asks for.")
