"""Fixtures for tests of administration: the admin API over HTTP, and the command line, each on the test's own database;
and the command line on the shared stack. And a database with an event loop, for state machines of Hypothesis.

Commands run in this process, because a process would import Treasurer for two seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from types import SimpleNamespace

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI

from gateway import errors
from gateway.cli import main
from gateway.routes import admin
from gateway.stack.postgres import EmbeddedPostgres
from gateway.stack.state import StackState
from llm_service.administration.principals import Principals
from llm_service.errors import UnknownModel
from tests.integration.administering import ADMIN, Ran, Treasurer
from tests.integration.machines import World
from tests.processes import copy_of_database


@pytest.fixture
async def api(pool: asyncpg.Pool) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the admin API with an administrator's key; the API runs in this process, and knows two models."""
    app = FastAPI()
    errors.install(app)
    app.include_router(admin.router)

    async def find_model(name: str) -> None:
        if name not in ("gpt-4o-mini", "claude-haiku-4-5"):
            raise UnknownModel(f"The model {name!r} does not exist.", param="model")

    app.state.runtime = SimpleNamespace(
        pools=SimpleNamespace(reading=pool, changes=pool),
        principals=Principals(pool, admin_key=ADMIN),
        catalog=SimpleNamespace(get=find_model),
    )
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://gateway/admin/v1", headers={"authorization": f"Bearer {ADMIN}"}
    ) as client:
        yield client


@pytest.fixture
def world(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[World]:
    """A fresh, migrated database for a state machine of Hypothesis."""
    with asyncio.Runner() as runner:
        loop, things = runner.get_loop(), AsyncExitStack()
        url = loop.run_until_complete(things.enter_async_context(copy_of_database(postgres, migrated_template)))
        try:
            pool = loop.run_until_complete(things.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=4)))
            yield World(loop, pool, url)
        finally:
            loop.run_until_complete(things.aclose())


@pytest.fixture
def treasurer(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Treasurer:
    """Run `treasurer …` as its entry point does, on this test's database."""
    monkeypatch.setenv("TREASURER_DATABASE_URL", database_url)
    return command_line(monkeypatch, capsys)


@pytest.fixture
def treasurer_on_stack(
    stack: StackState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Treasurer:
    """Run `treasurer …` as its entry point does, on the shared stack."""
    monkeypatch.setenv("TREASURER_DATA_DIR", str(stack.data_dir))
    return command_line(monkeypatch, capsys)


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Treasurer:
    async def run(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["treasurer", *arguments])
        capsys.readouterr()
        code = 0
        try:
            await asyncio.to_thread(main)  # the command starts an event loop itself
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run
