"""What a worker counts of its runs, and how often it says that Postgres is away."""

from __future__ import annotations

import logging
from dataclasses import replace
from uuid import uuid4

import pytest

from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Kind, Policy, StepHead
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.tracing import RunTraces
from agents.runs.worker import Outage, Worker
from llm_service.errors import TreasuryUnavailable
from llm_service.telemetry import Telemetry
from tests.agents.runs.scripted import Script


async def figures(telemetry: Telemetry) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in (await telemetry.render()).decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("treasurer_"): float(value) for name, value in lines}


async def test_runs_steps_lost_answers_and_takeovers_are_counted(
    executor: RunExecutor, store: InMemoryRuns, starter: RunStarter, script: Script
) -> None:
    telemetry = Telemetry.create()
    traces = store._traces = RunTraces(telemetry)
    run = await starter.start(StartRequest("demo"))
    (claimed,) = await store.claim(uuid4(), 1, ["demo"], lease_s=1)  # by a worker that dies
    await store.begin(claimed.claim, StepHead(1, "demo__model.request", Kind.MODEL, Policy.KEY, f"{run.id}/1"))
    store.pass_time(2)
    await store.recover()
    script.lost.add(f"{run.id}/1")  # so its answer is bought again
    await Worker(replace(executor, traces=traces), slots=7).work_off()

    found = await figures(telemetry)
    assert found['runs_total{agent="demo",state="succeeded"}'] == 1
    assert found['run_steps_total{kind="model",state="done"}'] == 3
    assert found['run_steps_total{kind="tool",state="done"}'] == 2
    assert found["run_lost_answers_total"] == 1
    assert found["run_takeovers_total"] == 1
    assert (found["worker_runs"], found["worker_slots"]) == (0, 7)


def test_an_outage_is_said_once_then_once_a_minute_and_once_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    moments = [0.0]
    outage = Outage(clock=lambda: moments[-1])
    outage.succeeded()
    with caplog.at_level(logging.WARNING):
        for second in range(150):  # two things are tried each second
            moments.append(float(second))
            outage.failed("no run is claimed", TreasuryUnavailable("Postgres is away."))
            outage.failed("lost runs are not looked for", TreasuryUnavailable("Postgres is away."))
        outage.succeeded()
        outage.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "no run is claimed: Postgres is away.",
        "no run is claimed for 60 s now: Postgres is away.",
        "no run is claimed for 120 s now: Postgres is away.",
        "runs are claimed again, after 149 s",
    ]
