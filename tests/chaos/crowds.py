"""Crowds: many callers at once on one budget, and on one idempotency key; and many changes a second while calls are in
flight.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from functools import partial

import asyncpg

from tests.chaos.calls import Asked, make, patiently
from tests.chaos.field import Field

QUEUED, SAME = 1_000, 400
CHANGES_A_SECOND, _CHANGES_S = 43, 12.0
_PATIENCE_S = 60.0
#: Each call holds a thousand tokens of output and uses five, so few calls fit at the same time, but all fit in turn.
_WANTED_TOKENS = 1_000
_ROOM = "0.05"


async def a_thousand_in_a_queue(field: Field) -> None:
    """A few callers fill this budget. The others wait, as their route allows, and each is served in turn."""
    name = f"queued {field.next_number()}"
    await field.admin("POST", "agents", {"name": name, "budget": {"limit": _ROOM}})
    key = (await field.admin("POST", "keys", {"agent": name}))["secret"]
    chance = random.Random(field.random.random())
    asked = [make(chance, key, "whole", "gpt-4.1-mini", output_tokens=5) for _ in range(QUEUED)]
    for each in asked:
        each.body["max_tokens"] = _WANTED_TOKENS
    await field.admin("PUT", "routes", {"agent": name, "model": "gpt-4.1-mini", "queue_s": _PATIENCE_S})
    field.asked += asked
    served = asyncio.gather(*(field.send(each, None, within_s=2 * _PATIENCE_S) for each in asked))
    most_held = await _most_held(field, served)
    outcomes = Counter(await served)
    if not 1 < most_held < QUEUED / 10:
        field.faults.append(f"{most_held} calls were held at once: there was no queue")
    field.remarks.append(f"{most_held} at most were held at once")
    if outcomes["ok"] != QUEUED:
        field.faults.append(f"of {QUEUED} callers in a queue {outcomes['ok']} were served: {dict(outcomes)}")


async def _most_held(field: Field, until: asyncio.Future[list[str]]) -> int:
    """The highest number of calls that were held at one time, until this future is done."""
    connection = await asyncpg.connect(field.state.database_url)
    try:
        most = 0
        while not until.done():
            most = max(most, await connection.fetchval("SELECT count(*) FROM holds"))
            await asyncio.sleep(0.2)
        return most
    finally:
        await connection.close()


async def many_on_one_key(field: Field) -> None:
    """A whole answer and a stream, each requested by 400 callers with the same idempotency key, are bought once each."""
    chance = random.Random(field.random.random())
    for kind in ("keyed", "keyed stream"):
        asked = make(chance, field.keys[0], kind)
        field.asked.append(asked)
        field.repeatable.append(asked)
        outcomes = Counter(
            await asyncio.gather(*(patiently(asked, partial(field.send, asked, None)) for _ in range(SAME)))
        )
        if outcomes["ok"] != SAME or len(asked.answers) != 1:
            field.faults.append(
                f"{SAME} callers on one key ({kind}) had {len(asked.answers)} answers, {dict(outcomes)}"
            )


async def many_changes_a_second(field: Field) -> None:
    """43 changes of configuration a second, for agents that are calling and for others, make no call in flight fail."""
    before = _served(field.asked)
    began = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    count = round(CHANGES_A_SECOND * _CHANGES_S)
    for number in range(count):
        due = began + number / CHANGES_A_SECOND
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.add(asyncio.create_task(_change(field, number)))
    await asyncio.gather(*tasks)
    took_s = time.monotonic() - began
    served = _served(field.asked) - before
    if not served:
        field.faults.append(f"no call was served under {count} changes")
    field.remarks.append(f"{count / took_s:.0f} changes a second, {served / took_s:.0f} calls a second")


async def _change(field: Field, number: int) -> None:
    agent = ("rich", "poor", "routed")[number % 3]
    if number % 2:
        path, body = f"agents/{agent}", {"default_max_tokens": 1000 + number}
    else:
        path, body = "budgets/agent rich: total", {"limit": f"{50 + number % 7}"}
    status, content = await field.ask_admin("PATCH", path, body, field.state.gateway_urls[number % 2])
    if status >= 300:
        field.faults.append(f"a change was answered {status}: {content}")


def _served(asked: list[Asked]) -> int:
    return sum(each.served or each.outcome == "left" for each in asked)
