"""The judge checks, after each disturbance, that every call agrees with the provider's invoice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import asyncpg

from llm_service.treasury.audit.audit import audit
from tests.chaos.calls import Asked
from tests.chaos.field import Field
from tests.chaos.stack import LIFETIME_S, SWEEP_S

#: The marks of runs begin so (`runs.py`).
RUNS = "run-"
#: How long a hold may outlast its lifetime: a sweep takes time, and so does a busy machine.
_GRACE_S = 3.0
#: How much memory may grow: a restarted part fills its caches, and LiteLLM's workers grow with each call served.
_MEMORY_TIMES, _MEMORY_MIB = 1.5, 100
#: How much a disturbance may add to all logs: a fixed amount, and an amount for each call.
_LOG_BYTES, _LOG_BYTES_A_CALL = 256 * 1024, 2048
_ATTEMPTS = """
SELECT session_id AS mark, model, count(*) FILTER (WHERE state <> 'adjusted') AS ends, sum(held_nano)::bigint AS held_nano,
       sum(cost_nano)::bigint AS posted_nano,
       (array_agg(usage_source ORDER BY state = 'adjusted' DESC))[1] AS usage_source,
       (array_agg(error_code ORDER BY state = 'adjusted' DESC))[1] AS error_code,
       max(extract(epoch FROM settled_at - started_at)) FILTER (WHERE state <> 'adjusted')::float8 AS lasted_s
FROM ledger WHERE session_id = ANY($1) GROUP BY session_id, call_id, attempt, model
"""


@dataclass
class Outcome:
    """What happened during one disturbance, and what the judge found."""

    name: str
    calls: Counter[str] = field(default_factory=Counter[str])
    troubles: Counter[str] = field(default_factory=Counter[str])
    took_s: float = 0.0
    healthy_s: float = 0.0
    ledger_nano: int = 0
    invoice_nano: int = 0
    inexact: int = 0  # attempts that were estimated, or posted with the whole hold
    logged_bytes: int = 0
    memory_mib: int = 0
    faults: list[str] = field(default_factory=list[str])
    skipped: str = ""
    remarks: list[str] = field(default_factory=list[str])

    def row(self) -> str:
        if self.skipped:
            return f"{self.name:<36} skipped: {self.skipped}"
        calls = "".join(f"{self.calls[outcome]:>{width}}" for outcome, width in _CALLS)
        money = f"{self.ledger_nano / 1e9:>10.6f} {self.invoice_nano / 1e9:>10.6f} {self.ledger_nano - self.invoice_nano:>9}"
        sizes = f"{self.inexact:>8} {self.logged_bytes // 1024:>6} {self.memory_mib:>5}"
        told = "; ".join(self.faults) or "ok"
        why = ", ".join(f"{count} {trouble}" for trouble, count in self.troubles.most_common())
        more = "".join([f" ({why})" if why else "", *(f"; {remark}" for remark in self.remarks)])
        return f"{self.name:<36} {calls} {self.took_s:>5.0f} {self.healthy_s:>8.1f} {money} {sizes}  {told}{more}"


_CALLS = (("ok", 5), ("refused", 8), ("failed", 7), ("left", 5))
HEAD = (
    f"{'disturbance':<36} {''.join(f'{name:>{width}}' for name, width in _CALLS)} {'took':>5} {'healthy':>8} {'ledger':>10} "
    f"{'invoice':>10} {'over':>9} {'inexact':>8} {'logs':>6} {'mem':>5}\n{'':<36} {'':>25} {'s':>5} {'after s':>8} {'$':>10} "
    f"{'$':>10} {'nano':>9} {'attempts':>8} {'KiB':>6} {'MiB':>5}"
)


class Judge:
    """Remembers which calls it has judged, and the memory and logs from before the first disturbance."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.seen_seq = 0
        self.logged_bytes, self.memory = field.logged(), field.memory()

    async def judge(self, outcome: Outcome, *, fails: Sequence[str], outage_s: float = 0) -> Outcome:
        """Wait until nothing is held, which may take a hold's lifetime and a sweep; then compare the books.

        `fails`: the errors that callers may get. `outage_s`: for so long nothing could be settled.
        """
        asked = self.field.asked
        self.field.asked = []
        async with self._database() as pool:
            await self._until_nothing_is_held(pool, outcome)
            longest_s = LIFETIME_S + SWEEP_S + _GRACE_S + outage_s
            faults, lines, attempts = await self._compared(pool, asked, longest_s)
            outcome.faults += faults
            report = await audit(pool, sweep_grace_s=SWEEP_S + _GRACE_S)
            outcome.faults += [line for check in report.checks for line in check.differences]
        outcome.faults += self.field.faults
        outcome.remarks += self.field.remarks
        self.field.faults, self.field.remarks = [], []
        outcome.calls = Counter(each.outcome for each in asked)
        outcome.troubles = Counter(trouble for each in asked for trouble in each.troubles)
        unexplained = {name: n for name, n in outcome.troubles.items() if not any(fnmatchcase(name, p) for p in fails)}
        if unexplained:
            outcome.faults.append(f"callers were told what nothing here explains: {unexplained}")
        for each in asked:
            each.troubles.clear()
        outcome.ledger_nano = sum(row["posted_nano"] for row in attempts)
        outcome.invoice_nano = sum(line["cost_nano"] for line in lines)
        outcome.inexact = sum(row["posted_nano"] > 0 and not exact(row) for row in attempts)
        self._sizes(outcome, len(asked))
        return outcome

    async def judge_all(self, outcome: Outcome) -> Outcome:
        """Compare the whole run's invoice with the whole ledger, with everything that arrived late."""
        self.seen_seq = 0
        return await self.judge(outcome, fails=("409 idempotency_answer_lost",), outage_s=600 + self.field.jumped_s)

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[asyncpg.Pool]:
        pool = await asyncpg.create_pool(self.field.state.database_url, min_size=1, max_size=2)
        try:
            yield pool
        finally:
            await pool.close()

    async def _until_nothing_is_held(self, pool: asyncpg.Pool, outcome: Outcome) -> None:
        deadline = time.monotonic() + LIFETIME_S + SWEEP_S + 10
        while held := await pool.fetchval("SELECT count(*) FROM holds"):
            if time.monotonic() > deadline:
                outcome.faults.append(f"{held} holds are still there")
                break
            await asyncio.sleep(0.3)

    async def _compared(
        self, pool: asyncpg.Pool, asked: Sequence[Asked], longest_s: float
    ) -> tuple[list[str], list[dict[str, Any]], list[asyncpg.Record]]:
        """The differences that remain after a while: a late witness may still correct an attempt that ended without
        one.
        """
        patience = 4
        while True:
            lines, seen_seq = await self._lines()
            marks = {each.mark for each in asked} | {line["mark"] for line in lines}
            attempts = await pool.fetch(_ATTEMPTS, list(marks))
            faults = compare_calls(lines, attempts, longest_s) + compare_callers(asked, lines, attempts)
            patience -= 1
            if not faults or not patience:
                self.seen_seq = seen_seq
                return faults, lines, attempts
            await asyncio.sleep(1)

    async def _lines(self) -> tuple[list[dict[str, Any]], int]:
        address = f"{self.field.state.provider_url}/_sim/invoice?lines=1&since={self.seen_seq}"
        async with self.field.http.get(address) as response:
            invoice = await response.json()
        return invoice["lines"], invoice["last_seq"]

    def _sizes(self, outcome: Outcome, calls: int) -> None:
        logged, memory = self.field.logged(), self.field.memory()
        outcome.logged_bytes, self.logged_bytes = logged - self.logged_bytes, logged
        if outcome.logged_bytes > _LOG_BYTES + _LOG_BYTES_A_CALL * calls:
            outcome.faults.append(f"{calls} calls left {outcome.logged_bytes} bytes of logs")
        outcome.memory_mib = sum(memory.values())
        outcome.faults += [
            f"{part} has {mib} MiB, {self.memory[part]} before"
            for part, mib in memory.items()
            if mib > _MEMORY_TIMES * self.memory.get(part, mib) + _MEMORY_MIB
        ]


