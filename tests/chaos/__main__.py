"""`make chaos`: one disturbance after the other, in a seeded order, on a stack of its own; about five minutes.

Exit code 1 if anything that must hold does not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from tests.chaos.disturbances import DISTURBANCES, Disturbance, Skip
from tests.chaos.field import HEAD, Field, Outcome, Stack


async def disturb(field: Field, disturbance: Disturbance) -> Outcome:
    """Do it under load, and judge."""
    field.errors.clear()
    try:
        if disturbance.loaded:
            async with field.load():
                await asyncio.sleep(1)
                await disturbance.run(field)
        else:
            await disturbance.run(field)
    except Skip as reason:
        return Outcome(disturbance.name, skipped=str(reason))
    failed = field.calls["failed"]
    why = field.errors.most_common(3)
    outcome = await field.judge(disturbance.name)
    if disturbance.spotless and failed:
        outcome.faults.append(f"{failed} calls failed: {why}")
    return outcome


async def run(data_dir: Path, chosen: Sequence[Disturbance], seed: int) -> list[Outcome]:
    """All of them, on one stack."""
    stack = Stack(data_dir)
    stack.start()
    outcomes: list[Outcome] = []
    try:
        state = await stack.ready()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
            field = Field(stack, state, http, seed)
            await field.agents()
            before = field.sizes()
            print(HEAD, flush=True)
            for disturbance in chosen:
                outcomes.append(await disturb(field, disturbance))
                print(outcomes[-1].row(), flush=True)
            print(f"memory in MiB and logs in MiB: before {before}, after {field.sizes()}", flush=True)
    finally:
        await asyncio.to_thread(stack.stop)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=…", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the order and of the calls")
    parser.add_argument("--only", action="append", help="a disturbance whose name has this in it; may be repeated")
    arguments = parser.parse_args()
    chosen = [each for each in DISTURBANCES if not arguments.only or any(part in each.name for part in arguments.only)]
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
        print(f"{len(wrong)} of {len(outcomes)} disturbances left something wrong; the logs are in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(outcomes)} disturbances; the books are right after each.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
