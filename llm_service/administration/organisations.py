"""Organisations, teams and agents: create, list, set up, pause, resume.

What must hold:
  A pause stops every new call of everything below it in under a second.
  Only a resume of the same scope ends a pause.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import asyncpg
from pydantic import BeforeValidator, Field, WithJsonSchema

from llm_service.administration.budget_states import BudgetState
from llm_service.administration.budgets import Terms, add_budget
from llm_service.administration.inputs import Input, Name, View, parse_amount
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import change, insert, missing, read, scope_id, searchable
from llm_service.treasury.queries import load_query
from llm_service.types import Scope

#: Dollars, kept in nano-dollars; "none" is no maximum.
AmountOrNone = Annotated[
    int | Literal["none"],
    BeforeValidator(lambda value: value if value == "none" else parse_amount(value)),
    WithJsonSchema({"type": ["string", "number"], "examples": ["0.50", "none"]}),
]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
_TABLES = {Scope.ORGANISATION: "organisations", Scope.TEAM: "teams", Scope.AGENT: "agents"}


class NewOrganisation(Input):
    """The widest scope. It has teams."""

    name: Name


class NewTeam(Input):
    """A team of an organisation. It has agents."""

    name: Name
    organisation: Name = "default"


class AgentTerms(Input):
    """The defaults of an agent's calls, and the fate of a hold that nobody settles. `most_per_run`: the most that one run
    may spend, whatever the agent's configuration says; "none" removes it."""

    default_max_tokens: Tokens | None = None
    floor_tokens: Tokens | None = None
    expiry_policy: Literal["post", "void"] | None = None
    most_per_run: AmountOrNone | None = None


class NewAgent(AgentTerms):
    """An agent of a team, and its first budget if one is given. Both are created, or neither."""

    name: Name
    team: Name = "default"
    budget: Terms | None = None


class Organisation(View):
    """`paused_at` None: not paused."""

    id: int
    name: str
    paused_at: datetime | None
    created_at: datetime


class Team(Organisation):
    """A team and its organisation."""

    organisation: str


class Agent(Team):
    """An agent. `keys` is the number of its live keys; `paused_by` is the scope whose pause stops it."""

    team: str
    default_max_tokens: int
    floor_tokens: int
    expiry_policy: str
    #: The most that one run may spend, whatever the agent's configuration says.
    most_per_run_nano: int | None
    keys: int
    paused_by: str | None
    budget: BudgetState | None = None


_TEAMS = """
    SELECT t.id, t.name, o.name AS organisation, t.paused_at, t.created_at
    FROM teams t JOIN organisations o ON o.id = t.organisation_id
"""
_ONE_AGENT = load_query("administration/agents", which="id = $1")
_PAGE_OF_AGENTS = load_query(
    "administration/agents",
    which="""($1::text IS NULL OR team_id = (SELECT id FROM teams WHERE name = $1))
             AND ($2::text IS NULL OR name > $2) ORDER BY name LIMIT $3""",
)


async def create_organisation(pool: asyncpg.Pool, new: NewOrganisation) -> Organisation:
    """Raises Conflict when the name is taken."""
    async with change(pool) as connection:
        row = await insert(
            connection,
            f"an organisation {new.name!r}",
            "INSERT INTO organisations (name) VALUES ($1) RETURNING id, name, paused_at, created_at",
            new.name,
        )
        return Organisation.of(row)


async def create_team(pool: asyncpg.Pool, new: NewTeam) -> Team:
    """Raises NotFound when its organisation does not exist, Conflict when the name is taken."""
    async with change(pool) as connection:
        owner = await scope_id(connection, Scope.ORGANISATION, new.organisation)
        row = await insert(
            connection,
            f"a team {new.name!r}",
            "INSERT INTO teams (organisation_id, name) VALUES ($1, $2) RETURNING id, name, paused_at, created_at",
            owner,
            new.name,
        )
        return Team.of(row, organisation=new.organisation)


