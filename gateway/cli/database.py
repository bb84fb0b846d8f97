"""What the administrative commands share: checking the input, and running a change on the database.

What must hold:
A mistake in the input is found before the database is asked, and the command exits with 2.
Libraries that only a running command needs are imported inside its function, here and in all modules of commands. So
`--help` is printed without pydantic and asyncpg, which take longer to import than everything else together.
"""

from __future__ import annotations

import getpass
import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar
from uuid import UUID

import typer

from gateway.cli.common import ExitCode, fail, run_async
from llm_service.administration.paging import MOST, Page
from llm_service.money import format_dollars

if TYPE_CHECKING:
    import asyncpg

    from agents.runs.in_postgres import PostgresRuns
    from gateway.settings import Settings
    from llm_service.administration.inputs import Input

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound="Input")

AsJson = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
OfOrganisation = Annotated[str | None, typer.Option("--organisation", help="Of this organisation.")]
OfTeam = Annotated[str | None, typer.Option("--team", help="Of this team.")]
OfAgent = Annotated[str | None, typer.Option("--agent", help="Of this agent.")]
OfKey = Annotated[str | None, typer.Option("--key", help="Of this key: its id, or agent/name.")]
TimeZone = Annotated[str | None, typer.Option("--time-zone", help="Such as Europe/Berlin. Default: UTC.")]
Window = Annotated[
    str | None, typer.Option("--window", help="minute, hour, day, week, month, total, or run. Default: total.")
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=MOST, help="How many at most.")]
AfterName = Annotated[
    str | None, typer.Option("--after", help="Continue after this name: the last one of the page before.")
]
AfterId = Annotated[
    int | None, typer.Option("--after", help="Continue after this id: the last one of the page before.")
]


@asynccontextmanager
async def open_pool(settings: Settings | None = None) -> AsyncIterator[asyncpg.Pool]:
    """A small pool on `TREASURER_DATABASE_URL`, or else on the running stack's database.

    Raises:
        NotRunning: there is neither, or the database cannot be reached.
    """
    import asyncpg

    from gateway.settings import load_settings
    from gateway.stack.state import NotRunning, running_state
    from llm_service.postgres import ANY_POSTGRES_ERROR, check_version

    settings = settings or load_settings()
    url = settings.database_url or running_state(settings).database_url
    try:
        pool = await asyncpg.create_pool(url, min_size=1, max_size=4, timeout=5, init=check_version)
    except ANY_POSTGRES_ERROR as error:
        reason = str(error) or "it did not answer in time"
        raise NotRunning(
            f"The database cannot be reached ({reason}). Is Treasurer running? Start it with `treasurer up`."
        ) from error
    try:
        yield pool
    finally:
        pool.terminate()


def print_more(page: Page[_T], cursor: Callable[[_T], str | int]) -> None:
    """Print that there are more rows than this page shows, and how to see them."""
    if page.more:
        after = shlex.quote(str(cursor(page[-1])))
        typer.echo(
            f"There are more. Add --after {after} to see the next ones, or --limit to see more at once.", err=True
        )


def checked(model: type[_Model], /, **fields: object) -> _Model:
    """The input that was typed. A mistake in it is printed, and ends the program with exit code 2."""
    from llm_service.administration.inputs import read_input
    from llm_service.errors import InvalidRequest

    try:
        return read_input(model, fields)
    except InvalidRequest as error:
        fail(error.message, ExitCode.USAGE)


def administer(action: Callable[[asyncpg.Pool], Awaitable[_T]]) -> _T:
    """Run one administrative function on the running stack's database."""
    from llm_service.administration.transaction import ACTOR

    async def run() -> _T:
        ACTOR.set(f"cli {_person()}")
        async with open_pool() as pool:
            return await action(pool)

    return run_async(run())


def read_uuid(text: str, what: str) -> UUID:
    """The id that was typed. A mistake in it ends the program with exit code 2."""
    try:
        return UUID(text)
    except ValueError:
        fail(f"{text[:80]!r} is not the id of a {what}.", ExitCode.USAGE)


def with_runs(action: Callable[[PostgresRuns], Awaitable[_T]]) -> _T:
    """Run one function on the runs in the running stack's database."""

    async def act(pool: asyncpg.Pool) -> _T:
        from agents.runs.in_postgres import PostgresRuns
        from gateway.settings import load_settings
        from gateway.tracing import run_traces

        async with run_traces(load_settings()) as traces:
            return await action(PostgresRuns(pool, traces))

    return administer(act)


def _person() -> str:
    """The operating system's name for the user at the command line."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def dollars(nano: int) -> str:
    """An amount in dollars for people to read: exact, with at least two decimals."""
    return format_dollars(nano)
