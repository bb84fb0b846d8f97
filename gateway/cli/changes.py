"""`treasurer changes`: the log of changes of configuration, with who made each, when, and the values before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.common import ExitCode, emit, fail
from gateway.cli.database import AfterId, AsJson, Limit, administer, print_more
from llm_service.administration.paging import DEFAULT

if TYPE_CHECKING:
    from llm_service.administration.change_log import Change

_HIDDEN = {"id", "created_at"}
#: The same kinds as `change_log.KINDS`, for the help text (a test compares the two).
_KINDS = (
    "organisations, teams, agents, api_keys, budgets, top_ups, rate_limits, routes, price_acknowledgements, "
    "repricings, invoices, breakers, agent_versions"
)


def changes(
    kind: Annotated[str | None, typer.Option("--kind", help=f"One of {_KINDS}.")] = None,
    since: Annotated[str, typer.Option("--since", help="How long ago at most, such as 24h or 30d.")] = "30d",
    limit: Limit = DEFAULT,
    after: AfterId = None,
    json: AsJson = False,
) -> None:
    """The log of changes: who, what, before, after; the newest first."""
    from llm_service.administration import change_log
    from llm_service.administration.inputs import parse_duration

    try:
        period = parse_duration(since)
    except ValueError as error:
        fail(f"--since: {error}", ExitCode.USAGE)
    found = administer(lambda pool: change_log.list_changes(pool, kind=kind, since=period, limit=limit, after=after))
    print_more(found, lambda row: row.id)
    if json:
        emit([row.model_dump(mode="json") for row in found], json=True)
        return
    rows = [
        {
            "at": f"{row.at:%Y-%m-%d %H:%M:%S}",
            "who": row.actor,
            "what": f"{row.kind} {row.object} {row.action}",
            "fields": format_fields(row),
        }
        for row in found
    ]
    emit(rows, empty="Nothing was changed.")


def format_fields(change: Change) -> str:
    shown = {name: both for name, both in change.fields.items() if name not in _HIDDEN}
    if change.action == "changed":
        return ", ".join(f"{name}: {format_value(old)} → {format_value(new)}" for name, (old, new) in shown.items())
    side = 0 if change.action == "removed" else 1
    return ", ".join(
        f"{name}: {format_value(both[side])}" for name, both in shown.items() if both[side] not in (None, [], "")
    )


def format_value(value: Any) -> str:
    return "none" if value is None else str(value)
