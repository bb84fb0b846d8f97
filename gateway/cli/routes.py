"""`treasurer route`: how calls for a model are served when it fails, is slow, or becomes too expensive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.common import command_group, emit
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
from llm_service.administration.paging import DEFAULT
from llm_service.money import format_dollars

if TYPE_CHECKING:
    from llm_service.administration.routes import Route

commands = command_group("Routes: which models stand in for another, when, and how long to wait.")

_Seconds = float | None
_Model = Annotated[str, typer.Option("--model", help="The model that callers ask for, or a pattern.")]

# Which models serve a call, one after the other.
_Fallbacks = Annotated[
    list[str] | None,
    typer.Option(
        "--fallback",
        metavar="MODEL[:CONDITIONS]",
        help="Stands in for the model; may be repeated, and is tried in this order. Conditions, separated by commas: "
        "error, timeout, rate_limit, breaker_open, context_too_long, content_filter, near_limit. Default: the first five.",
    ),
]
_Retries = Annotated[int | None, typer.Option("--retries", help="Further attempts at the same model. Default: 0.")]
_Downgrades = Annotated[
    list[str] | None,
    typer.Option("--downgrade", metavar="MODEL", help="A cheaper model, for calls near a budget's limit."),
]
_DowngradeAt = Annotated[
    float, typer.Option("--downgrade-at", metavar="PERCENT", help="How much of any budget that applies must be used.")
]
_MinQuality = Annotated[
    int, typer.Option("--min-quality", help="The lowest treasurer_quality of a downgrade (config/litellm.yaml).")
]

# How many attempts, how much time and how much money one call may use.
_MaxAttempts = Annotated[
    int | None, typer.Option("--max-attempts", help="The most attempts of one call, at all models. Default: 4.")
]
_MaxElapsed = Annotated[
    _Seconds, typer.Option("--max-elapsed", help="Seconds after which no further attempt begins. Default: 60.")
]
_MaxCost = Annotated[
    str | None, typer.Option("--max-cost", help="The most that a call may cost, all attempts together, in dollars.")
]

# How long to wait.
_Connect = Annotated[_Seconds, typer.Option("--connect", help="Seconds to reach LiteLLM Proxy.")]
_FirstToken = Annotated[_Seconds, typer.Option("--first-token", help="Seconds to the first token of a stream.")]
_Silence = Annotated[_Seconds, typer.Option("--silence", help="Seconds between two events of a stream.")]
_Total = Annotated[_Seconds, typer.Option("--total", help="Seconds to the end of an answer, for each attempt.")]
_Queue = Annotated[
    _Seconds, typer.Option("--queue", help="Seconds that a call may wait for held money, pace or a rate limit.")
]

# What is paid for when a caller leaves, or when a provider answers with an error.
_OnLeave = Annotated[
    str | None,
    typer.Option("--on-leave", help="How a stream ends whose caller leaves: cancel or finish. Default: cancel."),
]
_BillsErrors = Annotated[
    bool | None,
    typer.Option("--bills-errors/--no-bills-errors", help="Whether the provider bills its own errors (5xx), too."),
]


@commands.command("set")
def set_route(
    model: _Model,
    organisation: OfOrganisation = None,
    team: OfTeam = None,
    agent: OfAgent = None,
    fallback: _Fallbacks = None,
    retries: _Retries = None,
    max_attempts: _MaxAttempts = None,
    max_elapsed: _MaxElapsed = None,
    max_cost: _MaxCost = None,
    downgrade: _Downgrades = None,
    downgrade_at: _DowngradeAt = 80.0,
    min_quality: _MinQuality = 0,
    connect: _Connect = None,
    first_token: _FirstToken = None,
    silence: _Silence = None,
    total: _Total = None,
    queue: _Queue = None,
    on_leave: _OnLeave = None,
    bills_errors: _BillsErrors = None,
    json: AsJson = False,
) -> None:
    """Set a route. It replaces an earlier route of the same subject and model."""
    from llm_service.administration import routes

    timeouts = {"connect_s": connect, "first_token_s": first_token, "silence_s": silence, "total_s": total}
    new = checked(
        routes.SetRoute,
        model=model,
        organisation=organisation,
        team=team,
        agent=agent,
        fallbacks=[read_fallback(each) for each in fallback] if fallback else None,
        retries=retries,
        max_attempts=max_attempts,
        max_elapsed_s=max_elapsed,
        max_cost=max_cost,
        downgrade=_downgrade(downgrade, downgrade_at, min_quality),
        timeouts={name: value for name, value in timeouts.items() if value is not None} or None,
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
    from llm_service.administration import routes

    found = administer(lambda pool: routes.list_routes(pool, limit=limit, after=after))
    print_routes(found, json)
    print_more(found, lambda row: row.id)


@commands.command("remove")
def remove_route(route_id: Annotated[int, typer.Argument(metavar="ID")], json: AsJson = False) -> None:
    """Remove a route by its id (treasurer route list)."""
    from llm_service.administration import routes

    gone = administer(lambda pool: routes.remove_route(pool, route_id))
    if json:
        emit([gone.model_dump()], json=True)
        return
    typer.echo(f"Route {gone.id} ({gone.scope} {gone.subject}, {gone.model}) is removed.")


def warn_of_unknown_models(names: list[str]) -> None:
    """Print the models that the running stack does not have. Otherwise a misspelt name would be noticed only when a call
    needs that model."""
    from gateway.stack.state import NotRunning, running_state

    try:
        state = running_state()
    except NotRunning:
        return  # without a running stack the names cannot be checked; setting a route is allowed all the same
    known = {*state.real, *state.simulated}
    for name in names:
        if name not in known and not any(sign in name for sign in "*?["):
            typer.echo(f"note: the running stack has no model {name!r} yet; chains leave it out.", err=True)


def read_fallback(text: str) -> dict[str, Any]:
    """`MODEL`, or `MODEL:error,timeout`. As a model's name may contain colons, the conditions follow the last colon."""
    from llm_service.administration.routes import Condition

    model, colon, conditions = text.rpartition(":")
    known = {condition.value for condition in Condition}
    if colon and known.issuperset(conditions.split(",")):
        return {"model": model, "on": conditions.split(",")}
    return {"model": text}


def _downgrade(models: list[str] | None, at_percent: float, min_quality: int) -> dict[str, Any] | None:
    return {"at_percent": at_percent, "models": models, "min_quality": min_quality} if models else None


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


def print_routes(found: list[Route], json: bool) -> None:
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
