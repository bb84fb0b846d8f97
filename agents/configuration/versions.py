"""The versions of agents' configurations, as rows in Postgres (`work.agent_versions`).

What must hold:
  A version never changes. A change is a new version with the next number, so a run that has pinned one can read it again.
  Two changes at once make two versions, or the second one is refused if it names the version that it was made from.
  A change that changes nothing makes no version.
  The limit that claims of runs keep to is that of the newest version, because both are one transaction.
  An agent whose logic is in the catalogue needs no version: its version 0 is the defaults of the code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from agents.configuration.inputs import NewVersion, UseVersion, changed, check_approvers, checked, default_terms
from agents.configuration.terms import AgentConfiguration, Terms, TriggerKind, TriggerTerms, read_terms
from agents.definition import AnyAgent
from agents.recorded_json import digest_of, to_json
from agents.registry import find_agent, names_of_logic
from llm_service.administration.inputs import View
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import change_without_epoch, read, searchable
from llm_service.errors import Conflict, InvalidRequest, NotFound
from llm_service.money import format_dollars
from llm_service.postgres import fetch

if TYPE_CHECKING:
    from asyncpg import Record

_COLUMNS = "version, what::text AS what, made_by, created_at"
_MOST_PER_RUN = "SELECT most_per_run_nano FROM agents WHERE name = $1"
_CURRENT = f"SELECT {_COLUMNS} FROM work.agent_versions WHERE agent = $1 ORDER BY version DESC LIMIT 1"  # noqa: S608
_AT = f"SELECT {_COLUMNS} FROM work.agent_versions WHERE agent = $1 AND version = $2"  # noqa: S608
_PAGE = f"""SELECT {_COLUMNS} FROM work.agent_versions WHERE agent = $1 AND ($2::integer IS NULL OR version < $2)
            ORDER BY version DESC LIMIT $3"""  # noqa: S608
_LOGIC = """SELECT DISTINCT ON (agent) agent, what->>'logic' AS logic FROM work.agent_versions ORDER BY agent, version DESC"""
_IS_KNOWN = "SELECT FROM agents WHERE name = $1"
_WAS_CONFIGURED = "SELECT FROM work.agent_versions WHERE agent = $1 LIMIT 1"
_IN_FORCE = "k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true)"
_TEAM = "SELECT EXISTS (SELECT FROM teams WHERE name = $1)"
_AGENTS_KEY = f"""SELECT EXISTS (SELECT FROM api_keys k JOIN agents a ON a.id = k.agent_id
                  WHERE a.name = $1 AND k.name = $2 AND {_IN_FORCE})"""  # noqa: S608
_ADMINS_KEY = f"SELECT EXISTS (SELECT FROM api_keys k WHERE k.agent_id IS NULL AND k.name = $1 AND {_IN_FORCE})"  # noqa: S608
_TAKE_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('agent_versions/' || $1, 0))"
_INSERT = f"""INSERT INTO work.agent_versions (agent, version, what, digest) VALUES ($1, $2, $3::text::jsonb, $4)
              RETURNING {_COLUMNS}"""  # noqa: S608
_LIMIT = "INSERT INTO work.limits (agent, most) VALUES ($1, $2) ON CONFLICT (agent) DO UPDATE SET most = excluded.most"
_UNLIMIT = "DELETE FROM work.limits WHERE agent = $1"

#: Raises if there is no such model: `Catalog.get`.
CheckModel = Callable[[str], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class AgentConfigurations:
    """Reads versions. `rows` runs a statement that changes nothing: `fetch` for runs, `read` for lists of people."""

    pool: asyncpg.Pool
    rows: Callable[..., Awaitable[list[Record]]] = fetch

    async def current(self, agent: str) -> AgentConfiguration:
        """The newest version, which a run pins when it is made.

        Raises:
            NotFound: there is no such agent, or it was never configured and no logic has its name.
            Conflict: this release does not understand the version. TreasuryUnavailable: Postgres is away.
        """
        rows = await self.rows(self.pool, _CURRENT, searchable(agent))
        configuration = _configuration(agent, rows[0]) if rows else await _unconfigured(agent)
        limited = await self.rows(self.pool, _MOST_PER_RUN, searchable(agent))
        return replace(configuration, most_per_run_nano=limited[0]["most_per_run_nano"] if limited else None)

    async def at(self, agent: str, version: int) -> AgentConfiguration:
        """This version. Raises as `current` does, and NotFound if there is no such version."""
        if version == 0:
            return await _unconfigured(agent)
        rows = await self.rows(self.pool, _AT, searchable(agent), version) if 0 < version < 2**31 else []
        if not rows:
            raise _no_version(agent, version)
        return _configuration(agent, rows[0])

    async def runnable(self, names: frozenset[str]) -> frozenset[str]:
        """The agents that have one of these logics: those that are configured with it, and those of its name.

        Raises:
            TreasuryUnavailable: Postgres is away.
        """
        configured = {row["agent"]: row["logic"] for row in await self.rows(self.pool, _LOGIC)}
        return (names - configured.keys()) | {agent for agent, logic in configured.items() if logic in names}

    async def page(self, agent: str, *, limit: int = DEFAULT, after: int | None = None) -> Page[AgentConfiguration]:
        """The versions that were made, the newest first: `limit` of them before the version `after`.

        Raises:
            NotFound: there is no such agent. Conflict: this release does not understand one of them.
        """
        before = None if after is None else min(after, 2**31 - 1)
        rows = await self.rows(self.pool, _PAGE, searchable(agent), before, to_fetch(limit))
        if not rows and agent not in names_of_logic():
            for known in (_IS_KNOWN, _WAS_CONFIGURED):  # the second one for a page behind the last version
                if await self.rows(self.pool, known, searchable(agent)):
                    break
            else:
                raise _no_agent(agent)
        return page_of(rows, limit, lambda row: _configuration(agent, row))


def for_people(pool: asyncpg.Pool) -> AgentConfigurations:
    """Reads versions for the admin API and the command line, over the pool for lists."""
    return AgentConfigurations(pool, read)


async def set_configuration(
    pool: asyncpg.Pool, agent: str, new: NewVersion, check_model: CheckModel
) -> AgentConfiguration:
    """A new version with the fields that are given, and the defaults of its logic for all others.

    Raises:
        NotFound: there is no such agent. InvalidRequest: the version cannot be made; the message names the field.
        Conflict: `if_version` is not the current version.
    """

    def terms(_current: Terms | None, logic: AnyAgent) -> Terms:
        return changed(default_terms(logic), new, logic)

    return await _make(pool, agent, new.logic or agent, new.if_version, terms, check_model)


async def change_configuration(
    pool: asyncpg.Pool, agent: str, new: NewVersion, check_model: CheckModel
) -> AgentConfiguration:
    """A new version like the current one but for the fields that are given; a null sets a field to its default.

    Raises: as `set_configuration` does.
    """

    def terms(current: Terms | None, logic: AnyAgent) -> Terms:
        return changed(default_terms(logic) if current is None else current, new, logic)

    return await _make(pool, agent, new.logic, new.if_version, terms, check_model)


async def use_version(pool: asyncpg.Pool, agent: str, use: UseVersion, check_model: CheckModel) -> AgentConfiguration:
    """A new version that says what an earlier one says.

    Raises: as `set_configuration` does. NotFound: there is no such version.
    """
    earlier = await AgentConfigurations(pool).at(agent, use.version)

    def terms(_current: Terms | None, logic: AnyAgent) -> Terms:
        return checked(earlier.terms, logic)

    return await _make(pool, agent, earlier.terms.logic, use.if_version, terms, check_model)


async def _make(
    pool: asyncpg.Pool,
    agent: str,
    logic: str | None,
    if_version: int | None,
    terms_from: Callable[[Terms | None, AnyAgent], Terms],
    check_model: CheckModel,
) -> AgentConfiguration:
    """Make a version. What other parts have to be asked for is asked before the transaction begins."""
    before = await _newest(pool, agent)
    chosen = await _logic(agent, logic or (agent if before is None else before.terms.logic))
    model = terms_from(None if before is None else before.terms, chosen).model
    if before is None or model != before.terms.model:
        await check_model(model)
    async with change_without_epoch(pool) as connection:
        await connection.execute(_TAKE_TURN, agent)
        row = await connection.fetchrow(_CURRENT, agent)
        current = None if row is None else _configuration(agent, row)
        version = 0 if current is None else current.version
        if if_version is not None and if_version != version:
            raise Conflict(
                f"Agent {agent!r} is at version {version}, and not at {if_version}: somebody has changed it in the meantime. "
                "Look at it again, and repeat what you still want to change.",
                code="version_conflict",
                param="if_version",
            )
        terms = terms_from(None if current is None else current.terms, chosen)
        check_approvers(agent, terms)
        if current is None or terms.approvers != current.terms.approvers:
            await _check_they_exist(connection, terms.approvers)
        _check_budget(agent, terms, await connection.fetchval(_MOST_PER_RUN, searchable(agent)))
        if current is not None and terms == current.terms:
            return current
        return await _insert(connection, agent, version + 1, terms)


async def _check_they_exist(connection: asyncpg.Connection, approvers: tuple[str, ...]) -> None:
    """Raises InvalidRequest: a key or a team that is named does not exist (any more), so nobody could decide."""
    for name in approvers:
        team, (agent, has_agent, key) = name.removeprefix("team:"), name.partition("/")
        if team != name:
            exists = await connection.fetchval(_TEAM, team)
            what = f"There is no team {team!r}"
        elif has_agent:
            exists = await connection.fetchval(_AGENTS_KEY, agent, key)
            what = f"There is no key {key!r} of agent {agent!r}"
        else:
            exists = await connection.fetchval(_ADMINS_KEY, name)
            what = f"There is no administrator's key {name!r}"
        if not exists:
            raise InvalidRequest(
                f"{what} that is in force, so nobody could approve by it. Name an administrator's key, AGENT/KEY or team:NAME.",
                param="approvers",
            )


def _check_budget(agent: str, terms: Terms, most_nano: int | None) -> None:
    if most_nano is not None and terms.budget_nano > most_nano:
        raise InvalidRequest(
            f"The budget, {format_dollars(terms.budget_nano)}, is above {format_dollars(most_nano)}, the most that an "
            f"administrator allows one run of agent {agent!r} (treasurer agent set --most-per-run).",
            param="budget",
        )


async def _insert(connection: asyncpg.Connection, agent: str, version: int, terms: Terms) -> AgentConfiguration:
    content = terms.content()
    row = await connection.fetchrow(_INSERT, agent, version, to_json(content), digest_of(content))
    assert row is not None
    if terms.concurrency is None:
        await connection.execute(_UNLIMIT, agent)
    else:
        await connection.execute(_LIMIT, agent, terms.concurrency)
    return _configuration(agent, row)


async def _newest(pool: asyncpg.Pool, agent: str) -> AgentConfiguration | None:
    """The newest version that was made, if any. Raises NotFound: there is no such agent."""
    rows = await fetch(pool, _CURRENT, searchable(agent))
    if rows:
        return _configuration(agent, rows[0])
    if agent not in names_of_logic() and not await fetch(pool, _IS_KNOWN, searchable(agent)):
        raise _no_agent(agent)
    return None


async def _logic(agent: str, name: str) -> AnyAgent:
    if name not in names_of_logic():
        raise InvalidRequest(
            f"Agent {agent!r} cannot have the logic {name!r}, which is not in the catalogue. The logic that there is: "
            f"{', '.join(names_of_logic())}.",
            param="logic",
        )
    return await asyncio.to_thread(find_agent, name)


async def _unconfigured(agent: str) -> AgentConfiguration:
    if agent not in names_of_logic():
        raise NotFound(
            f"There is no configuration of an agent {agent[:200]!r}, and no logic has this name. Configure it: treasurer agent "
            f"configure NAME --logic LOGIC. The logic that there is: {', '.join(names_of_logic())}.",
            param="agent",
        )
    # In a thread, because the first import loads PydanticAI.
    return AgentConfiguration(agent, 0, default_terms(await asyncio.to_thread(find_agent, agent)))


def _no_agent(agent: str) -> NotFound:
    return NotFound(
        f"There is no agent {agent[:200]!r}. Create it first (treasurer agent create), or see which there are (treasurer "
        f"agent list). These need not be created: {', '.join(names_of_logic())}.",
        param="agent",
    )


def _no_version(agent: str, version: int) -> NotFound:
    return NotFound(
        f"Agent {agent[:200]!r} has no version {version}. See which it has: treasurer agent versions {agent[:200]!r}.",
        param="version",
    )


def _configuration(agent: str, row: Record) -> AgentConfiguration:
    terms = read_terms(agent, row["version"], row["what"])
    return AgentConfiguration(agent, row["version"], terms, row["created_at"], row["made_by"])


class TriggerView(TriggerTerms, View):
    """What differs for the runs of one trigger."""


class ConfigurationView(Terms, View):
    """One version of an agent's configuration, for people. `version` 0: the defaults of the agent's code.

    A null in `reserve_nano`: all of the budget where nobody waits for a run, and nothing where somebody does.
    """

    agent: str
    version: int
    digest: str
    made_at: datetime | None
    made_by: str
    triggers: dict[TriggerKind, TriggerView]  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen: only read

    @classmethod
    def showing(cls, configuration: AgentConfiguration) -> ConfigurationView:
        """The view of a version."""
        about: dict[str, Any] = {
            "agent": configuration.agent,
            "version": configuration.version,
            "digest": configuration.digest.hex(),
            "made_at": configuration.made_at,
            "made_by": configuration.made_by,
        }
        return cls.model_validate({**configuration.terms.content(), **about}, strict=False)
