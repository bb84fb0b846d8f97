"""`treasurer runs` on a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest
from typer.testing import Result

from agents.approvals.record import ApprovalFilter, Decision, NewApproval, Why
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import (
    Ended,
    HandsOver,
    Kind,
    NewRun,
    Policy,
    Run,
    State,
    StepEnd,
    StepHead,
    StepState,
    Trigger,
    WaitFor,
    Waits,
)
from gateway.cli.common import ExitCode
from llm_service.errors import Conflict, IdempotencyConflict, InvalidRequest, NotFound
from llm_service.money import MoneyError

Treasurer = Callable[..., Result]
DIGEST = bytes(32)
Act = Callable[[Callable[[PostgresRuns], Awaitable[Run]]], Run]


@pytest.fixture
def act(database_url: str) -> Act:
    """Does something with the store of runs that the commands see."""

    def act(action: Callable[[PostgresRuns], Awaitable[Run]]) -> Run:
        async def run() -> Run:
            async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
                return await action(PostgresRuns(pool))

        return asyncio.run(run())

    return act


def new_run(agent: str = "news", **changes: object) -> NewRun:
    run = NewRun(
        uuid4(),
        agent,
        1,
        1,
        {"topic": "ships"},
        {"version": 3},
        "7",
        trigger=Trigger.REQUEST,
        asked_by="agent news/laptop",
    )
    return replace(run, **changes)  # pyright: ignore[reportArgumentType]


async def failed(store: PostgresRuns) -> Run:
    """A run with a child: it paid $0.002, of which $0.0005 bought a lost answer, sent a mail, and failed."""
    run = await store.add(new_run(session="s", tags=("t",), on_behalf_of="ann", budget_nano=50_000_000))
    claim = (await store.claim(uuid4(), 1, ("news",)))[0].claim
    model = StepHead(1, "news.model.request", Kind.MODEL, Policy.KEY, f"{run.id}/1")
    await store.record(claim, model, StepEnd(StepState.DONE, "{}", cost_nano=2_000_000, lost_nano=500_000, took_s=1.25))
    mail = StepHead(2, "news.tool", Kind.TOOL, Policy.ASK, f"{run.id}/2", "send_mail", {"to": "bob\x1b[31m"}, b"d")
    await store.begin(claim, mail)
    child = await store.add(new_run("helper", root_id=run.id, parent_id=run.id, trigger=Trigger.RUN))
    helper = (await store.claim(uuid4(), 1, ("helper",)))[0].claim
    step = StepHead(1, "helper.model.request", Kind.MODEL, Policy.KEY, f"{child.id}/1")
    await store.record(helper, step, StepEnd(StepState.DONE, "{}", cost_nano=1_000_000))
    await store.leave(helper, Ended(State.SUCCEEDED, output="found"))
    error = {"code": "error", "message": "the mail\nserver is away", "step": 2}
    await store.record(claim, mail, StepEnd(StepState.FAILED, error=error))
    return await store.leave(claim, Ended(State.FAILED, error=error, keep_s=60))


def test_the_story_of_a_run(administer: Treasurer, act: Act) -> None:
    run = act(failed)
    page = administer("runs", "show", str(run.id)).stdout
    assert f"run {run.id} (number 1) of agent news: failed" in page
    for line in (
        "asked by agent news/laptop, by request, for ann, in session s, tagged t",
        "version  configuration 3, code 7",
        "cost     $0.002 of $0.05, $0.0005 of it for answers that were lost; $0.003 with the runs below it",
        'input    {"topic": "ships"}',
        "stopped  error: the mail\\nserver is away (at step 2)",
        "1 model news.model.request  1.2 s  $0.002  ($0.0005 lost)",
        "2 tool  send_mail  (ask)  failed",
        "of agent helper: succeeded",
        "1 model helper.model.request",
    ):
        assert line in page, page
    assert "\x1b" not in page
    assert administer("runs", "show", "1").stdout == page
    (story,) = json.loads(administer("runs", "show", "1", "--json").stdout)
    assert (story["tree_cost_nano"], len(story["steps"]), len(story["below"])) == (3_000_000, 2, 1)


async def asked(store: PostgresRuns) -> Run:
    """A run that one worker handed over, and that asked whether it may send a mail; a person has changed to whom."""
    await store.add(new_run())
    await store.leave((await store.claim(uuid4(), 1, ("news",)))[0].claim, HandsOver())
    claim = (await store.claim(uuid4(), 1, ("news",)))[0].claim
    question = NewApproval(
        uuid4(), 1, "send_mail", Why.BEFORE, {"to": "bob"}, DIGEST, {"type": "object"}, ("ops", "team:desk")
    )
    return await store.leave(claim, Waits(WaitFor.APPROVAL, asks=question))


async def approved(store: PostgresRuns) -> Run:
    (question,) = await store.approvals(ApprovalFilter())
    await store.decide(question.id, Decision(True, DIGEST, "ops", arguments={"to": "eve"}, reason="not\nbob"))
    return await store.find(question.run_id)


def test_the_story_says_what_was_asked_of_whom_and_who_had_the_run(administer: Treasurer, act: Act) -> None:
    run = act(asked)
    page = administer("runs", "show", str(run.id)).stdout
    for line in (
        "may wait until",
        "asked    about step 1, send_mail, before its call, at",
        "may be decided by ops, team:desk until",
        "claim 1  worker",
        "handed it over",
        "left it waiting for approval",
    ):
        assert line in page, page
    act(approved)
    page = administer("runs", "show", str(run.id)).stdout
    assert "approved by ops after 0." in page
    assert 'with other arguments: {"to": "eve"}; reason: not\\nbob' in page
    (story,) = json.loads(administer("runs", "show", "1", "--json").stdout)
    assert [(each["claim"], each["became"], each["wait_for"]) for each in story["attempts"]] == [
        (1, "queued", None), (2, "waiting", "approval"),
    ]  # fmt: skip
    (question,) = story["asked"]
    assert (question["state"], question["decided_by"], question["changed"]) == ("approved", "ops", True)
    assert question["may_decide"] == ["ops", "team:desk"]


def test_a_run_is_started_with_what_was_typed(administer: Treasurer) -> None:
    options = (
        "--budget",
        "0.05",
        "--reserve",
        "0.01",
        "--user",
        "ann",
        "--session",
        "s",
        "--tag",
        "t",
        "--priority",
        "3",
        "--key",
        "k",
    )
    (run,) = json.loads(administer("runs", "start", "digest", "--input", '{"stories": 3}', *options, "--json").stdout)
    assert (run["agent"], run["state"], run["trigger"]) == ("digest", "queued", "command")
    assert (run["budget_nano"], run["reserve_nano"], run["priority"]) == (50_000_000, 10_000_000, 3)
    assert (run["user"], run["session"], run["tags"], run["input"]["stories"]) == ("ann", "s", ["t"], 3)
    assert run["asked_by"].startswith("cli ")
    (again,) = json.loads(administer("runs", "start", "digest", "--input", '{"stories": 3}', *options, "--json").stdout)
    assert again["id"] == run["id"]
    assert isinstance(administer("runs", "start", "digest", "--key", "k").exception, IdempotencyConflict)
    assert "of agent digest: queued" in administer("runs", "start", "digest", "--wait", "0.1").stdout


def test_an_empty_key_is_not_a_key(administer: Treasurer) -> None:
    first, second = [
        json.loads(administer("runs", "start", "digest", "--key", " ", "--json").stdout)[0] for _ in range(2)
    ]
    assert first["id"] != second["id"]


def test_an_administrator_gives_a_run_more_than_its_configuration(administer: Treasurer) -> None:
    (run,) = json.loads(administer("runs", "start", "digest", "--budget", "500", "--json").stdout)
    assert run["budget"] == "500.000000000"


def test_a_list_with_its_filters_and_pages(administer: Treasurer, act: Act) -> None:
    run = act(failed)
    (shown,) = json.loads(administer("runs", "list", "--agent", "news", "--json").stdout)
    assert (shown["id"], shown["state"], shown["error"]["code"]) == (str(run.id), "failed", "error")
    page = administer("runs", "list", "--limit", "1")
    assert "helper" in page.stdout
    assert "Add --after 2 " in page.stderr
    assert "helper" not in administer("runs", "list", "--after", "2").stdout
    for arguments in (("--state", "queued"), ("--user", "bob"), ("--session", "x"), ("--agent", "nobody")):
        assert administer("runs", "list", *arguments).stdout == "There are no runs.\n"
    assert administer(
        "runs", "list", "--state", "failed", "--user", "ann", "--session", "s", "--since", "1h"
    ).stdout.count("news")


def test_a_run_is_retried_cancelled_and_forked(administer: Treasurer, act: Act) -> None:
    run = act(failed)
    assert f"Run {run.id} (number 1) of agent news is queued." in administer("runs", "retry", "1").stdout
    assert isinstance(administer("runs", "retry", "1").exception, Conflict)
    assert "is cancelled." in administer("runs", "cancel", str(run.id)).stdout
    (fork,) = json.loads(administer("runs", "fork", "1", "--steps", "1", "--json").stdout)
    assert (fork["forked"], fork["state"]) == ({"run": str(run.id), "steps": 1}, "queued")
    assert fork["asked_by"].startswith("cli ")
    assert f"of run {run.id}, with its first 1 steps" in administer("runs", "show", fork["id"]).stdout
    assert isinstance(administer("runs", "fork", "1", "--steps", "9").exception, Conflict)


def test_a_tail_goes_to_the_end(administer: Treasurer, act: Act) -> None:
    act(failed)
    lines = administer("runs", "tail", "1").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "run.queued",
        "run.running",
        "step.done",
        "step.failed",
        "run.failed",
    ]
    assert lines[2] == "step.done  1 model news.model.request  $0.002"
    events = [json.loads(line) for line in administer("runs", "tail", "1", "--json").stdout.splitlines()]
    assert (events[-1]["event"], events[-1]["error"]["step"]) == ("run.failed", 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("show", "not-an-id"), ExitCode.USAGE),
        (("cancel", ""), ExitCode.USAGE),
        (("list", "--state", "dancing"), ExitCode.USAGE),
        (("list", "--since", "soon"), ExitCode.USAGE),
        (("fork", "1"), ExitCode.USAGE),
        (("start", "digest", "--input", "["), ExitCode.USAGE),
        (("start", "digest", "--input", "[]"), ExitCode.USAGE),
        (("start", "digest", "--user", "x" * 1000), ExitCode.USAGE),
        (("start", "digest", "--budget", "lots"), MoneyError),
        (("start", "digest", "--budget", "0"), InvalidRequest),
        (("start", "digest", "--input", '{"unknown": 1}'), InvalidRequest),
        (("start", "nobody"), NotFound),
        (("show", "77"), NotFound),
        (("show", "99999999999999999999"), ExitCode.USAGE),
        (("retry", str(uuid4())), NotFound),
        (("tail", "77"), NotFound),
    ],
)
def test_mistakes(administer: Treasurer, arguments: tuple[str, ...], expected: ExitCode | type[Exception]) -> None:
    ran = administer("runs", *arguments)
    if isinstance(expected, ExitCode):
        assert (ran.exit_code, ran.stdout) == (expected, "")
    else:
        assert isinstance(ran.exception, expected)
