"""Administrators change configuration while calls that depend on it are in flight.

What must hold:
- No window passes the highest limit that its budget had, plus the most that its top-ups gave at one time, by the
  administrators' own notes.
- Every caller is served, or refused for a reason that the changes explain.
- Each change of an administrator is answered, whatever the other administrator changes meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg

from tests.chaos.calls import AGAIN, MODELS, make
from tests.chaos.field import Field

AGENTS, CALLERS = 4, 24
#: The errors that callers may get: their agent is paused, or their key was rotated while they were asking. The other
#: errors happen because a call has only six seconds here, and thirty callers make the machine slow.
EXPLAINED = (
    *("403 paused", "401 invalid_api_key"),
    *("504 upstream_timeout", "stream upstream_timeout", "503 breaker_open", *AGAIN),
)
#: The statuses that an administrator may get when the other one has just archived, rotated or removed the same thing.
_CROSSED = (404, 409)
_ADMIN_PAUSE_S = 0.15
#: Dollars a minute for an agent: 24 callers spend this amount in less than a minute.
_LIMITS = ("0.004", "0.008", "0.012", "0.02", "0.03")
_numbers = itertools.count(1)


@dataclass
class Notes:
    """What one budget was allowed, as the administrators noted it. Nano-dollars."""

    limits: list[int] = field(default_factory=list[int])
    top_ups: list[tuple[datetime, datetime, int]] = field(default_factory=list[tuple[datetime, datetime, int]])


def most_allowed(notes: Notes) -> int:
    """The highest limit that a budget had, plus the most that its top-ups gave at one time."""
    steps = [(starts, nano) for starts, _, nano in notes.top_ups] + [(ends, -nano) for _, ends, nano in notes.top_ups]
    # If one top-up begins at the instant in which another ends, add before subtracting, so that the result is the
    # higher one.
    ordered = sorted(steps, key=lambda step: (step[0], -step[1]))
    return max(notes.limits) + max([0, *itertools.accumulate(nano for _, nano in ordered)])


@dataclass
class Governed:
    """An agent whose configuration is changed. `key` is its newest key: (id, secret)."""

    name: str
    key: tuple[int, str]
    budgets: list[str]
    rate_limits: set[int] = field(default_factory=set[int])
    routes: set[int] = field(default_factory=set[int])


@dataclass
class Office:
    """The state that both administrators share."""

    ground: Field
    agents: list[Governed] = field(default_factory=list[Governed])
    notes: dict[int, Notes] = field(default_factory=dict[int, Notes])
    changes: int = 0

    async def ask(self, method: str, path: str, body: object = None) -> dict[str, Any] | None:
        """Make a change; None if the other administrator was faster."""
        status, content = await self.ground.ask_admin(method, path, body)
        self.changes += 1
        if status >= 300 and status not in _CROSSED:
            self.ground.faults.append(f"an administrator got {status} for {method} {path}: {content}")
        return content if status < 300 else None

    async def set_up(self) -> None:
        """Create agents, each with a budget for a minute and one for an hour."""
        for _ in range(AGENTS):
            name = f"governed {next(_numbers)}"
            await self.ground.admin("POST", "agents", {"name": name})
            key = await self.ground.admin("POST", "keys", {"agent": name})
            agent = Governed(name, (key["id"], key["secret"]), [f"{name} a minute", f"{name} an hour"])
            self.agents.append(agent)
            for budget in agent.budgets:
                await self.create(agent, budget)

    async def create(self, agent: Governed, budget: str) -> None:
        window = "minute" if budget.endswith("a minute") else "hour"
        limit = _LIMITS[2] if window == "minute" else "1"
        made = await self.ask(
            "POST", "budgets", {"agent": agent.name, "name": budget, "limit": limit, "window": window}
        )
        if made is not None:
            self.notes[made["id"]] = Notes([made["limit_nano"]])

    async def clear(self) -> None:
        """Leave the agents ready for the callers of later disturbances: nothing paused, limited or routed."""
        for agent in self.agents:
            await self.ask("POST", f"agents/{agent.name}/resume")
            for limit in agent.rate_limits:
                await self.ask("DELETE", f"limits/{limit}")
            for route in agent.routes:
                await self.ask("DELETE", f"routes/{route}")


# -- the changes that an administrator makes


async def _change_limit(office: Office, agent: Governed, chance: random.Random) -> None:
    limit = chance.choice(_LIMITS)
    changed = await office.ask("PATCH", f"budgets/{agent.budgets[0]}", {"limit": limit})
    if changed is not None:
        office.notes[changed["id"]].limits.append(changed["limit_nano"])


async def _top_up(office: Office, agent: Governed, chance: random.Random) -> None:
    name = agent.budgets[0]
    budget = await office.ask("GET", f"budgets/{name}")
    amount = {"amount": chance.choice(("0.001", "0.002", "0.004")), "lasts": f"{chance.randint(1, 8)}s"}
    given = await office.ask("POST", f"budgets/{name}/top-ups", amount)
    if budget is None or given is None:
        return
    period = datetime.fromisoformat(given["starts_at"]), datetime.fromisoformat(given["ends_at"])
    after = await office.ask("GET", f"budgets/{name}")
    for number in {
        budget["id"],
        after["id"] if after else budget["id"],
    }:  # the budget may have been archived and created again, with another id
        office.notes[number].top_ups.append((*period, given["amount_nano"]))


async def _archive(office: Office, agent: Governed, chance: random.Random) -> None:
    budget = chance.choice(agent.budgets)
    await office.ask("DELETE", f"budgets/{budget}")
    await office.create(agent, budget)


async def _pause(office: Office, agent: Governed, chance: random.Random) -> None:
    await office.ask("POST", f"agents/{agent.name}/pause")
    await asyncio.sleep(chance.uniform(0.1, 0.6))
    await office.ask("POST", f"agents/{agent.name}/resume")


async def _rotate(office: Office, agent: Governed, chance: random.Random) -> None:
    rotated = await office.ask("POST", f"keys/{agent.key[0]}/rotate", {"overlap": chance.choice(("0", "5s"))})
    if rotated is not None and rotated["id"] > agent.key[0]:
        agent.key = (rotated["id"], rotated["secret"])


async def _limit_rate(office: Office, agent: Governed, chance: random.Random) -> None:
    if agent.rate_limits and chance.random() < 0.5:
        await office.ask("DELETE", f"limits/{agent.rate_limits.pop()}")
        return
    terms = {"requests_per_minute": chance.randint(200, 2000), "concurrent": chance.randint(2, 12)}
    limit = await office.ask("PUT", "limits", {"agent": agent.name, **terms})
    if limit is not None:
        agent.rate_limits.add(limit["id"])


async def _route(office: Office, agent: Governed, chance: random.Random) -> None:
    if agent.routes and chance.random() < 0.5:
        await office.ask("DELETE", f"routes/{agent.routes.pop()}")
        return
    model, *others = chance.sample(MODELS, 3)
    terms = {"fallbacks": [{"model": other} for other in others], "queue_s": chance.choice((0, 0.5, 1.5))}
    route = await office.ask("PUT", "routes", {"agent": agent.name, "model": model, **terms})
    if route is not None:
        agent.routes.add(route["id"])


async def _pace(office: Office, agent: Governed, chance: random.Random) -> None:
    pace = chance.choice(("linear+20%", "linear+50%", "none", "none"))
    await office.ask("PATCH", f"budgets/{agent.budgets[0]}", {"pace": pace})


_Change = Callable[[Office, Governed, random.Random], Awaitable[None]]
CHANGES: Sequence[_Change] = (
    *(_change_limit, _change_limit, _change_limit, _top_up, _top_up),
    *(_archive, _pause, _rotate, _limit_rate, _route, _pace),
)


async def _administrator(office: Office, chance: random.Random, ended: asyncio.Event) -> None:
    while not ended.is_set():
        await chance.choice(CHANGES)(office, chance.choice(office.agents), chance)
        await asyncio.sleep(chance.uniform(0, 2 * _ADMIN_PAUSE_S))


async def _caller(office: Office, agent: Governed, chance: random.Random, ended: asyncio.Event) -> None:
    while not ended.is_set():
        asked = make(chance, agent.key[1])
        office.ground.asked.append(asked)  # and not to `repeatable`, because its agent's key will be rotated
        await asyncio.gather(*(office.ground.send(asked, None) for _ in range(2 if asked.keyed else 1)))
        # Without this pause the machine is too slow to answer within six seconds.
        await asyncio.sleep(chance.uniform(0.5, 1.2))


async def _over_the_highest(office: Office, pool: asyncpg.Pool) -> list[str]:
    rows = await pool.fetch(
        "SELECT budget_id, starts_at, posted_nano + pending_nano AS used FROM windows WHERE budget_id = ANY ($1)",
        list(office.notes),
    )
    return [
        f"budget {row['budget_id']}: {row['used']} in its window from {row['starts_at']}, {most} at most was allowed"
        for row in rows
        if row["used"] > (most := most_allowed(office.notes[row["budget_id"]]))
    ]


def administrators(seconds: float) -> Callable[[Field], Awaitable[None]]:
    """Two administrators change configuration, while callers spend budgets whose windows last a minute."""

    async def run(field: Field) -> None:
        office = Office(field)
        await office.set_up()
        chance, ended = random.Random(field.random.random()), asyncio.Event()
        tasks = [asyncio.create_task(_administrator(office, random.Random(chance.random()), ended)) for _ in range(2)]
        tasks += [
            asyncio.create_task(_caller(office, office.agents[n % AGENTS], random.Random(chance.random()), ended))
            for n in range(CALLERS)
        ]
        await asyncio.sleep(seconds)
        ended.set()
        await asyncio.gather(*tasks)
        await office.clear()
        async with asyncpg.create_pool(field.state.database_url, min_size=1, max_size=1) as pool:
            field.faults += await _over_the_highest(office, pool)
            minutes = await pool.fetchval(
                "SELECT count(DISTINCT w.starts_at) FROM windows w JOIN budgets b ON b.id = w.budget_id"
                " WHERE b.window_kind = 'minute' AND w.budget_id = ANY ($1) AND w.posted_nano > 0",
                list(office.notes),
            )
        field.remarks.append(f"{office.changes} changes, {len(office.notes)} budgets, {minutes} minutes")

    return run
