"""`treasurer simulate`: what another limit, pace or downgrade would have refused, downgraded and saved."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import ExitCode, emit, fail, run_async
from gateway.cli.database import AsJson, administer, dollars
from llm_service.money import MoneyError, parse_dollars

if TYPE_CHECKING:
    from llm_service.treasury.pacing import Curve
    from llm_service.treasury.reports.simulate import Policy, PriceOf, Replayed
    from llm_service.types import Usage

_ASSUMED = (
    "Assumed: every model uses the same tokens; calls come one after the other, in the order in which they began; calls "
    "that were refused stay refused; money spent before the period stays spent; top-ups are added to a changed limit."
)
_PERCENT = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,2})?)%?")


def simulate(
    since: Annotated[str, typer.Option("--since", help="The period until now, such as 7d.")] = "7d",
    limit: Annotated[
        list[str] | None, typer.Option("--limit", metavar="BUDGET=DOLLARS", help="Another limit; may be repeated.")
    ] = None,
    pace: Annotated[
        list[str] | None, typer.Option("--pace", metavar="BUDGET=PACE", help="Such as 'agent news: month=linear+10%'.")
    ] = None,
    downgrade: Annotated[
        list[str] | None,
        typer.Option("--downgrade", metavar="MODEL=CHEAPER@PERCENT", help="Such as gpt-4o=gpt-4o-mini@80."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Replay a period of the ledger under another policy: what would have been refused, downgraded, saved."""
    from llm_service.administration.inputs import parse_duration
    from llm_service.treasury.reports.simulate import read_calls, replay

    policy = _policy(limit or [], pace or [], downgrade or [])
    until = datetime.now(UTC)
    try:
        begins = until - parse_duration(since)
    except ValueError as error:
        fail(f"--since: {error}", ExitCode.USAGE)
    calls = administer(lambda pool: read_calls(pool, begins, until, limited=policy.limits, paced=policy.paces))
    models = {cheaper for cheaper, _ in policy.downgrades.values()}
    result = replay(calls, policy, _prices(models) if models else _no_price)
    asked = {call.requested_model for call in calls}
    for model in policy.downgrades:
        if model not in asked:
            typer.echo(f"Nothing that was paid for in the last {since} asked for {model!r}.", err=True)
    if json:
        emit([_fields(result)], json=True)
        return
    print_replay(result, since)


def _policy(limits: list[str], paces: list[str], downgrades: list[str]) -> Policy:
    from llm_service.treasury.pacing import parse_pace
    from llm_service.treasury.reports.simulate import Policy

    changed: dict[str, int] = {}
    curves: dict[str, Curve] = {}
    cheaper: dict[str, tuple[str, int]] = {}
    try:
        for budget, value in map(_pair, limits):
            changed[budget] = parse_dollars(value)
        for budget, value in map(_pair, paces):
            curves[budget] = parse_pace(value)
        for model, value in map(_pair, downgrades):
            name, at, percent = value.partition("@")
            number = _PERCENT.fullmatch(percent) if at else None
            share = int(Decimal(number[1]) * 100) if number else 0 if at else 8_000
            if not name or not 0 < share < 10_000:
                raise ValueError("a downgrade is MODEL=CHEAPER@PERCENT, of more than 0 and less than 100")
            cheaper[model] = (name, share)
    except (ValueError, MoneyError) as error:
        fail(str(error), ExitCode.USAGE)
    if not (changed or curves or cheaper):
        fail("name at least one change: --limit, --pace or --downgrade", ExitCode.USAGE)
    return Policy(changed, curves, cheaper)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name or not value:
        raise ValueError(f"expected NAME=VALUE, not {text!r}")
    return name, value


def _prices(models: set[str]) -> PriceOf:
    """Prices of the running proxy's catalogue. Raises UnknownModel."""
    from gateway.composition import open_catalog
    from gateway.settings import load_settings

    async def read() -> PriceOf:
        async with open_catalog(load_settings()) as runtime:
            known = {name: await runtime.catalog.get(name) for name in models}
        return lambda model, usage: known[model].cost(None, usage)

    return run_async(read())


def _no_price(_model: str, _usage: Usage) -> None:
    return None


def _fields(result: Replayed) -> dict[str, object]:
    return {
        "calls": result.calls,
        "spent_nano": result.spent_nano,
        "would_spend_nano": result.would_spend_nano,
        "saved_nano": result.saved_nano,
        "refused": result.refused,
        "refused_nano": result.refused_nano,
        "refused_by_budget": result.by_budget,
        "refused_by_agent": result.by_agent,
        "downgraded": result.downgraded,
        "downgraded_saved_nano": result.downgraded_saved_nano,
    }


def print_replay(result: Replayed, since: str) -> None:
    typer.echo(f"In the last {since}: {result.calls:,} calls for {dollars(result.spent_nano)}.")
    typer.echo(f"They would have cost {dollars(result.would_spend_nano)}: {dollars(result.saved_nano)} saved.")
    typer.echo(f"Refused: {result.refused:,} calls, which cost {dollars(result.refused_nano)}.")
    for budget, count in sorted(result.by_budget.items(), key=lambda item: -item[1]):
        typer.echo(f"  {count:,} by budget {budget!r}")
    for agent, count in sorted(result.by_agent.items(), key=lambda item: -item[1])[:10]:
        typer.echo(f"  {count:,} of agent {agent!r}")
    typer.echo(f"Downgraded: {result.downgraded:,} calls, {dollars(result.downgraded_saved_nano)} cheaper.")
    typer.echo(_ASSUMED)
