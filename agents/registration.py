"""Makes sure that the agents of this code have rows in the treasury, so that they can be paid for.

What must hold: an agent that an administrator has made, moved or limited stays as it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from agents.registry import names_of_logic
from llm_service.administration.inputs import read_input
from llm_service.administration.organisations import NewAgent, create_agent
from llm_service.administration.transaction import read
from llm_service.errors import Conflict

if TYPE_CHECKING:
    import asyncpg

_logger = logging.getLogger(__name__)


class AgentRegistration:
    """Registers agents, each once in a process."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._registered: set[str] = set()

    async def register_logic(self, agent: str) -> None:
        """As `register`, if there is logic of this name. Another agent is an administrator's to make."""
        if agent in names_of_logic():
            await self.register(agent)

    async def register(self, agent: str) -> None:
        """Make the agent's row, in team "default", if it has none yet.

        Raises:
            TreasuryUnavailable: Postgres is away.
        """
        if agent in self._registered:
            return
        if not await read(self._pool, "SELECT FROM agents WHERE name = $1", agent):
            try:
                await create_agent(self._pool, read_input(NewAgent, {"name": agent}))
            except Conflict:
                _logger.debug("agent %s was registered by another process at the same moment", agent)
        self._registered.add(agent)
