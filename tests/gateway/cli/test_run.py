"""`treasurer run digest` on a fake service: its output and its exit code."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic_ai.models import override_allow_model_requests
from typer.testing import CliRunner, Result

import agents.registration
from gateway.cli import build
from gateway.stack.ports import free_port
from llm_service.errors import BudgetExhausted, BudgetTooSmall, RunBudgetSpent, TreasurerError, TreasuryUnavailable
from llm_service.runs.money import RunMoney
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import Answer, CallContext, Principal

ITEM = {
    "headline": "Prices fall\x1b[2J",
    "source": "The Ledger",
    "url": "https://ledger.example/2026/token-prices",
    "why_it_matters": "Small models [bold]lead[/bold].",
}


@dataclass
class Service:
    refuse: TreasurerError | None = None
    warning: str | None = None
    calls: list[CallContext] = field(default_factory=list[CallContext])
    treasury: InMemoryTreasury = field(default_factory=lambda: InMemoryTreasury({}))

    async def budgets(self) -> list[tuple[int, int, str]]:
        """The budget, reserve and state of the runs that had an envelope."""
        runs = [await self.treasury.envelopes.find(call.envelope) for call in self.calls if call.envelope is not None]
        return list(
            dict.fromkeys((run.budget_nano, run.reserve_nano, str(run.state)) for run in runs if run is not None)
        )

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        self.calls.append(context)
        if self.warning is not None:
            logging.getLogger("llm_service").warning("%s", self.warning)
        if self.refuse is not None and len(self.calls) > 1:
            raise self.refuse
        tools = json.loads(body)["tools"]
        feeds = tools[0]["function"]["parameters"]["properties"]["feed"]["enum"]
        digest = {"title": "Today", "summary": "Quiet.", "items": [ITEM]}
        reads = (
            [("read_feed", {"feed": feed}) for feed in feeds] if len(self.calls) == 1 else [("final_result", digest)]
        )
        tool_calls = [
            {"id": str(number), "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for number, (name, arguments) in enumerate(reads)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": tool_calls}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020},
        }
        return Answer(200, json.dumps(answer).encode(), {}, uuid4(), 162_000)


class Agents:
    """In place of the rows of agents in Postgres."""

    def __init__(self, pool: object) -> None:
        pass

    async def register(self, agent: str) -> None:
        pass


class Principals:
    async def by_agent(self, name: str) -> Principal:
        return Principal(1, "default", 1, "default", 7, name, None, None, epoch=1)

    async def renew(self, principal: Principal) -> Principal:
        return principal


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()

    @asynccontextmanager
    async def open_service(settings: object) -> AsyncIterator[SimpleNamespace]:
        money = RunMoney(service.treasury.envelopes, Principals(), freed=service.treasury.freed)
        yield SimpleNamespace(
            service=service, principals=Principals(), pools=SimpleNamespace(calls=None), run_money=money
        )

    composition = ModuleType("gateway.composition")
    composition.open_service = open_service  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "gateway.composition", composition)
    monkeypatch.setattr(agents.registration, "AgentRegistration", Agents)
    with override_allow_model_requests(True):
        yield service


def treasurer(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(build(), ["run", "digest", *arguments])


def test_a_digest_is_printed_with_what_it_cost(service: Service) -> None:
    result = treasurer("--budget", "0.05", "--tag", "a", "--tag", "b", "--session", "s")
    assert result.exit_code == 0, result.output
    assert "1. Prices fall" in result.stdout
    assert "Small models [bold]lead[/bold]." in result.stdout
    assert "\x1b[2J" not in result.output
    run = service.calls[0].run
    assert f"$0.000324 of $0.05 · 2 calls · 2,040 tokens · run {run}" in result.stdout
    assert run is not None
    assert service.calls == [CallContext(run=run, session="s", tags=("a", "b"), envelope=UUID(run))] * 2
    assert asyncio.run(service.budgets()) == [(50_000_000, 0, "closed")]


def test_a_part_of_the_budget_is_held_from_the_start(service: Service) -> None:
    assert treasurer("--budget", "0.05", "--reserve", "0.01").exit_code == 0
    assert asyncio.run(service.budgets()) == [(50_000_000, 10_000_000, "closed")]
    for wrong, says in (
        (("--reserve", "0.01"), "give a --budget, too"),
        (("--budget", "1", "--reserve", "2"), "more than"),
    ):
        result = treasurer(*wrong)
        assert result.exit_code != 0
        assert says in str(result.exception)


def test_json_is_for_programs(service: Service) -> None:
    shown = json.loads(treasurer("--json").stdout)
    assert shown["cost"] == "0.000324000"
    assert (shown["cost_nano"], shown["calls"], shown["run"]) == (324_000, 2, service.calls[0].run)
    assert shown["output"]["items"][0]["url"] == ITEM["url"]
    assert asyncio.run(service.budgets()) == []


@pytest.mark.parametrize("refusal", [BudgetExhausted, BudgetTooSmall, RunBudgetSpent])
def test_a_budget_at_its_end_is_said_with_what_was_spent(service: Service, refusal: type[TreasurerError]) -> None:
    service.refuse = refusal("Run 1 has nothing left.")
    result = treasurer("--budget", "0.0002")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Run 1 has nothing left." in result.stderr
    assert "made 1 call for $0.000162 of $0.0002." in result.stderr
    assert ("Give the run more with --budget" in result.stderr) == (refusal is RunBudgetSpent)


def test_a_feed_that_cannot_be_read_is_left_out_and_said(service: Service) -> None:
    result = treasurer("--feed", "/nowhere/feed.xml", "--feed", "sample:news.xml")
    assert result.exit_code == 0
    assert "left out: feed /nowhere/feed.xml cannot be read: No such file or directory" in result.stderr

    service.calls.clear()
    result = treasurer("--feed", "/nowhere/feed.xml")
    assert result.exit_code == 1
    assert "made 1 call for $0.000162" in result.stderr


def test_a_warning_is_printed_once_below_the_digest_and_cannot_control_the_terminal(service: Service) -> None:
    service.warning = "Redis is away (\x1b[2Jrefused, password=hunter2)"
    result = treasurer()
    assert (result.exit_code, len(service.calls)) == (0, 2)
    assert result.stderr.splitlines()[-1].startswith("warning: Redis is away ( [2Jrefused, password=")
    assert result.stderr.count("Redis is away") == 1
    assert "hunter2" not in result.stderr
    assert "Redis" not in result.stdout


def test_without_the_treasury_the_error_stands_alone() -> None:
    environ = {
        "TREASURER_DATABASE_URL": f"postgresql://u:p@127.0.0.1:{free_port()}/d",
        "TREASURER_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "TREASURER_PROXY_URL": f"http://127.0.0.1:{free_port()}",
        "TREASURER_GRANT_SECRET": "g" * 32,
    }
    with override_allow_model_requests(True):
        result = CliRunner(env={"COLUMNS": "200", **environ}).invoke(build(), ["run", "digest", "--budget", "1"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: The treasury's database is away")
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_what_goes_wrong_after_a_call_is_printed_below_the_error(service: Service) -> None:
    service.warning = "closing with 1 settlement not written"
    service.refuse = TreasuryUnavailable("The treasury's database is away.", retry_after=1)
    result = treasurer()
    assert result.exit_code == 1
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["error", "warning"]


@pytest.mark.parametrize("budget", ["0", "-1", "much", "0.0000000001"])
def test_a_wrong_amount_spends_nothing(service: Service, budget: str) -> None:
    result = treasurer("--budget", budget)
    assert result.exit_code != 0
    assert service.calls == []
