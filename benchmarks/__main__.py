"""`make bench`: all measurements in one run, on this machine, each figure beside the one that it is compared with.

The run is bounded in time and in number of calls, and uses only the loopback interface. `make bench ARGS=flags` also
shows what each setting of LiteLLM Proxy gains. It starts the proxy once for each setting, so it takes some minutes.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import admission, assistants, governed, holds
from gateway.settings import load_settings
from gateway.stack.supervisor import running_stack
from llm_service.money import format_dollars


async def main(sections: set[str]) -> None:
    """Run the named sections, or else admission, growth, envelopes, runs, governed, streams, holds, assistants and memory."""
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="treasurer-bench-"))
    folder.chmod(0o755)
    own = {"database_url": None, "redis_url": None, "proxy_url": None}
    settings = load_settings(data_dir=folder / "data", port=0, gateways=1, proxy_workers=1).model_copy(update=own)
    try:
        with console.status("starting the stack …"):
            manager = running_stack(settings)
            state = await manager.__aenter__()
        try:
            if not sections or "admission" in sections:
                with console.status("grouped admission against one transaction each …"):
                    rows = await admission.measure_apart(state.database_url)
                _show_admission(console, rows)
            if not sections or "growth" in sections:
                with console.status("more budgets on a call, more windows in the treasury …"):
                    _show_growth(console, await admission.measure_apart(state.database_url, "benchmarks.growth"))
            if not sections or "envelopes" in sections:
                with console.status("runs that open and close their envelopes, alone and beside other callers …"):
                    (row,) = await admission.measure_apart(state.database_url, "benchmarks.envelopes")
                    _show_envelopes(console, row)
            if not sections or "runs" in sections:
                with console.status("the engine of runs: steps, agents and claims …"):
                    (row,) = await admission.measure_apart(state.database_url, "benchmarks.runs")
                    _show_runs(console, row)
            if not sections or "governed" in sections:
                with console.status("a governed call against the same call straight to LiteLLM Proxy …"):
                    _show_governed(console, await governed.measure(state, settings))
            if not sections or "streams" in sections:
                with console.status("a governed stream against the same stream straight from LiteLLM Proxy …"):
                    _show_streams(console, await governed.streams(state, settings))
            if not sections or "holds" in sections:
                with console.status("what is held for a photograph and for text, beside its cost …"):
                    _show_holds(console, await holds.measure(state, await governed.agent_key(state, "holds")))
            if not sections or "assistants" in sections:
                with console.status("many callers on one budget: what holds take from the others …"):
                    _show_assistants(console, await assistants.measure(state))
            _show_memory(console, governed.memory(state))
            if "flags" in sections:
                await governed.flags(state, settings, console)
        finally:
            await manager.__aexit__(None, None, None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _show_admission(console: Console, rows: list[dict[str, float]]) -> None:
    table = Table(title="Admission on one hot budget and 100 others, fsync on")
    for heading in ("callers", "grouped /s", "p50 ms", "one transaction each /s", "p50 ms", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['callers']:.0f}", f"{row['grouped_per_s']:,.0f}", f"{row['grouped_p50_ms']:.1f}",
            f"{row['alone_per_s']:,.0f}", f"{row['alone_p50_ms']:.1f}", f"{row['grouped_per_s'] / row['alone_per_s']:.1f}",
        )  # fmt: skip
    console.print(table)


def _show_governed(console: Console, rows: list[governed.Lane]) -> None:
    table = Table(title="One LiteLLM Proxy worker, alternating rounds; medians over the rounds")
    for heading in ("callers", "lane", "calls/s", "p50 ms", "p95 ms", "calls/s against straight", "p50 more, ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = f"{row.rate_ratio:.3f}" if row.rate_ratio is not None else ""
        more = f"{row.p50_more_ms:+.2f}" if row.p50_more_ms is not None else ""
        table.add_row(
            str(row.callers), row.name, f"{row.rate:.1f}", f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}", ratio, more
        )
    console.print(table)


def _show_growth(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="Admission, 16 callers: what more budgets and windows cost")
    for heading in ("case", "calls/s", "p50 ms", "calls/s against one budget"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for row in rows:
        table.add_row(row["case"], f"{row['per_s']:,.0f}", f"{row['p50_ms']:.2f}", f"{row['ratio']:.2f}")
    console.print(table)


def _show_envelopes(console: Console, row: dict[str, float]) -> None:
    table = Table(title="Runs from 64 callers, on one hot budget and 100 others")
    for heading in ("a run that", "runs/s", "p50 ms"):
        table.add_column(heading, justify="left" if heading == "a run that" else "right")
    for name, what in (("open_close", "does nothing"), ("with_call", "makes a call"), ("with_child", "has a child")):
        table.add_row(what, f"{row[f'{name}_per_s']:,.0f}", f"{row[f'{name}_p50_ms']:.1f}")
    console.print(table)
    table = Table(
        title="Admissions of 16 other callers while runs start, against the same without; medians over the rounds"
    )
    for heading in ("runs start", "runs/s", "admissions/s", "p99"):
        table.add_column(heading, justify="left" if heading == "runs start" else "right")
    for name, where in (("here", "in this process"), ("elsewhere", "in another one")):
        table.add_row(
            where,
            f"{row[f'{name}_starts_per_s']:.0f}",
            f"{row[f'{name}_ratio']:.2f}",
            f"{row[f'{name}_p99_ratio']:.2f}",
        )
    console.print(table)


def _show_runs(console: Console, row: dict[str, float]) -> None:
    table = Table(title="The engine of runs")
    for heading in ("what", "with it", "beside", "ratio", "aim"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, aim in (("model", 2), ("tool", 3)):
        table.add_row(
            f"a recorded {name} step; a bare insert and commit", f"{row[f'{name}_ms']:.2f} ms", f"{row['bare_ms']:.2f} ms",
            f"{row[f'{name}_ratio']:.2f}", f"≤ {aim}",
        )  # fmt: skip
    table.add_row(
        "an agent of 3 model and 2 tool steps; the same without the engine", f"{row['recorded_cpu_ms']:.1f} ms CPU",
        f"{row['plain_cpu_ms']:.1f} ms CPU", f"{row['cpu_ratio']:.2f}", "≤ 1.8",
    )  # fmt: skip
    for most in (1, 16):
        rate = row[f"claims_of_{most}_per_s"]
        table.add_row(f"claims of {most}, by 8 at once, of 20,000 queued", f"{rate:,.0f}/s", "", "", "≥ 1,000/s")
    table.add_row(
        "one claim; in Postgres alone", f"{row['claim_ms']:.2f} ms", f"{row['claim_inside_ms']:.2f} ms",
        f"{row['claim_ms'] / row['claim_inside_ms']:.2f}", "",
    )  # fmt: skip
    table.add_row("a round trip with nothing to do", f"{row['round_trip_ms']:.2f} ms", "", "", "")
    console.print(table)


def _show_streams(console: Console, rows: list[governed.StreamLane]) -> None:
    table = Table(title="Streams of 200 one-token events, one LiteLLM Proxy worker; medians over alternating rounds")
    for heading in (
        "callers",
        "lane",
        "first token ms",
        "tokens/s",
        "first token more, ms",
        "tokens/s against straight",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        more = f"{row.first_more_ms:+.2f}" if row.first_more_ms is not None else ""
        ratio = f"{row.rate_ratio:.3f}" if row.rate_ratio is not None else ""
        table.add_row(str(row.callers), row.name, f"{row.first_ms:.1f}", f"{row.tokens_per_s:.0f}", more, ratio)
    console.print(table)


def _show_holds(console: Console, rows: list[holds.Row]) -> None:
    table = Table(
        title=f"Hold ÷ cost, in $ a thousand calls: a photograph (aim ≤ {holds.MOST_PHOTO}), a short text (aim ≤ {holds.MOST_TEXT})"
    )
    for heading in ("model", "photo held", "costs", "ratio", "text held", "costs", "ratio"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=heading == "model")
    for row in rows:
        photo = ("", "", "")
        if row.photo_held is not None and row.photo_cost is not None:
            photo = _ratio(row.photo_held, row.photo_cost, holds.MOST_PHOTO)
        table.add_row(row.model, *photo, *_ratio(row.text_held, row.text_cost, holds.MOST_TEXT))
    console.print(table)


def _ratio(held_nano: int, cost_nano: int, most: int) -> tuple[str, str, str]:
    ratio = held_nano / cost_nano
    return f"{held_nano / 1e6:.3f}", f"{cost_nano / 1e6:.3f}", f"{ratio:.2f}" + ("" if ratio <= most else " !")


def _show_assistants(console: Console, rows: list[assistants.Result]) -> None:
    table = Table(title="Many callers on one budget; a refused call is not repeated")
    table.add_column("callers", no_wrap=True)
    for heading in ("served", "cut short", "refused", "held", "cost", "held ÷ cost", "s"):
        table.add_column(heading, justify="left" if heading == "refused" else "right")
    for row in rows:
        ratio = f"{row.held_over_cost:.1f}" if row.held_over_cost is not None else ""
        refused = ", ".join(f"{count} {code}" for code, count in row.refused.most_common())
        table.add_row(
            row.name, str(row.served), str(row.cut_short), refused, format_dollars(row.held_nano, places=4),
            format_dollars(row.cost_nano, places=4), ratio, f"{row.seconds:.0f}",
        )  # fmt: skip
    console.print(table)


def _show_memory(console: Console, rows: dict[str, float]) -> None:
    table = Table(title="Memory (proportional set size, with children)")
    table.add_column("part")
    table.add_column("MiB", justify="right")
    for name, mib in rows.items():
        table.add_row(name, f"{mib:.0f}")
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main(set(sys.argv[1:])))
