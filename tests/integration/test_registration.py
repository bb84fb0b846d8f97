"""An agent of this code has one row in the treasury, also if two processes begin at once."""

from __future__ import annotations

import asyncio

import asyncpg

from agents.registration import AgentRegistration


async def test_an_agent_is_registered_once_also_when_two_do_it_at_once(pool: asyncpg.Pool) -> None:
    agents = AgentRegistration(pool)
    await asyncio.gather(agents.register("digest"), AgentRegistration(pool).register("digest"))
    await agents.register("digest")
    rows = await pool.fetch("SELECT a.name, t.name AS team FROM agents a JOIN teams t ON t.id = a.team_id")
    assert [tuple(row) for row in rows] == [("digest", "default")]
