"""The first agent and GovernedModel on the real stack: a run reports the same cost as the ledger, to the
nano-dollar."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models import override_allow_model_requests
from pydantic_ai.settings import ModelSettings

from agents.registration import AgentRegistration
from gateway.composition import ServiceRuntime, open_service
from gateway.settings import load_settings
from gateway.stack.state import StackState
from llm_service.administration.organisations import pause, resume
from llm_service.errors import BudgetBusy, Paused, RunBudgetSpent, UnknownModel
from llm_service.model import GovernedModel
from llm_service.money import format_decimal
from llm_service.types import CallContext, Principal, Scope
from tests.integration.caller import PATIENCE_S

MODELS = ["gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash", "local/qwen3-8b"]


@pytest.fixture
async def runtime(stack: StackState) -> AsyncIterator[ServiceRuntime]:
    """The service in this process, opened as `treasurer run` opens it."""
    with override_allow_model_requests(True):
        async with open_service(load_settings(data_dir=stack.data_dir)) as runtime:
            await AgentRegistration(runtime.pools.calls).register("digest")
            yield runtime


def governed(
    runtime: ServiceRuntime, run: str, model: str = "gpt-4o-mini", envelope: UUID | None = None
) -> GovernedModel:
    async def principal() -> Principal:
        return await runtime.principals.by_agent("digest")

    return GovernedModel(
        model, service=runtime.service, principal=principal, context=CallContext(run=run, envelope=envelope)
    )


async def ledger_nano(runtime: ServiceRuntime, run: str, calls: int) -> int:
    """The ledger's cost of a run, when all of its calls are settled (which happens after the caller has its answer)."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        row = await runtime.pools.calls.fetchrow(
            "SELECT count(*) AS calls, sum(cost_nano)::bigint AS cost_nano FROM ledger"
            " WHERE run_id = $1 AND state <> 'adjusted'",
            run,
        )
        assert row is not None
        if row["calls"] >= calls:
            assert row["calls"] == calls
            return row["cost_nano"]
        assert time.monotonic() < deadline, f"run {run} has fewer than {calls} entries in the ledger"
        await asyncio.sleep(0.05)


def treasurer(stack: StackState, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TREASURER_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", "run", "digest", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=environ | {"TREASURER_DATA_DIR": str(stack.data_dir)},
        cwd=Path(__file__).parent.parent.parent,
        check=False,
    )


async def test_the_command_runs_within_its_budget_and_says_what_the_ledger_says(
    stack: StackState, runtime: ServiceRuntime
) -> None:
    finished = await asyncio.to_thread(
        treasurer, stack, "--budget", "0.05", "--json", "--tag", "morning", "--session", "s1", "--user", "ana"
    )
    assert finished.returncode == 0, finished.stderr
    shown = json.loads(finished.stdout)
    assert set(shown["output"]) == {"title", "summary", "items"}
    assert shown["cost_nano"] == await ledger_nano(runtime, shown["run"], shown["calls"]) > 0
    assert shown["cost"] == format_decimal(shown["cost_nano"])
    rows = await runtime.pools.calls.fetch(
        "SELECT tags, session_id, user_id FROM ledger WHERE run_id = $1", shown["run"]
    )
    assert {(tuple(row["tags"]), row["session_id"], row["user_id"]) for row in rows} == {(("morning",), "s1", "ana")}
    run = await runtime.treasury.envelopes.find(UUID(shown["run"]))
    assert run is not None
    assert (run.budget_nano, run.spent_nano, run.state) == (50_000_000, shown["cost_nano"], "closed")


async def test_a_budget_that_is_too_small_stops_the_run_and_is_not_passed(
    stack: StackState, runtime: ServiceRuntime
) -> None:
    finished = await asyncio.to_thread(treasurer, stack, "--budget", "0.0004")
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert "less left of its budget than this call needs" in finished.stderr
    assert "Give the run more with --budget" in finished.stderr
    spent = await runtime.pools.calls.fetch(
        "SELECT spent_nano + drawn_nano AS nano FROM envelopes WHERE budget_nano = 400000"
    )
    assert len(spent) == 1
    assert spent[0]["nano"] <= 400_000


class City(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize("name", MODELS)
async def test_every_kind_of_request_is_governed_on_every_provider(runtime: ServiceRuntime, name: str) -> None:
    run = str(uuid4())
    model = governed(runtime, run, name)
    settings = ModelSettings(max_tokens=200)
    costs: list[Decimal | None] = []
    async with Agent(model).run_stream("Tell me of the sea.", model_settings=settings) as streamed:
        assert await streamed.get_output()
    costs.append(streamed.usage.cost)
    by_tool = await Agent(model, output_type=City).run("Which city?", model_settings=settings)
    costs.append(by_tool.usage.cost)
    native = await Agent(model, output_type=NativeOutput(City)).run("Which city?", model_settings=settings)
    costs.append(native.usage.cost)

    assert model.tally.calls == 3
    assert model.tally.cost_nano == await ledger_nano(runtime, run, 3)
    assert sum(cost or 0 for cost in costs) == Decimal(format_decimal(model.tally.cost_nano))


async def test_a_stream_that_is_left_early_is_closed_and_paid_for(runtime: ServiceRuntime) -> None:
    run = str(uuid4())
    model = governed(runtime, run)
    async with Agent(model).run_stream("Tell me of the sea.", model_settings=ModelSettings(max_tokens=900)) as streamed:
        async for _ in streamed.stream_text(debounce_by=None):
            break
    assert await ledger_nano(runtime, run, 1) > 0
    assert streamed.usage.cost == Decimal(format_decimal(model.tally.cost_nano)) > 0
    assert await runtime.pools.calls.fetchval("SELECT error_code FROM ledger WHERE run_id = $1", run) == "client_left"


async def test_i9_many_agents_at_once_on_one_run_never_pass_its_budget(runtime: ServiceRuntime) -> None:
    envelope, limit_nano = uuid4(), 1_000_000
    run = str(envelope)
    model = governed(runtime, run, envelope=envelope)
    await runtime.run_money.open(envelope, "digest", CallContext(run=run), limit_nano, limit_nano // 2, 60)

    async def ask(number: int) -> str:
        try:
            await Agent(model).run(f"Story {number} 故事 🚀", model_settings=ModelSettings(max_tokens=300))
        except (RunBudgetSpent, BudgetBusy) as refusal:
            return type(refusal).__name__
        return "answered"

    said = await asyncio.gather(*(ask(number) for number in range(60)))
    answered = said.count("answered")
    assert answered > 0
    assert set(said) - {"answered"}
    assert model.tally.calls == answered
    assert await ledger_nano(runtime, run, answered) == model.tally.cost_nano <= limit_nano
    await runtime.treasury.drain()
    closed = await runtime.treasury.envelopes.close(envelope)
    assert (closed.spent_nano, closed.drawn_nano, closed.free_nano) == (model.tally.cost_nano, 0, 0)


async def test_refusals_reach_the_agent_by_type(runtime: ServiceRuntime) -> None:
    with pytest.raises(UnknownModel):
        await Agent(governed(runtime, "r", "nope")).run("Hello")
    await pause(runtime.pools.calls, Scope.AGENT, "digest")
    try:
        with pytest.raises(Paused):
            await Agent(governed(runtime, "r")).run("Hello")
    finally:
        await resume(runtime.pools.calls, Scope.AGENT, "digest")
