"""When Postgres is stopped, read-only, full, never migrated, or has no free connection, each route answers 503 and each
command prints one sentence.

The lists of routes and commands come from the app and the command line, so a new one that is not named here fails the
test. Each state is that of a real server. Only the full disk is simulated: a trigger raises the error of a full disk
(SQLSTATE 53100), because a test must not fill the machine's disk.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from aiohttp import web
from pydantic import SecretStr
from pydantic_ai.models import override_allow_model_requests
from starlette.routing import Route

from agents.approvals.record import NewApproval, Why
from agents.configuration.inputs import NewVersion
from agents.configuration.versions import set_configuration
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import NewRun, WaitFor, Waits
from gateway.app import create_app
from gateway.cli import ENTRIES, main
from gateway.migrations import migrate
from gateway.routes import openai
from gateway.settings import Settings
from gateway.stack.ports import free_port
from gateway.stack.postgres import EmbeddedPostgres, create_database, embedded_postgres
from llm_service.administration import budgets, keys, organisations
from llm_service.administration.inputs import read_input
from tests.processes import running_postgres

ADMIN = "an-administrators-key-from-the-settings"
#: Enough for the gateway's pools, but few enough for a test to take all of them.
MAX_CONNECTIONS = 40

MODEL: dict[str, Any] = {
    "model_name": "m",
    "litellm_params": {"model": "openai/m"},
    "model_info": {
        "id": "d1", "litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1e-06,
        "output_cost_per_token": 2e-06, "max_input_tokens": 1000, "max_output_tokens": 1000,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """One request. `reads`: the request changes nothing, so it is served while Postgres accepts no writes."""

    path: str
    json: Mapping[str, Any] | None = None
    reads: bool = False
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
A = "/admin/v1"
#: A run that has ended.
RUN = UUID("01a222cc-ee11-7fb1-9fc0-02976978322c")
#: A question of a run that waits.
APPROVAL = UUID("01a222cc-ee11-7fb1-9fc0-02976978322d")
#: A conversation that has no run under way.
CONVERSATION = UUID("01a222cc-ee11-7fb1-9fc0-02976978322e")
DIGEST = b"d" * 32
#: The same decision as chat front-ends send it, in the chat "c".
QUESTION = f"{APPROVAL}.{DIGEST.hex()}"
RESUME = {"threadId": "c", "runId": "r", "messages": [], "resume": [{"interruptId": QUESTION, "status": "cancelled"}]}
RESPONDED = {"type": "dynamic-tool", "state": "approval-responded", "approval": {"id": QUESTION, "approved": True}}
UI_MESSAGES = [{"id": "m", "role": "assistant", "parts": [RESPONDED]}]
APPROVE = {"decision": "approve", "digest": DIGEST.hex()}
INVOICE = {"model": "m", "starts_at": "2026-01-01", "ends_at": "2026-02-01", "amount": "1"}
ROUTES: dict[tuple[str, str], list[Ask]] = {
    ("GET", "/v1/models"): [Ask("/v1/models", reads=True)],
    ("GET", "/v1/models/{name:path}"): [Ask("/v1/models/m", reads=True)],
    ("POST", "/v1/chat/completions"): [
        Ask("/v1/chat/completions", CHAT),
        Ask("/v1/chat/completions", {**CHAT, "stream": True}),
        Ask("/v1/chat/completions", CHAT, headers={"idempotency-key": "once"}),
    ],
    ("POST", "/v1/embeddings"): [Ask("/v1/embeddings", {"model": "e", "input": "Hello"})],
    ("GET", f"{A}/organisations"): [Ask(f"{A}/organisations", reads=True)],
    ("POST", f"{A}/organisations"): [Ask(f"{A}/organisations", {"name": "o"})],
    ("GET", f"{A}/teams"): [Ask(f"{A}/teams", reads=True)],
    ("POST", f"{A}/teams"): [Ask(f"{A}/teams", {"name": "t"})],
    ("GET", f"{A}/agents"): [Ask(f"{A}/agents", reads=True)],
    ("POST", f"{A}/agents"): [Ask(f"{A}/agents", {"name": "b"})],
    ("PATCH", f"{A}/agents/{{name}}"): [Ask(f"{A}/agents/a", {"default_max_tokens": 100})],
    ("POST", f"{A}/{{kind}}/{{name}}/pause"): [Ask(f"{A}/agents/a/pause")],
    ("POST", f"{A}/{{kind}}/{{name}}/resume"): [Ask(f"{A}/agents/a/resume")],
    ("GET", f"{A}/keys"): [Ask(f"{A}/keys", reads=True)],
    ("POST", f"{A}/keys"): [Ask(f"{A}/keys", {"agent": "a", "name": "second"})],
    ("POST", f"{A}/keys/{{key_id}}/rotate"): [Ask(f"{A}/keys/1/rotate", {})],
    ("DELETE", f"{A}/keys/{{key_id}}"): [Ask(f"{A}/keys/1")],
    ("GET", f"{A}/budgets"): [Ask(f"{A}/budgets", reads=True)],
    ("POST", f"{A}/budgets"): [Ask(f"{A}/budgets", {"agent": "a", "limit": "1", "name": "c"})],
    ("POST", f"{A}/budgets/{{name:path}}/top-ups"): [Ask(f"{A}/budgets/b/top-ups", {"amount": "1"})],
    ("GET", f"{A}/budgets/{{name:path}}"): [Ask(f"{A}/budgets/b", reads=True)],
    ("PATCH", f"{A}/budgets/{{name:path}}"): [Ask(f"{A}/budgets/b", {"limit": "2"})],
    ("DELETE", f"{A}/budgets/{{name:path}}"): [Ask(f"{A}/budgets/b")],
    ("GET", f"{A}/limits"): [Ask(f"{A}/limits", reads=True)],
    ("PUT", f"{A}/limits"): [Ask(f"{A}/limits", {"agent": "a", "requests_per_minute": 5})],
    ("DELETE", f"{A}/limits/{{limit_id}}"): [Ask(f"{A}/limits/1")],
    ("GET", f"{A}/routes"): [Ask(f"{A}/routes", reads=True)],
    ("PUT", f"{A}/routes"): [Ask(f"{A}/routes", {"agent": "a", "model": "m", "fallbacks": [{"model": "n"}]})],
    ("DELETE", f"{A}/routes/{{route_id}}"): [Ask(f"{A}/routes/1")],
    ("GET", f"{A}/acknowledgements"): [Ask(f"{A}/acknowledgements", reads=True)],
    ("PUT", f"{A}/acknowledgements"): [Ask(f"{A}/acknowledgements", {"model": "m", "note": "n"})],
    ("GET", f"{A}/repricings"): [Ask(f"{A}/repricings", reads=True)],
    ("POST", f"{A}/repricings"): [Ask(f"{A}/repricings", {"model": "m"}, reads=True)],
    ("GET", f"{A}/invoices"): [Ask(f"{A}/invoices", reads=True)],
    ("PUT", f"{A}/invoices"): [Ask(f"{A}/invoices", INVOICE)],
    ("DELETE", f"{A}/invoices/{{invoice_id}}"): [Ask(f"{A}/invoices/1")],
    ("GET", f"{A}/agents/{{name}}/configuration"): [Ask(f"{A}/agents/digest/configuration", reads=True)],
    ("PUT", f"{A}/agents/{{name}}/configuration"): [Ask(f"{A}/agents/digest/configuration", {"budget": "1"})],
    ("PATCH", f"{A}/agents/{{name}}/configuration"): [Ask(f"{A}/agents/digest/configuration", {"budget": "1"})],
    ("GET", f"{A}/agents/{{name}}/configuration/versions"): [
        Ask(f"{A}/agents/digest/configuration/versions", reads=True)
    ],
    ("GET", f"{A}/agents/{{name}}/configuration/versions/{{version}}"): [
        Ask(f"{A}/agents/digest/configuration/versions/1", reads=True)
    ],
    ("POST", f"{A}/agents/{{name}}/configuration/use"): [Ask(f"{A}/agents/digest/configuration/use", {"version": 1})],
    ("GET", "/agents/approvals"): [Ask("/agents/approvals", reads=True)],
    ("GET", "/agents/approvals/{approval_id}"): [Ask(f"/agents/approvals/{APPROVAL}", reads=True)],
    ("POST", "/agents/approvals/{approval_id}"): [Ask(f"/agents/approvals/{APPROVAL}", APPROVE)],
    ("POST", "/agents/{agent}/runs"): [Ask("/agents/digest/runs", {"wait": 1})],
    ("GET", "/agents/conversations"): [Ask("/agents/conversations", reads=True)],
    ("GET", "/agents/conversations/{conversation_id}"): [Ask(f"/agents/conversations/{CONVERSATION}", reads=True)],
    ("GET", "/agents/conversations/{conversation_id}/messages"): [
        Ask(f"/agents/conversations/{CONVERSATION}/messages", reads=True)
    ],
    ("DELETE", "/agents/conversations/{conversation_id}"): [Ask(f"/agents/conversations/{CONVERSATION}")],
    ("POST", "/agents/{agent}/ag-ui"): [Ask("/agents/digest/ag-ui", RESUME)],
    ("POST", "/agents/{agent}/ai-sdk"): [Ask("/agents/digest/ai-sdk", {"id": "c", "messages": UI_MESSAGES})],
    ("GET", "/agents/{agent}/ai-sdk/{chat}/stream"): [Ask("/agents/digest/ai-sdk/c/stream", reads=True)],
    ("POST", "/agents/{agent}/ai-sdk/{chat}/stop"): [Ask("/agents/digest/ai-sdk/c/stop")],
    ("GET", "/agents/runs"): [Ask("/agents/runs", reads=True)],
    ("GET", "/agents/runs/{run_id}"): [Ask(f"/agents/runs/{RUN}", reads=True)],
    ("GET", "/agents/runs/{run_id}/steps"): [Ask(f"/agents/runs/{RUN}/steps", reads=True)],
    ("GET", "/agents/runs/{run_id}/events"): [Ask(f"/agents/runs/{RUN}/events", reads=True)],
    ("POST", "/agents/runs/{run_id}/cancel"): [Ask(f"/agents/runs/{RUN}/cancel")],
    ("POST", "/agents/runs/{run_id}/retry"): [Ask(f"/agents/runs/{RUN}/retry")],
    ("POST", "/agents/runs/{run_id}/fork"): [Ask(f"/agents/runs/{RUN}/fork", {"steps": 0})],
    ("GET", f"{A}/changes"): [Ask(f"{A}/changes", reads=True)],
    ("GET", "/reports/costs"): [Ask("/reports/costs", reads=True), Ask("/reports/costs?format=csv", reads=True)],
    ("GET", "/readyz"): [Ask("/readyz", reads=True)],
}
#: Routes that work without Postgres, with their answers then. Breakers must also work in an outage.
WITHOUT_POSTGRES: dict[tuple[str, str], tuple[str, int]] = {
    ("GET", "/healthz"): ("/healthz", 200),
    ("GET", "/metrics"): ("/metrics", 200),
    ("GET", "/openapi.json"): ("/openapi.json", 200),
    ("GET", f"{A}/breakers"): (f"{A}/breakers", 200),
    ("POST", f"{A}/breakers/{{name:path}}/{{state}}"): (f"{A}/breakers/model:m/close", 200),
}

COMMANDS: dict[str, str] = {
    "pause": "agent a",
    "resume": "agent a",
    "organisation create": "o",
    "team create": "t",
    "agent create": "b",
    "agent set": "a --default-max-tokens 100",
    "agent configure": "digest --budget 1",
    "agent use": "digest 1",
    "approvals approve": f"{APPROVAL} --digest {DIGEST.hex()}",
    "approvals refuse": f"{APPROVAL} --digest {DIGEST.hex()} --reason no",
    "conversations delete": f"{CONVERSATION} --yes",
    "key create": "a --name second",
    "key rotate": "a/default",
    "key revoke": "a/default",
    "budget create": "--limit 1 --agent a --name c",
    "budget set": "b --limit 2",
    "budget top-up": "b --amount 1",
    "budget archive": "b",
    "limit set": "--agent a --rpm 5",
    "limit remove": "1",
    "route set": "--agent a --model m --fallback n",
    "route remove": "1",
    "acknowledge": "m --note n",
    "invoice record": "m --from 2026-01-01 --to 2026-02-01 --amount 1",
    "invoice remove": "1",
    "run digest": "--feed {feed} --model m",
    "runs start": "digest",
    "runs cancel": str(RUN),
    "runs retry": str(RUN),
    "runs fork": f"{RUN} --steps 0",
}
READING_COMMANDS: dict[str, str] = {
    "migrate": "",  # there is nothing to do
    "report": "",
    "reprice": "m",
    "audit": "",
    "changes": "",
    "simulate": "--since 7d --limit b=1",
    "organisation list": "",
    "team list": "",
    "agent list": "",
    "agent show": "digest",
    "agent versions": "digest",
    "approvals list": "",
    "approvals show": str(APPROVAL),
    "conversations list": "",
    "conversations show": str(CONVERSATION),
    "key list": "",
    "budget list": "",
    "budget show": "b",
    "limit list": "",
    "route list": "",
    "invoice list": "",
    "runs list": "",
    "runs show": str(RUN),
    "runs tail": str(RUN),
}
#: The answer of every route when the database was never migrated.
MIGRATE = "run `treasurer migrate`"
#: Commands that need no test here. They start a stack with a separate Postgres, call a running gateway (whose routes
#: are tested above), ask only the proxy, or go on while Postgres is away, as a worker does.
OTHER_COMMANDS = {"worker", "up", "demo", "models", "breaker list", "breaker open", "breaker reset"}


@pytest.fixture(scope="module")
def server(service_dir: Path, stop_with_us: Callable[[int], None]) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server with few connections, which a test may stop."""
    tuning = {"fsync": "off", "max_connections": str(MAX_CONNECTIONS), "autovacuum": "off"}
    away = embedded_postgres(service_dir / "away", free_port(), secrets.token_urlsafe(16), tuning)
    with running_postgres(away, service_dir / "away.log", stop_with_us) as running:
        yield running


