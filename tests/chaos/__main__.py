"""`make chaos`: plays one disturbance after the other, in a seeded order, on a separate stack; about twelve minutes.

The exit code is 1 if anything that must hold does not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import aiohttp

from tests.chaos.disturbances import Disturbance, named, stopped
from tests.chaos.field import Field, Skip
from tests.chaos.judge import HEAD, Judge, Outcome
from tests.chaos.stack import Stack
from tests.faketime import MovableClock, find_library, remove_leftovers


async def disturb(field: Field, judge: Judge, disturbance: Disturbance) -> Outcome:
    """Run one disturbance under load until everything is healthy again; then judge."""
    outcome = Outcome(disturbance.name)
    began = time.monotonic()
    try:
        await field.a_little_more()
        async with field.load() if disturbance.loaded else nullcontext():
            await asyncio.sleep(0.7)
            await disturbance.run(field)
            outcome.healthy_s = await field.healthy()
    except Skip as reason:
        outcome.skipped = str(reason)
        return outcome
    if outcome.healthy_s > disturbance.within_s:
        outcome.faults.append(f"it was healthy after {outcome.healthy_s:.0f} s only")
    field.jumped_s += disturbance.jumped_s
    outage_s = disturbance.jumped_s + (time.monotonic() - began if disturbance.unswept else 0)
    await judge.judge(outcome, fails=disturbance.fails, outage_s=outage_s)
    outcome.took_s = time.monotonic() - began
    return outcome


async def enclose(field: Field, judge: Judge, long: Disturbance, others: list[Disturbance]) -> AsyncIterator[Outcome]:
    """Run a disturbance that lasts for some time: first alone, then together with others that do not affect the same
    part."""
    until = time.monotonic() + long.lasts_s
    async with stopped(field, long.stops):
        yield await disturb(field, judge, long)
        while time.monotonic() < until and (other := next((each for each in others if not each.alone), None)):
            others.remove(other)
            yield await disturb(field, judge, replace(other, name=f"  {other.name}"))
        async with field.load():
            await asyncio.sleep(max(0, until - time.monotonic()))
    yield await disturb(field, judge, replace(long, name=f"  … {long.stops} goes on"))


async def disturbed(field: Field, judge: Judge, chosen: Sequence[Disturbance]) -> AsyncIterator[Outcome]:
    waiting = sorted(chosen, key=lambda each: not each.lasts_s)  # the disturbances that last for some time come first
    while waiting:
        disturbance = waiting.pop(0)
        if disturbance.lasts_s:
            async for outcome in enclose(field, judge, disturbance, waiting):
                yield outcome
        else:
            yield await disturb(field, judge, disturbance)
    yield await last_judgement(field, judge)


async def last_judgement(field: Field, judge: Judge) -> Outcome:
    """Use every idempotency key of the run once more; then compare the whole invoice with the whole ledger."""
    await field.ask_again()
    return await judge.judge_all(Outcome("every key again, and all in all"))


async def run(data_dir: Path, chosen: Sequence[Disturbance], seed: int) -> list[Outcome]:
    """Run all chosen disturbances on one stack."""
    stack = Stack(data_dir, MovableClock(data_dir.with_suffix(".clock")) if find_library() else None)
    stack.start()
    outcomes: list[Outcome] = []
    try:
        state = await stack.ready()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
            field = Field(stack, state, http, seed)
            await field.agents()
            async with field.load():  # at first memory grows, so load the stack before memory is measured
                await asyncio.sleep(2)
            judge = Judge(field)
            print(HEAD, flush=True)
            async for outcome in disturbed(field, judge, chosen):
                outcomes.append(outcome)
                print(outcome.row(), flush=True)
            print(f"memory in MiB: before {judge.memory}, after {field.memory()}", flush=True)
    finally:
        await asyncio.to_thread(stack.stop)
        remove_leftovers()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=…", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the order and of the calls")
    parser.add_argument("--only", action="append", help="a disturbance whose name has this in it; may be repeated")
    arguments = parser.parse_args()
    try:
        chosen = named(arguments.only or ())
    except ValueError as unknown:
        parser.error(str(unknown))
    random.Random(arguments.seed).shuffle(chosen)
    folder = Path(tempfile.mkdtemp(prefix="treasurer-chaos-"))
    folder.chmod(0o755)
    only = "".join(f" --only '{part}'" for part in arguments.only or ())
    print(f'seed {arguments.seed}; again: make chaos ARGS="--seed {arguments.seed}{only}"', flush=True)
    try:
        outcomes = asyncio.run(run(folder / "stack", chosen, arguments.seed))
    except BaseException:
        print(f"the logs are in {folder}", file=sys.stderr)
        raise
    wrong = [outcome for outcome in outcomes if outcome.faults]
    if wrong:
        print(f"{len(wrong)} of {len(outcomes)} judgements found something wrong; the logs are in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(outcomes)} times judged; the books are right after each.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