async def create_agent(pool: asyncpg.Pool, new: NewAgent) -> Agent:
    """Raises NotFound when its team does not exist, Conflict when the agent's or the budget's name is taken."""
    async with change(pool) as connection:
        owner = await scope_id(connection, Scope.TEAM, new.team)
        row = await insert(
            connection,
            f"an agent {new.name!r}",
            """INSERT INTO agents (team_id, name, default_max_tokens, floor_tokens, expiry_policy, most_per_run_nano)
               VALUES ($1, $2, coalesce($3, 4096), coalesce($4, 16), coalesce($5, 'post'), $6) RETURNING id""",
            owner,
            new.name,
            new.default_max_tokens,
            new.floor_tokens,
            new.expiry_policy,
            None if new.most_per_run == "none" else new.most_per_run,
        )
        budget = await add_budget(connection, new.budget, Scope.AGENT, new.name, row["id"]) if new.budget else None
        return Agent.of(await connection.fetchrow(_ONE_AGENT, row["id"]), budget=budget)


async def change_agent(pool: asyncpg.Pool, name: str, new: AgentTerms) -> Agent:
    """Change the fields that are given. Raises NotFound."""
    async with change(pool) as connection:
        agent_id = await scope_id(connection, Scope.AGENT, name)
        await connection.execute(
            """UPDATE agents SET default_max_tokens = coalesce($2, default_max_tokens),
                   floor_tokens = coalesce($3, floor_tokens), expiry_policy = coalesce($4, expiry_policy),
                   most_per_run_nano = CASE WHEN $5 THEN $6 ELSE most_per_run_nano END
               WHERE id = $1""",
            agent_id,
            new.default_max_tokens,
            new.floor_tokens,
            new.expiry_policy,
            new.most_per_run is not None,
            None if new.most_per_run == "none" else new.most_per_run,
        )
        return Agent.of(await connection.fetchrow(_ONE_AGENT, agent_id))


async def list_organisations(
    pool: asyncpg.Pool, *, limit: int = DEFAULT, after: str | None = None
) -> Page[Organisation]:
    """Organisations in the order of names: at most `limit`, after the name `after`."""
    rows = await read(
        pool,
        """SELECT id, name, paused_at, created_at FROM organisations WHERE $1::text IS NULL OR name > $1
           ORDER BY name LIMIT $2""",
        after if after is None else searchable(after),
        to_fetch(limit),
    )
    return page_of(rows, limit, Organisation.of)


async def list_teams(pool: asyncpg.Pool, *, limit: int = DEFAULT, after: str | None = None) -> Page[Team]:
    """Teams in the order of names: at most `limit`, after the name `after`."""
    rows = await read(
        pool,
        f"{_TEAMS} WHERE $1::text IS NULL OR t.name > $1 ORDER BY t.name LIMIT $2",
        after if after is None else searchable(after),
        to_fetch(limit),
    )
    return page_of(rows, limit, Team.of)


async def list_agents(
    pool: asyncpg.Pool, *, team: str | None = None, limit: int = DEFAULT, after: str | None = None
) -> Page[Agent]:
    """Agents, or those of one team, in the order of names: at most `limit`, after the name `after`."""
    rows = await read(
        pool,
        _PAGE_OF_AGENTS,
        None if team is None else searchable(team),
        after if after is None else searchable(after),
        to_fetch(limit),
    )
    return page_of(rows, limit, Agent.of)


async def pause(pool: asyncpg.Pool, scope: Scope, name: str) -> None:
    """Stop every new call of an organisation, team or agent. Calls that are running go on. Raises NotFound."""
    await _set_paused(pool, scope, name, "coalesce(paused_at, now())")


async def resume(pool: asyncpg.Pool, scope: Scope, name: str) -> None:
    """End the pause of this scope; a wider or narrower scope stays paused. Raises NotFound."""
    await _set_paused(pool, scope, name, "NULL")


async def _set_paused(pool: asyncpg.Pool, scope: Scope, name: str, value: str) -> None:
    async with change(pool) as connection:
        # Safe: the only texts that are inserted are constants of this module.
        changed = await connection.fetchval(
            f"UPDATE {_TABLES[scope]} SET paused_at = {value} WHERE name = $1 RETURNING id",  # noqa: S608
            searchable(name),
        )
        if changed is None:
            raise missing(scope, name)
