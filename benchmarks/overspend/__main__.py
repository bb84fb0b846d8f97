"""`python -m benchmarks.overspend --adapter treasurer|litellm`: start a gateway, play the scenarios, print, stop.

The exit code is 1 if Treasurer passes a limit anywhere (for other gateways this is only reported), and 2 if the
gateway, or one of its scenarios, cannot be run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import orjson
from rich.console import Console

from benchmarks.overspend.adapter import Adapter
from benchmarks.overspend.adapters.ferrogw import FerroGateway
from benchmarks.overspend.adapters.litellm import LiteLLM, LiteLLMAtItsBest
from benchmarks.overspend.adapters.mlflow import MLflowGateway
from benchmarks.overspend.adapters.nothing import Nothing
from benchmarks.overspend.adapters.treasurer import Treasurer
from benchmarks.overspend.judge import Verdict
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import Provider, start_provider
from benchmarks.overspend.report import document, dollars, markdown, table
from benchmarks.overspend.runner import play_all
from benchmarks.overspend.scenarios import SCENARIOS, Scenario
from gateway.stack.simulated_provider.prices import PriceList

ADAPTERS: dict[str, Callable[[Processes], Adapter]] = {
    "treasurer": Treasurer,
    "litellm": LiteLLM,
    "litellm-best": LiteLLMAtItsBest,
    "ferrogw": FerroGateway,
    "mlflow": MLflowGateway,
    "nothing": Nothing,
}
REPLICAS = 2


async def run(
    name: str, scenarios: Sequence[Scenario], seed: int, console: Console
) -> tuple[list[Verdict], dict[str, str]]:
    """Start the provider and the gateway, play the scenarios, and end both. Returns the verdicts, and what was tested."""
    began = time.monotonic()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    folder = Path(tempfile.mkdtemp(prefix="overspend-"))
    folder.chmod(0o755)  # PostgreSQL may run under another account, which must be able to enter it
    try:
        async with Processes() as processes, aiohttp.ClientSession() as http:
            adapter = ADAPTERS[name](processes)
            url = await start_provider(processes, folder, seed)
            provider = Provider(url, PriceList(), http)
            versions = adapter.versions()  # read now, because somebody may edit the code while the test runs
            with console.status(f"starting {adapter.name} …") as status:
                try:
                    await adapter.start(url, folder, REPLICAS)
                    verdicts = await play_all(
                        scenarios,
                        adapter,
                        provider,
                        seed,
                        lambda scenario: status.update(f"{adapter.name}: {scenario.title} …"),
                        lambda verdict, seconds: console.print(_line(verdict, seconds), highlight=False),
                    )
                finally:
                    status.update(f"stopping {adapter.name} …")
                    await adapter.stop()
            about = {
                "gateway": adapter.name,
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                **versions,
                "seed": str(seed),
                "CPUs": str(os.cpu_count()),
                "took": f"{time.monotonic() - began:.0f} s",
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    order = [scenario.name for scenario in SCENARIOS]
    return sorted(verdicts, key=lambda verdict: order.index(verdict.name)), about


def _line(verdict: Verdict, seconds: float) -> str:
    within = f"over its limit by {dollars(verdict.overshoot_nano)}" if verdict.overshoot_nano else "within its limit"
    return f"  {verdict.title:<36} {seconds:5.1f} s  {verdict.skipped or within}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="overspend", description="Does a gateway keep its budgets when things go wrong?"
    )
    parser.add_argument("--adapter", choices=sorted(ADAPTERS), default="treasurer")
    parser.add_argument("--scenario", action="append", choices=[scenario.name for scenario in SCENARIOS])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure, for programs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table, for a document")
    parser.add_argument("--list", action="store_true", help="what there is, and what each shows")
    given = parser.parse_args()
    if given.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name}\n    {scenario.shows}")
        return 0
    chosen = [scenario for scenario in SCENARIOS if given.scenario is None or scenario.name in given.scenario]
    console = Console()
    try:
        verdicts, about = asyncio.run(run(given.adapter, chosen, given.seed, console))
    except asyncio.CancelledError:
        console.print("Stopped.")
        return 130
    except (OSError, RuntimeError) as error:
        print(f"the overspend test cannot be run: {error}", file=sys.stderr)
        return 2
    name = about["gateway"]
    Console(width=max(console.width, 190)).print(table(name, verdicts))
    if given.json is not None:
        given.json.write_bytes(orjson.dumps(document(name, verdicts, about), option=orjson.OPT_INDENT_2))
    if given.markdown is not None:
        given.markdown.write_text(markdown(name, verdicts, about), encoding="utf-8")
    if given.adapter == "treasurer" and any(verdict.overshoot_nano for verdict in verdicts):
        return 1
    return 2 if any(verdict.broke for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
