"""Several processes share one folder. Each of them exports the sum, including the counts of dead processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[3]

_COUNT = """
import sys
from llm_service.telemetry import Telemetry
telemetry = Telemetry.create()
size = int(sys.argv[1])
telemetry.metrics.spend.labels("acme", "research", "digest", "gpt", "openai").inc(size)
telemetry.group("admit", size, 0.01)
telemetry.degraded("redis", True)
telemetry.audited(size)
telemetry.breaker("model:m", "open" if size == 3 else "closed", size == 3)
print("ready", flush=True)
sys.stdin.readline()
"""

_RENDER = """
import asyncio, os, shutil, sys
from llm_service.telemetry import Telemetry
from llm_service.telemetry.gauges import DatabaseGauges
from llm_service.telemetry.metrics import Metrics

class Pool:
    async def fetch(self, query, *args, timeout=None):
        return [{"holds": 4, "nano": 40, "overdue": 0}] if "FROM holds" in query else []

telemetry = Telemetry(Metrics(), DatabaseGauges(Pool()), None)
shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"]) if sys.argv[1:] == ["cleared"] else None
print(asyncio.run(telemetry.render()).decode())
"""


def _environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(_ROOT)}


def _start(folder: Path, size: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _COUNT, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environ(folder),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _render(folder: Path, *arguments: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", _RENDER, *arguments], capture_output=True, text=True, check=True, env=_environ(folder)
    )
    lines = [
        (line.rsplit(" ", 1)[0], line.rsplit(" ", 1)[1])
        for line in done.stdout.splitlines()
        if line and not line.startswith("#")
    ]
    assert len({name for name, _ in lines}) == len(lines), "a series is exported twice"
    return dict(lines)


def test_processes_are_summed_and_the_dead_keep_their_counts(tmp_path: Path):
    folder = tmp_path / "made" / "when missing"
    first, second = _start(folder, 3), _start(folder, 40)
    try:
        spend = (
            'treasurer_spend_nano_dollars_total{agent="digest",model="gpt",organisation="acme",'
            'provider="openai",team="research"}'
        )
        seen = _render(folder)
        assert float(seen[spend]) == 43
        assert float(seen['treasurer_group_size_count{kind="admit"}']) == 2
        assert float(seen['treasurer_group_size_bucket{kind="admit",le="4.0"}']) == 1
        assert float(seen['treasurer_degraded{part="redis"}']) == 1
        assert float(seen["treasurer_audit_differences"]) == 40  # the last process's value, not the sum
        assert float(seen['treasurer_breaker_state{breaker="model:m"}']) == 2  # the worst state, not the last process's
        assert float(seen['treasurer_breaker_transitions_total{breaker="model:m",to="open"}']) == 1
        assert (
            'treasurer_breaker_transitions_total{breaker="model:m",to="closed"}' not in seen
        )  # changes that another process made are not counted
        assert float(seen["treasurer_holds_pending"]) == 4  # from the database, so counted once for all processes
    finally:
        first.kill()
        second.kill()
        first.communicate()
        second.communicate()

    after = _render(folder)
    assert float(after[spend]) == 43
    assert 'treasurer_degraded{part="redis"}' not in after
    assert 'treasurer_breaker_state{breaker="model:m"}' not in after
    assert not list(folder.glob(f"gauge_live*_{first.pid}.db"))


def test_a_process_that_died_before_it_filled_its_file_does_not_break_every_scrape(tmp_path: Path):
    process = _start(tmp_path, 1)
    (tmp_path / "counter_999999.db").touch()
    try:
        assert _render(tmp_path)['treasurer_group_size_count{kind="admit"}'] == "1.0"
    finally:
        process.communicate("\n")


def test_figures_of_the_database_are_shown_though_the_folder_was_cleared(tmp_path: Path):
    assert float(_render(tmp_path / "metrics", "cleared")["treasurer_holds_pending"]) == 4
