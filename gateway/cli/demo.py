"""`treasurer demo`: starts everything in a temporary folder, lets agents spend, and shows who spent what.

What must hold:
Nothing that it shows is staged. The calls go through the gateway with the official SDK and through the real LiteLLM Proxy.
At the end the ledger is shown beside the provider's own invoice. The demo exits with 0 only if the two agree, the budget
held, a run survived the death of its worker with no answer bought twice, and the audit found the books right.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from gateway.cli.common import fail, run_async
from llm_service.money import format_dollars

if TYPE_CHECKING:
    from uuid import UUID

    import aiohttp
    import asyncpg

    from gateway.settings import Settings
    from gateway.stack.state import StackState

_RUNAWAY_CALLERS = 24
_PROMPTS = (
    "Summarise this week's support tickets in two sentences.",
    "请用一句话总结本周的客户反馈。",
    "def total(xs):\n    return sum(x.price for x in xs)\n\nFind the bug, if any.",
    "🚀 Launch plan: list the three biggest risks.",
)


@dataclass(frozen=True, slots=True)
class _Actor:
    """An agent of the demo. `limit` is in dollars, for a day; `calls` is how many calls it makes."""

    name: str
    team: str
    model: str
    limit: str
    calls: int


_ACTORS = (
    _Actor("support", "service", "gpt-4o-mini", "0.05", 6),
    _Actor("research", "labs", "claude-haiku-4-5", "0.25", 4),
    _Actor("analyst", "labs", "gemini-2.5-flash", "0.10", 3),
)
_RUNAWAY = _Actor("runaway", "labs", "gpt-4o", "0.02", 0)


def demo() -> None:
    """Show Treasurer at work: agents spend, one is refused, the report agrees with the provider's bill."""
    from gateway.settings import load_settings

    folder = Path(tempfile.mkdtemp(prefix="treasurer-demo-"))
    folder.chmod(0o755)  # PostgreSQL may run under another account, which must be able to enter it
    # The demo must not spend from, or write to, a database, Redis or proxy that the operator's settings name.
    own = {"database_url": None, "redis_url": None, "proxy_url": None}
    settings = load_settings(data_dir=folder / "data", port=0, workers=2).model_copy(update=own)
    try:
        run_async(_demo(settings))
    except BaseException:
        if any((folder / "data" / "logs").glob("*")):
            Console(stderr=True).print(f"What happened is in the logs in {folder / 'data' / 'logs'}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


async def _demo(settings: Settings) -> None:
    from gateway.stack.board import Board
    from gateway.stack.data_lock import DataFolderUnusable
    from gateway.stack.litellm import ConfigError
    from gateway.stack.part import PartFailed
    from gateway.stack.plan import Plan, PlanError
    from gateway.stack.postgres import PostgresError
    from gateway.stack.supervisor import running_stack

    console = Console()
    console.print(Rule("Treasurer: starting everything (the first start takes half a minute)"))
    board = Board(console)

    def planned(plan: Plan) -> None:
        if plan.state.provider_url is None or plan.state.real:
            raise PlanError(
                "The demo only spends with the simulated provider: unset the providers' keys (OPENAI_API_KEY …) and try again."
            )
        board.plan(plan)

    try:
        with board:
            manager = running_stack(settings, board.progress, planned)
            state = await manager.__aenter__()
            board.ready(state)
        try:
            await _scenario(settings, state, console)
        finally:
            console.print("Stopping …", style="dim")
            await manager.__aexit__(None, None, None)
    except (ConfigError, DataFolderUnusable, PartFailed, PlanError, PostgresError) as error:
        fail(str(error))


async def _scenario(settings: Settings, state: StackState, console: Console) -> None:
    import asyncpg

    async with asyncpg.create_pool(state.database_url, min_size=1, max_size=4) as pool:
        keys = await _set_up(pool, console)
        console.print(Rule("1. Agents spend"))
        await asyncio.gather(*(_work(state, actor, keys[actor.name], console) for actor in _ACTORS))
        await _digest(settings, console)
        console.print(Rule("2. A worker is killed in the middle of a run, and another one goes on"))
        ok = await _survive(state, pool, console)
        console.print(Rule("3. One agent runs away, with 24 callers at once"))
        await _run_away(state, keys[_RUNAWAY.name], pool, console)
        console.print(Rule("4. Who spent what"))
        ok = await _account(state, pool, console) and ok
    if not ok:
        fail("The demo found a difference that must not be; see above.")
    console.print(Text("Everything agrees. Try it yourself: make up", style="bold green"))


async def _set_up(pool: asyncpg.Pool, console: Console) -> dict[str, str]:
    from llm_service.administration.budgets import NewBudget, create_budget
    from llm_service.administration.inputs import read_input
    from llm_service.administration.keys import NewKey, create_key
    from llm_service.administration.organisations import NewAgent, NewTeam, create_agent, create_team

    for team in sorted({actor.team for actor in (*_ACTORS, _RUNAWAY)}):
        await create_team(pool, read_input(NewTeam, {"name": team}))
    keys: dict[str, str] = {}
    for actor in (*_ACTORS, _RUNAWAY):
        await create_agent(pool, read_input(NewAgent, {"name": actor.name, "team": actor.team}))
        window = "total" if actor is _RUNAWAY else "day"
        budget = {"agent": actor.name, "limit": actor.limit, "window": window}
        await create_budget(pool, read_input(NewBudget, budget))
        keys[actor.name] = (await create_key(pool, read_input(NewKey, {"agent": actor.name}))).secret
        period = "in total" if window == "total" else "a day"
        console.print(f"  agent [bold]{actor.name}[/] of team {actor.team}: ${actor.limit} {period}, for {actor.model}")
    return keys


async def _work(state: StackState, actor: _Actor, key: str, console: Console) -> None:
    """Make some calls as any OpenAI client makes them, half of them streamed."""
    from openai import AsyncOpenAI

    headers = {"x-treasurer-run": f"{actor.name}-demo", "x-treasurer-tags": "demo"}
    async with AsyncOpenAI(
        api_key=key, base_url=f"{state.gateway_url}/v1", max_retries=2, default_headers=headers
    ) as client:
        for number in range(actor.calls):
            prompt = _PROMPTS[number % len(_PROMPTS)]
            if number % 2:
                stream = await client.chat.completions.create(
                    model=actor.model, messages=[{"role": "user", "content": prompt}], max_tokens=200, stream=True
                )
                async for _ in stream:
                    pass
            else:
                await client.chat.completions.create(
                    model=actor.model, messages=[{"role": "user", "content": prompt}], max_tokens=200
                )
    console.print(f"  {actor.name}: {actor.calls} answers from {actor.model}")


async def _digest(settings: Settings, console: Console) -> None:
    """The first agent: a news digest by PydanticAI, through the same governed call, in process."""
    from agents.catalog.digest import Digest
    from agents.executor import AgentExecutor, RunRequest
    from agents.registration import AgentRegistration
    from agents.services import Services
    from agents.services.feeds import FeedReader
    from gateway.composition import open_service

    async with open_service(settings) as runtime:
        services = Services(FeedReader(allow_files=False, allow_private=False))
        agents = AgentRegistration(runtime.pools.calls)
        executor = AgentExecutor(runtime.service, runtime.principals, agents, runtime.run_money, services)
        result = await executor.prepare(
            RunRequest("digest", {"stories": 3}, None, 50_000_000, tags=("demo",))
        ).execute()
    console.print(
        f"  digest: a news digest of {len(cast('Digest', result.output).items)} stories from the sample feeds, "
        f"{result.calls} calls for {format_dollars(result.cost_nano)} of $0.05"
    )


async def _survive(state: StackState, pool: asyncpg.Pool, console: Console) -> bool:
    """A run whose worker is killed with SIGKILL while a model answers: another worker ends it, and nothing is bought twice."""
    from uuid import UUID

    import aiohttp

    from agents.runs.events import Shown
    from agents.runs.in_postgres import PostgresRuns
    from agents.runs.record import Kind, State, StepState
    from agents.runs.watching import Watching
    from gateway.cli.run_story import format_story

    store = PostgresRuns(pool)
    watching = Watching(store)
    mark = "demo-survivor"
    focus = f'[[sim: {{"latency_s": 2, "mark": "{mark}"}}]]'  # the simulated provider takes two seconds for each answer
    headers = {"authorization": f"Bearer {state.admin_key}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def answers_bought() -> int:
            async with session.get(f"{state.provider_url}/_sim/invoice?lines=1") as response:
                return sum(line.get("mark") == mark for line in (await response.json())["lines"])

        body = {"input": {"stories": 3, "focus": focus}, "budget": "0.05", "tags": ["demo"]}
        async with session.post(f"{state.gateway_url}/agents/digest/runs", json=body) as response:
            run_id = UUID((await response.json())["id"])
        console.print(f"  POST /agents/digest/runs answers {response.status}: run {run_id}")
        async for events in watching.events(run_id, Shown(), idle_s=60):
            if any(event.name == "step.done" for event in events):
                break
        await asyncio.sleep(1)  # the model is asked for the digest itself
        name = await _worker_of(state, session, run_id)
        done = sum(step.state is StepState.DONE for step in await store.outline(run_id))
        os.kill(state.pids[name], signal.SIGKILL)
        console.print(
            f"  {name} (process {state.pids[name]}) is killed with SIGKILL after {done} steps, while the model answers."
        )
        with console.status("Another worker takes the run up when the lease of the first one has ended …"):
            run = await watching.until_settled(run_id, 120)
        steps = await store.outline(run_id)
        asked = sum(step.head.kind is Kind.MODEL for step in steps)
        bought = await answers_bought()
    console.print(format_story(run, await store.spent(run_id), {run_id: steps}))
    ok = run.state is State.SUCCEEDED and run.fence == 2 and bought == asked
    billed = f"The provider has billed {bought} answers for {asked} steps that asked a model"
    console.print(
        Text(f"  {billed}{': none twice.' if ok else ': THAT IS WRONG.'}", style="green" if ok else "bold red")
    )
    return ok


async def _worker_of(state: StackState, session: aiohttp.ClientSession, run_id: UUID) -> str:
    """The name of the worker that does a run."""
    for number, url in enumerate(state.worker_urls, 1):
        async with session.get(f"{url}/readyz") as response:
            if str(run_id) in (await response.json())["runs"]:
                return f"worker-{number}"
    raise RuntimeError(f"no worker does run {run_id}")


async def _run_away(state: StackState, key: str, pool: asyncpg.Pool, console: Console) -> None:
    from openai import APIStatusError, AsyncOpenAI

    served = busy = 0
    refusal = code = ""

    async def caller(client: AsyncOpenAI, number: int) -> None:
        nonlocal served, busy, refusal, code
        while True:
            try:
                await client.chat.completions.create(
                    model=_RUNAWAY.model,
                    messages=[{"role": "user", "content": f"{_PROMPTS[number % len(_PROMPTS)]} ({number})"}],
                    max_tokens=40 + number,
                )
                served += 1
            except APIStatusError as error:
                if error.type == "insufficient_quota":
                    code = str(error.code)
                    refusal = str(error.body["message"]) if isinstance(error.body, dict) else error.message  # pyright: ignore[reportUnknownArgumentType]
                    return
                busy += 1
                await asyncio.sleep(0.2)

    async with AsyncOpenAI(api_key=key, base_url=f"{state.gateway_url}/v1", max_retries=0) as client:
        await asyncio.gather(*(caller(client, number) for number in range(_RUNAWAY_CALLERS)))
    row = await pool.fetchrow(
        "SELECT w.posted_nano, b.limit_nano FROM windows w JOIN budgets b ON b.id = w.budget_id WHERE b.name LIKE 'agent runaway%'"
    )
    assert row is not None
    used = format_dollars(row["posted_nano"])
    console.print(f"  {served} calls were served, {busy} had to be repeated, then every caller was refused.")
    console.print(
        f"  It used {used} of {format_dollars(row['limit_nano'])}: {100 * row['posted_nano'] / row['limit_nano']:.2f} %."
    )
    console.print(Panel(Text(refusal), title=f"429 {code}", border_style="red"))


async def _account(state: StackState, pool: asyncpg.Pool, console: Console) -> bool:
    import aiohttp

    from gateway.cli.audit import print_audit
    from gateway.cli.reports import print_report
    from llm_service.treasury.audit.audit import audit
    from llm_service.treasury.reports.query import parse_query
    from llm_service.treasury.reports.reports import cost_report

    for _ in range(100):  # settlements are off the callers' path; wait for the last ones
        if await pool.fetchval("SELECT count(*) FROM holds") == 0:
            break
        await asyncio.sleep(0.1)
    for by in (["team", "agent"], ["model"]):
        made = await cost_report(pool, parse_query({"group_by": by, "order": ["cost"]}, now=datetime.now(UTC)))
        print_report(made, console)
    ledger = int(await pool.fetchval("SELECT coalesce(sum(cost_nano), 0)::bigint FROM ledger"))
    async with aiohttp.ClientSession() as session, session.get(f"{state.provider_url}/_sim/invoice") as response:
        invoice = int((await response.json())["total_nano"])
    over = int(
        await pool.fetchval(
            "SELECT count(*) FROM windows w JOIN budgets b ON b.id = w.budget_id WHERE w.posted_nano > b.limit_nano"
        )
    )
    agrees = ledger == invoice
    console.print(f"  Treasurer's ledger:        {format_dollars(ledger)}")
    console.print(f"  the provider's own bill:   {format_dollars(invoice)}")
    console.print(
        Text(
            "  They agree to the nano-dollar." if agrees else "  THEY DIFFER.", style="green" if agrees else "bold red"
        )
    )
    books = await audit(pool, sweep_grace_s=10)
    print_audit(books, console)
    return agrees and books.ok and over == 0
