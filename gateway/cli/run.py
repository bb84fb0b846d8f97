"""`treasurer run`: run an agent once, from here, against the running stack.

What must hold:
`--budget` is enforced in the treasury, for all calls of this run together; it is not advice to the agent.
A run that fails also reports what it has cost.
Each warning of the service is printed in one line, below the output of the run, unless the run's error says the same.
The words of a model or a feed are printed as plain text, so that they cannot colour, clear or otherwise control a terminal.
"""

from __future__ import annotations

import json as json_
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.text import Text

from gateway.cli.common import command_group, fail, run_async
from llm_service.money import MoneyError, format_decimal, format_dollars, parse_dollars

if TYPE_CHECKING:
    from agents.catalog.digest import Digest
    from agents.executor import Run, RunRequest, RunResult
    from agents.tools.feeds import FeedDeps
    from gateway.settings import Settings

commands = command_group("Run an agent once.")


@commands.command("digest")
def digest(
    feed: Annotated[
        list[str] | None, typer.Option(help="an http(s) address or a file, RSS or Atom; repeatable; none: the samples")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="the most that this run may cost, in dollars: 0.05")] = None,
    reserve: Annotated[
        str | None,
        typer.Option(help="how much of the budget is held from the start, so that no one else spends it: 0.05"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="the model to ask; none: the agent's own")] = None,
    stories: Annotated[int, typer.Option(help="how many stories at most", min=1, max=20)] = 5,
    focus: Annotated[str | None, typer.Option(help="what the reader cares about")] = None,
    user: Annotated[str | None, typer.Option(help="whom the run is for, in reports")] = None,
    session: Annotated[str | None, typer.Option(help="the session it belongs to, in reports")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="a tag for reports; repeatable")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Read news feeds and print a digest."""
    from agents.executor import RunRequest
    from gateway.settings import load_settings

    wanted: dict[str, object] = {"stories": stories, "focus": focus}
    if feed:
        wanted["feeds"] = tuple(feed)
    request = RunRequest(
        "digest",
        wanted,
        model,
        *_amounts(budget, reserve),
        user=user,
        session=session,
        tags=tuple(dict.fromkeys(tag or ())),
    )
    with warnings_below() as warnings:
        run_async(_digest(load_settings(), request, warnings, json=json))


async def _digest(settings: Settings, request: RunRequest, warnings: Warnings, *, json: bool) -> None:
    from agents.services.feeds import FeedError

    async with _ready(settings, request, warnings) as run:
        deps, spinner = cast("FeedDeps", run.task.deps), Spinner("dots")
        show = partial(_progress, spinner, run, deps)
        try:
            with Live(get_renderable=show, console=Console(stderr=True), transient=True):
                result = await run.execute()
        except FeedError as error:
            fail(f"{error}.{format_spent(run)}")
    for error in deps.failed.values():
        Console(stderr=True).print(Text.assemble(("left out: ", "yellow"), one_line(str(error))))
    if json:
        print(json_.dumps(as_json(result), indent=2, ensure_ascii=False))
    else:
        console = Console()
        if not console.is_terminal:  # a file or a pipe has no width, so no line may be cut
            console.width = 10_000
        console.print(format_digest(cast("Digest", result.output), result, request.budget_nano))


@asynccontextmanager
async def _ready(settings: Settings, request: RunRequest, warnings: Warnings) -> AsyncIterator[Run]:
    """A run against the running stack. If it fails, the error is printed together with what the run has cost."""
    from pydantic_ai.exceptions import AgentRunError

    from agents.executor import AgentExecutor
    from agents.registration import AgentRegistration
    from agents.services import Services
    from agents.services.feeds import FeedReader
    from gateway.composition import open_service
    from llm_service.errors import (
        BudgetExhausted,
        BudgetTooSmall,
        RunBudgetSpent,
        TreasurerError,
        TreasuryUnavailable,
    )

    os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")
    services = Services(FeedReader(allow_files=True, allow_private=settings.feeds_allow_private))
    async with open_service(settings) as runtime:
        agents = AgentRegistration(runtime.pools.calls)
        executor = AgentExecutor(runtime.service, runtime.principals, agents, runtime.run_money, services)
        run = executor.prepare(request)
        try:
            yield run
        except RunBudgetSpent as error:
            fail(f"{error.message}{format_spent(run)} Give the run more with --budget, or ask a cheaper --model.")
        except (BudgetExhausted, BudgetTooSmall) as error:
            fail(f"{error.message}{format_spent(run)}")
        except TreasurerError as error:
            warnings.are_said = isinstance(error, TreasuryUnavailable) and run.tally.calls == 0
            fail(f"{error.message}{format_spent(run)}")
        except AgentRunError as error:
            fail(f"Agent {request.agent!r} came to no answer: {one_line(str(error))}.{format_spent(run)}")


class Warnings(logging.Handler):
    """Keeps the warnings of a run: each text once, in the order in which they came."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, int] = {}
        self.are_said = False  # True: no call was begun, so the run's error says all that matters

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        cause = record.exc_info[1] if record.exc_info else None
        text = record.getMessage() if cause is None else f"{record.getMessage()} ({type(cause).__name__}: {cause})"
        self._texts.setdefault(text, record.levelno)

    def print(self) -> None:
        """Print the kept warnings to standard error, and errors in any case."""
        from llm_service.telemetry.logs import redact

        for text, level in self._texts.items():
            if level >= logging.ERROR or not self.are_said:
                line = Text.assemble(("warning: ", "yellow"), one_line(redact(text)))
                Console(stderr=True, soft_wrap=True).print(line)