def exact(attempt: asyncpg.Record) -> bool:
    """Whether the posted cost is the provider's own report."""
    return attempt["usage_source"] == "provider" or (
        attempt["usage_source"] == "witness"
        and attempt["error_code"] not in ("owner_lost_estimated", "owner_lost_unread")
    )


def compare_calls(lines: Iterable[dict[str, Any]], attempts: Iterable[asyncpg.Record], longest_s: float) -> list[str]:
    """Compare each line of the invoice with the ledger's entries of its call, and each entry with its hold."""
    faults: list[str] = []
    billed: dict[tuple[str, str], list[int]] = defaultdict(list)
    for line in lines:
        billed[line["mark"], line["model"]].append(line["cost_nano"])
    posted: dict[tuple[str, str], list[asyncpg.Record]] = defaultdict(list)
    for row in attempts:
        posted[row["mark"], row["model"]].append(row)
        if row["ends"] != 1:
            faults.append(f"{row['mark']} has {row['ends']} ends")
        if row["lasted_s"] > longest_s:
            faults.append(
                f"{row['mark']} was held for {row['lasted_s']:.1f} s, {longest_s:.1f} s at most are explained"
            )
    for (mark, model), costs in billed.items():
        rows = posted.get((mark, model), [])
        if not rows:
            faults.append(f"{mark}: {sum(costs)} was billed for {model}, and the ledger has nothing")
        elif len(costs) > sum(row["posted_nano"] > 0 for row in rows):
            faults.append(
                f"{mark}: billed {len(costs)} times for {model}, posted {[row['posted_nano'] for row in rows]}"
            )
    for (mark, model), rows in posted.items():
        bill, post = sum(billed.get((mark, model), [])), sum(row["posted_nano"] for row in rows)
        most = 0 if all(map(exact, rows)) else sum(row["held_nano"] for row in rows if not exact(row))
        if not 0 <= post - bill <= most:
            sources = [f"{row['usage_source']}/{row['error_code']}" for row in rows]
            faults.append(
                f"{mark}: posted {post} for {model} ({', '.join(sources)}), billed {bill}, held {most} without a report"
            )
    return faults


def compare_callers(
    asked: Sequence[Asked], lines: Iterable[dict[str, Any]], attempts: Iterable[asyncpg.Record]
) -> list[str]:
    """Compare the answers that callers got with the posted entries, and with the calls that were bought under their
    idempotency keys."""
    faults: list[str] = []
    bought = Counter((line["mark"], line["model"]) for line in lines)
    posted = {row["mark"] for row in attempts if row["posted_nano"] > 0}
    paid = {mark for mark, _ in bought}
    for each in asked:
        if each.served and each.mark not in posted:
            faults.append(f"{each.mark} ({each.kind}) was served, and nothing is posted")
        if each.outcome == "refused" and not each.served and not each.troubles and each.mark in paid:
            faults.append(f"{each.mark} ({each.kind}) was refused, and bought")
        if len(each.answers) > 1:
            faults.append(f"one key has {len(each.answers)} answers: {each.mark}")
    faults += [
        f"{mark}: bought {count} times from {model}"
        for (mark, model), count in bought.items()
        if count > 1 and not mark.startswith(RUNS)  # a run asks several times, and is judged in runs.py
    ]
    return faults