@dataclass
class World:
    """A gateway on the server, and the command line on the same database."""

    server: EmbeddedPostgres
    url: str
    http: httpx2.AsyncClient
    key: str
    run: Callable[[str], Any]
    feed: Path

    @property
    def maintenance(self) -> str:
        return self.server.url("postgres")


@pytest.fixture
async def world(
    server: EmbeddedPostgres, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> AsyncIterator[World]:  # fmt: skip
    """An agent with a key and a budget, a gateway and a catalogue of two models."""
    url = server.url("away")
    await create_database(server.url("postgres"), "away")
    await migrate(url)
    async with asyncpg.create_pool(url, min_size=0, max_size=1) as pool:
        await organisations.create_agent(pool, read_input(organisations.NewAgent, {"name": "a"}))
        terms = {"name": "b", "agent": "a", "limit": "1"}
        await budgets.create_budget(pool, read_input(budgets.NewBudget, terms))
        issued = await keys.create_key(pool, read_input(keys.NewKey, {"agent": "a"}))
        await organisations.create_agent(pool, read_input(organisations.NewAgent, {"name": "digest"}))
        runs = PostgresRuns(pool)
        await runs.add(NewRun(RUN, "digest", 1, 1, {}, {}, "1"))
        await runs.cancel(RUN)
        await runs.add(NewRun(uuid4(), "digest", 1, 1, {}, {}, "1", session="c"))
        (waiting,) = await runs.claim(uuid4(), 1, ("digest",))
        asks = NewApproval(APPROVAL, 1, "send", Why.BEFORE, {"to": "ann"}, DIGEST, {"type": "object"}, ())
        await runs.leave(waiting.claim, Waits(WaitFor.APPROVAL, None, asks=asks))
        await pool.execute(
            "INSERT INTO work.conversations (id, team_id, agent, session, keep, forget_at) VALUES ($1, 1, 'digest', 's', '1 day', now() + interval '1 day')",
            CONVERSATION,
        )
        for budget in ("2", "3"):
            await set_configuration(pool, "digest", read_input(NewVersion, {"budget": budget}), _any_model)
    feed = tmp_path / "feed.xml"
    feed.write_text("<rss version='2.0'><channel><title>t</title><item><title>n</title></item></channel></rss>")

    async with AsyncExitStack() as things:
        proxy_url = await things.enter_async_context(_catalogue())
        environ = {
            "DATABASE_URL": url, "REDIS_URL": redis_url, "PROXY_URL": proxy_url, "GRANT_SECRET": "g" * 40,
            "DATA_DIR": str(tmp_path), "AUDIT_INTERVAL_S": "0", "BUSY_WAIT_S": "0",
        }  # fmt: skip
        for name, value in environ.items():
            monkeypatch.setenv(f"TREASURER_{name}", value)

        async def run(line: str) -> tuple[int, str]:
            """The exit code of a command, and what it wrote to stderr."""
            monkeypatch.setattr("sys.argv", ["treasurer", *line.split()])
            capsys.readouterr()
            code = 0
            try:
                await asyncio.to_thread(main)  # the command starts an event loop itself
            except SystemExit as ended:
                code = int(ended.code or 0)
            return code, capsys.readouterr().err

        door = create_app(Settings(admin_key=SecretStr(ADMIN)))
        app = door._app  # type: ignore[attr-defined]
        await things.enter_async_context(app.router.lifespan_context(app))
        # `treasurer run` asks a model of the service, which refuses before anything is sent.
        things.enter_context(override_allow_model_requests(True))
        transport = httpx2.ASGITransport(app=door, raise_app_exceptions=False)
        http = await things.enter_async_context(httpx2.AsyncClient(transport=transport, base_url="http://gateway"))
        yield World(server, url, http, issued.secret, run, feed)


async def _any_model(_name: str) -> None:
    """Every model can be used."""


@asynccontextmanager
async def _catalogue() -> AsyncIterator[str]:
    """The part of LiteLLM Proxy's API from which the catalogue is read."""

    async def models(_: web.Request) -> web.Response:
        embedding = {**MODEL, "model_name": "e", "model_info": {**MODEL["model_info"], "id": "d2", "mode": "embedding"}}
        return web.json_response({"data": [MODEL, embedding]})

    app = web.Application()
    app.router.add_get("/model/info", models)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def walked_routes(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in route.methods or () if method != "HEAD")
        else:
            yield from walked_routes(route.original_router.routes)


def walked_commands(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path)
        return
    for name, each in below.items():
        yield from walked_commands(each, (*path, name))


# -- the four states


@asynccontextmanager
async def read_only(world: World) -> AsyncIterator[None]:
    """A server that accepts no writes, by its configuration or as a standby server."""
    other = await asyncpg.connect(world.maintenance)
    try:
        await other.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await other.execute("SELECT pg_reload_conf()")
        await _until(world.url, "on")
        yield
    finally:
        await other.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await other.execute("SELECT pg_reload_conf()")
        await _until(world.url, "off")
        await other.close()


async def _until(url: str, value: str) -> None:
    async with asyncio.timeout(10):
        while True:
            connection = await asyncpg.connect(url)
            found = await connection.fetchval("SELECT current_setting('default_transaction_read_only')")
            await connection.close()
            if found == value:
                return
            await asyncio.sleep(0.05)


_FULL = """
CREATE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
END $$;
DO $$
DECLARE
    v_table regclass;
BEGIN
    FOR v_table IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace IN ('public'::regnamespace, 'work'::regnamespace) LOOP
        EXECUTE format('CREATE TRIGGER a_full_disk BEFORE INSERT OR UPDATE OR DELETE ON %s EXECUTE FUNCTION disk_is_full()', v_table);
    END LOOP;
END $$
"""


@asynccontextmanager
async def full(world: World) -> AsyncIterator[None]:
    """Every write fails with the error that PostgreSQL raises when a disk is full."""
    other = await asyncpg.connect(world.url)
    try:
        await other.execute(_FULL)
        yield
    finally:
        await other.execute("DROP FUNCTION disk_is_full CASCADE")
        await other.close()


@asynccontextmanager
async def without_connections(world: World) -> AsyncIterator[None]:
    """Other clients have all connections that the server accepts."""
    taken = [await asyncpg.connect(world.maintenance, server_settings={"application_name": "taken"})]
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    taken.append(
                        await asyncpg.connect(world.maintenance, server_settings={"application_name": "taken"})
                    )
                except asyncpg.TooManyConnectionsError:
                    ended = await taken[0].fetch(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE backend_type = 'client backend' AND application_name <> 'taken'"
                    )
                    if not ended:
                        break
                    await asyncio.sleep(0.05)
        yield
    finally:
        for connection in taken:
            connection.terminate()


@asynccontextmanager
async def stopped(world: World) -> AsyncIterator[None]:
    """The server is stopped for the rest of the module."""
    os.kill(int((world.server.data / "postmaster.pid").read_text().split()[0]), signal.SIGINT)
    async with asyncio.timeout(20):
        while await world.server.answers():
            await asyncio.sleep(0.05)
    yield


@asynccontextmanager
async def never_migrated(world: World) -> AsyncIterator[None]:
    """The database exists and is empty, as after an operator has created it and nothing else."""
    other = await asyncpg.connect(world.url)
    try:
        await other.execute(
            "ALTER SCHEMA public RENAME TO aside; CREATE SCHEMA public; ALTER SCHEMA work RENAME TO work_aside"
        )
        yield
    finally:
        await other.execute(
            "DROP SCHEMA public CASCADE; ALTER SCHEMA aside RENAME TO public; ALTER SCHEMA work_aside RENAME TO work"
        )
        await other.close()


# -- the requests in each state


async def every_route_says_so(world: World, *, reads_go_on: bool, words: str = "", wrong: list[str]) -> None:
    for (method, name), asked in ROUTES.items():
        for ask in asked:
            key = world.key if name.startswith("/v1/") else ADMIN
            answer = await world.http.request(
                method, ask.path, json=ask.json, headers={"authorization": f"Bearer {key}", **ask.headers}
            )
            if reads_go_on and ask.reads:
                if answer.status_code not in (200, 204):
                    wrong.append(f"{method} {ask.path}: {answer.status_code} {answer.text}")
                continue
            if answer.status_code != 503 or "retry-after" not in answer.headers:
                wrong.append(f"{method} {ask.path}: {answer.status_code} {dict(answer.headers)} {answer.text}")
            elif name != "/readyz" and answer.json()["error"]["code"] != "treasury_unavailable":
                wrong.append(f"{method} {ask.path}: {answer.text}")
            elif words not in answer.text:
                wrong.append(f"{method} {ask.path} does not say {words!r}: {answer.text}")
    for (method, _), (path, status) in WITHOUT_POSTGRES.items():
        answer = await world.http.request(method, path, headers={"authorization": f"Bearer {ADMIN}"})
        if answer.status_code != status:
            wrong.append(f"{method} {path}: {answer.status_code} {answer.text}")


async def every_command_says_so(world: World, *, reads_go_on: bool, words: str = "", wrong: list[str]) -> None:
    for name, arguments in (COMMANDS | READING_COMMANDS).items():
        if words == MIGRATE and name == "migrate":
            continue  # this command would end the state
        code, err = await world.run(f"{name} {arguments.format(feed=world.feed)}")
        if reads_go_on and name in READING_COMMANDS:
            if code != 0:
                wrong.append(f"treasurer {name}: {code} {err}")
        elif code not in (1, 3) or "error: " not in err or "Traceback" in err or len(err.strip().splitlines()) != 1:
            wrong.append(f"treasurer {name}: {code} {err}")
        elif words not in err:
            wrong.append(f"treasurer {name} does not say {words!r}: {err}")


def test_every_route_and_every_command_is_asked() -> None:
    app = create_app(Settings())._app  # type: ignore[attr-defined]
    walked = {*walked_routes(app.routes), *(("POST", path) for path in openai._CALLS)}
    assert walked == ROUTES.keys() | WITHOUT_POSTGRES.keys()
    commands = {path for name, entry in ENTRIES.items() for path in walked_commands(entry.load(name), (name,))}
    assert commands == COMMANDS.keys() | READING_COMMANDS.keys() | OTHER_COMMANDS


async def test_i6_every_route_and_command_says_that_postgres_cannot_be_used(world: World) -> None:
    wrong: list[str] = []
    for state, reads_go_on, words in (
        (full, True, ""), (read_only, True, ""), (never_migrated, False, MIGRATE), (without_connections, False, ""),
        (stopped, False, ""),
    ):  # fmt: skip
        async with state(world):
            found: list[str] = []
            await every_route_says_so(world, reads_go_on=reads_go_on, words=words, wrong=found)
            await every_command_says_so(world, reads_go_on=reads_go_on, words=words, wrong=found)
            wrong += [f"{state.__name__}: {each}" for each in found]
    assert wrong == [], "\n".join(wrong)