@contextmanager
def warnings_below() -> Iterator[Warnings]:
    """Warnings that are logged inside the block are printed at its end, also when it ends with an error."""
    warnings, root = Warnings(), logging.getLogger()
    root.addHandler(warnings)
    try:
        yield warnings
    finally:
        root.removeHandler(warnings)
        warnings.print()


def _amounts(budget: str | None, reserve: str | None) -> tuple[int | None, int]:
    """What the run may cost, and what is held of that at its start."""
    if budget is None:
        if reserve is not None:
            raise MoneyError("a reserve is held of a budget; give a --budget, too")
        return None, 0
    budget_nano = parse_dollars(budget)
    if budget_nano == 0:
        raise MoneyError("a budget of $0 affords no call; give more, or leave --budget out")
    reserve_nano = 0 if reserve is None else parse_dollars(reserve)
    if reserve_nano > budget_nano:
        raise MoneyError(
            f"a reserve of {format_dollars(reserve_nano)} is more than the budget of {format_dollars(budget_nano)}"
        )
    return budget_nano, reserve_nano


def _progress(spinner: Spinner, run: Run, deps: FeedDeps) -> Spinner:
    doing = "reading the feeds" if len(deps.read) + len(deps.failed) < len(deps.sources) else "writing the digest"
    spinner.update(text=f"{doing} … {format_calls(run.tally.calls)}, {format_dollars(run.tally.cost_nano)}")
    return spinner


def format_spent(run: Run) -> str:
    of = f" of {format_dollars(run.budget_nano)}" if run.budget_nano is not None else ""
    return f" Run {run.id} made {format_calls(run.tally.calls)} for {format_dollars(run.tally.cost_nano)}{of}."


def format_calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"


def as_json(result: RunResult) -> dict[str, object]:
    return {
        "run": result.run_id,
        "output": result.output if isinstance(result.output, str) else result.output.model_dump(mode="json"),
        "cost": format_decimal(result.cost_nano),
        "cost_nano": result.cost_nano,
        "calls": result.calls,
        "input_tokens": result.usage.input_tokens,
        "output_tokens": result.usage.output_tokens,
    }


def format_digest(digest: Digest, result: RunResult, budget_nano: int | None) -> Group:
    lines: list[Text | Padding] = [Text(one_line(digest.title), style="bold"), Text(one_line(digest.summary)), Text()]
    for number, item in enumerate(digest.items, 1):
        source = " · ".join(one_line(part) for part in (item.source, item.url) if part)
        lines.append(Text(f"{number}. {one_line(item.headline)}", style="bold"))
        lines.append(Padding(Text(one_line(item.why_it_matters)), (0, 0, 0, 3), expand=False))
        lines.append(Padding(Text(source, style="dim", overflow="fold"), (0, 0, 1, 3), expand=False))
    of = f" of {format_dollars(budget_nano)}" if budget_nano is not None else ""
    tokens = f"{result.usage.total_tokens:,} tokens"
    cost = f"{format_dollars(result.cost_nano)}{of}"
    lines.append(Text(" · ".join((cost, format_calls(result.calls), tokens, f"run {result.run_id}")), style="green"))
    return Group(*lines)


def one_line(text: str) -> str:
    """The text of a model or a page, without line breaks and without characters that would steer the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)
