"""A budget for one run: a total that counts the calls of that run only. Other budgets apply to the run as well.

What must hold:
  The budget is in force before the run's first call, and binds no other run.
  It is archived when the run ends, however it ends; its windows and entries stay for reports.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llm_service.administration.budgets import ChangeBudget, NewBudget, archive_budget, change_budget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.organisations import NewAgent, create_agent
from llm_service.administration.transaction import read
from llm_service.errors import Conflict, Unavailable
from llm_service.money import format_decimal

if TYPE_CHECKING:
    import asyncpg

_logger = logging.getLogger(__name__)


class RunBudgets:
    """Run budgets in the treasury."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._registered: set[str] = set()

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

    @asynccontextmanager
    async def limited(self, agent: str, run: str, limit_nano: int) -> AsyncIterator[None]:
        """Within this context the run may spend at most `limit_nano`. A run that is tried again keeps its budget.

        Raises:
            InvalidRequest: a budget cannot have this run id or this amount. TreasuryUnavailable: Postgres is away.
        """
        name, limit = f"{agent} run {run}", format_decimal(limit_nano)
        terms = {"name": name, "agent": agent, "window": "total", "per": "run", "per_value": run, "limit": limit}
        new = read_input(NewBudget, terms)
        try:
            await create_budget(self._pool, new)
        except Conflict:
            await change_budget(self._pool, name, read_input(ChangeBudget, {"limit": limit}))
        try:
            yield
        finally:
            try:
                await archive_budget(self._pool, name)
            except Unavailable as error:
                # This error must not hide the run's own outcome. A budget that is not archived binds only a run that is
                # over.
                _logger.warning("the budget of run %s could not be archived: %s", run, error.message)
