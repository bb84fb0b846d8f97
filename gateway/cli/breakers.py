"""`treasurer breaker`: list the circuit breakers, and open or close one by hand.

What must hold: the change is made by a running gateway, through its admin API. The gateway knows the catalogue, so that a
misspelt name is refused, and it notifies all other processes.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.common import command_group, emit, fail, run_async
from gateway.cli.database import AsJson

commands = command_group("Circuit breakers of models, providers and the proxy.")

_Name = Annotated[str, typer.Argument(metavar="NAME", help="model:gpt-4o, provider:openai or proxy.")]


@commands.command("list")
def list_breakers(json: AsJson = False) -> None:
    """List the breakers of everything that was called, with their state, since when, and why."""
    rows: list[dict[str, Any]] = _ask("GET", "")["data"]
    if json:
        emit(rows, json=True)
        return
    shown = [
        row | {"since": row["since"][:19].replace("T", " "), "retry_s": format_seconds(row["retry_s"])} for row in rows
    ]
    columns = {"name": "breaker", "state": "state", "since": "since (UTC)", "why": "why", "retry_s": "next try in, s"}
    emit(shown, columns=columns, empty="No call has passed a breaker yet.")


@commands.command("open")
def open_breaker(
    name: _Name,
    seconds: Annotated[
        float, typer.Option("--for", metavar="SECONDS", help="After how long it closes, if nobody closes it before.")
    ] = 3_600,
    json: AsJson = False,
) -> None:
    """Open a breaker, for maintenance: every call to that model, provider or proxy is refused. Routes with fallbacks
    use their other models."""
    done = _ask("POST", f"/{quote(name, safe='')}/open?seconds={seconds:g}")
    print_change(
        done, f"{name} is open: no call passes for {seconds:g} s, or until `treasurer breaker reset {name}`", json
    )


@commands.command("reset")
def reset_breaker(name: _Name, json: AsJson = False) -> None:
    """Close a breaker: calls pass at once, and the count of failures starts again at 0."""
    print_change(_ask("POST", f"/{quote(name, safe='')}/close"), f"{name} is closed", json)


def print_change(done: dict[str, Any], sentence: str, json: bool) -> None:
    if json:
        emit([done], json=True)
        return
    where = (
        "."
        if done["everywhere"]
        else ", in one gateway process: Redis is away. The other processes follow when it is available again."
    )
    typer.echo(sentence + where)


def format_seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _ask(method: str, path: str) -> dict[str, Any]:
    import aiohttp
    from yarl import URL

    from gateway.stack.state import NotRunning, running_state

    state = running_state()
    url = URL(f"{state.gateway_url}/admin/v1/breakers{path}", encoded=True)

    async def ask() -> tuple[int, dict[str, Any]]:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.request(method, url, headers={"Authorization": f"Bearer {state.admin_key}"}) as answer,
        ):
            return answer.status, await answer.json()

    try:
        status, answer = run_async(ask())
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise NotRunning(f"The gateway at {state.gateway_url} does not answer ({error or 'timed out'}).") from error
    if status != 200:
        fail(str(answer.get("error", {}).get("message", answer)))
    return answer
