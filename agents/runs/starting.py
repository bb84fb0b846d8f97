"""From a request to a recorded run. Every trigger starts runs here: a request, a command, later schedules and events.

What must hold:
  A request is checked before anything is written; what is written is all that any worker needs to do the run.
  A run pins the configuration that its agent has now. A change of the configuration reaches only runs that start later.
  I9  A run never has a larger budget than its agent's configuration allows, unless an administrator gives it.
  The same key is the same run, or a named conflict if the request is another one.

This module does not load what executes runs, so a gateway, which only starts them, stays small.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from pydantic import ValidationError

from agents.configuration.terms import AgentConfiguration, RunAmounts, TriggerKind
from agents.definition import AnyAgent
from agents.redaction import RedactionFailed, Seen, redacted
from agents.registry import BrokenLogic, find_agent
from agents.runs.code_version import CODE_VERSION
from agents.runs.record import NewRun, Run, SessionPolicy, Trigger
from agents.runs.store import RunStore
from llm_service.call.refusals import check_allowed
from llm_service.errors import Conflict, IdempotencyConflict, InvalidRequest, NotFound, NotPermitted
from llm_service.ids import new_call_id
from llm_service.money import format_dollars
from llm_service.types import Principal

#: The field of an agent's input that takes what a person says in a chat.
MESSAGE = "message"
#: Which amounts of a configuration are for which trigger; those that are not here are requests.
_KINDS = {
    Trigger.SCHEDULE: TriggerKind.SCHEDULE,
    Trigger.WEBHOOK: TriggerKind.WEBHOOK,
    Trigger.EVENT: TriggerKind.WEBHOOK,
}


class PrincipalSource(Protocol):
    """Reads who pays for an agent's calls."""

    async def by_agent(self, name: str) -> Principal: ...


class Configurations(Protocol):
    """Reads agents' configurations (`AgentConfigurations` does)."""

    async def current(self, agent: str) -> AgentConfiguration: ...


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A trigger's request for a run. What it leaves out is as the agent is configured.

    `key` names what started the run: the same key again is the same run. It is the trigger's to make it unique among all
    runs. `may_raise`: an administrator asks, who may give a run more than the configuration does. `session`: the conversation
    that the run goes on with, and `on_session` what becomes of the run while another one of the session has not ended.
    """

    agent: str
    input: Mapping[str, Any] = field(default_factory=dict[str, Any])
    trigger: Trigger = Trigger.REQUEST
    key: str | None = None
    id: UUID | None = None
    model: str | None = None
    budget_nano: int | None = None
    reserve_nano: int | None = None
    may_raise: bool = False
    priority: int | None = None
    time_limit_s: float | None = None
    session: str | None = None
    on_session: SessionPolicy | None = None
    asked_by: str | None = None
    on_behalf_of: str | None = None  # the user that reports and budgets see
    tags: tuple[str, ...] = ()
    parent: Run | None = None  # the run that starts this one


#: Pays for a run that is about to be recorded: its id, and what it may spend and holds at its start.
Pay = Callable[[UUID, RunAmounts], Awaitable[RunAmounts]]


@dataclass(frozen=True, slots=True)
class RunStarter:
    """Records runs, for a worker to take up."""

    store: RunStore
    principals: PrincipalSource
    configurations: Configurations
    code_version: str = CODE_VERSION
    find: Callable[[str], AnyAgent] = find_agent

    async def start(self, request: StartRequest, *, pay: Pay | None = None) -> Run:
        """Record a run. `pay` is called just before, once nothing else can refuse the run, and returns the run's amounts.

        Raises:
            NotFound: there is no such agent. InvalidRequest: the input does not fit the agent, or a number cannot be.
            Conflict: a run of the session has not ended, and the start is rejected then; or the session is another user's.
            Paused: the agent may not spend. IdempotencyConflict: the key has a run that was asked for otherwise.
            BrokenLogic: the agent's code cannot be used. RedactionFailed: the input cannot be redacted. TreasuryUnavailable: Postgres is away.
        """
        _check_numbers(request)
        principal = await self.principals.by_agent(request.agent)
        check_allowed(principal, "", time.monotonic())
        time_limit_s = None if request.parent is None else _check_parent(request, request.parent, principal)
        configuration = await self.configurations.current(request.agent)
        if request.model is not None:
            terms = configuration.terms.model_copy(update={"model": request.model})
            configuration = replace(configuration, terms=terms)
        # In a thread, because the first import of an agent's code loads PydanticAI, which takes seconds.
        definition = await asyncio.to_thread(self.find, configuration.terms.logic)
        given = _redacted_input(request.agent, definition, read_input(request.agent, definition, request.input))
        money, run_id = money_of(configuration, request), request.id or new_call_id()
        if pay is not None:
            money = await pay(run_id, money)
        limits_s = (_time_limit_s(configuration, request), time_limit_s)
        new = NewRun(
            id=run_id,
            agent=request.agent,
            organisation_id=principal.organisation_id,
            team_id=principal.team_id,
            input=given,
            configuration=configuration.pinned(),
            code_version=self.code_version,
            trigger=request.trigger,
            trigger_key=request.key,
            root_id=None if request.parent is None else request.parent.root_id,
            parent_id=None if request.parent is None else request.parent.id,
            session=request.session,
            on_session=request.on_session or configuration.terms.session,
            conversation_s=configuration.terms.conversation_s if configuration.terms.history_messages else None,
            asked_by=request.asked_by,
            on_behalf_of=request.on_behalf_of,
            tags=request.tags,
            priority=configuration.terms.priority if request.priority is None else request.priority,
            time_limit_s=min(each for each in limits_s if each is not None),
            budget_nano=money.budget_nano,
            reserve_nano=money.reserve_nano,
        )
        run = await self.store.add(new)
        if run.id != new.id:
            _check_same(run, request)
        return run

    async def takes_messages(self, agent: str) -> bool:
        """Whether there is such an agent, and a person can chat with it: its input has a `message`, which is enough alone."""
        try:
            configuration = await self.configurations.current(agent)
            definition = await asyncio.to_thread(self.find, configuration.terms.logic)
        except (NotFound, BrokenLogic, Conflict):  # Conflict: a later release has configured it
            return False
        fields = definition.input_type.model_fields
        return MESSAGE in fields and not any(name != MESSAGE and field.is_required() for name, field in fields.items())

    async def retry(self, run: Run, *, decides: bool = True, budget_nano: int | None = None) -> Run:
        """Queue a run again (`RunStore.retry`), with a larger budget if an administrator gives it one.

        Raises:
            InvalidRequest: the budget is not above the run's, or is above what one run of the agent may spend.
            As `RunStore.retry` does.
        """
        if budget_nano is not None:
            check_raise(run, budget_nano, await self.configurations.current(run.agent))
        return await self.store.retry(run.id, decides=decides, budget_nano=budget_nano)


def check_raise(run: Run, budget_nano: int, configuration: AgentConfiguration) -> None:
    """Raises InvalidRequest if a run cannot go on with this budget."""
    if run.budget_nano is None or budget_nano <= run.budget_nano:
        has = "no budget" if run.budget_nano is None else f"a budget of {format_dollars(run.budget_nano)}"
        raise InvalidRequest(
            f"Run {run.id} has {has}, which can only be raised; {format_dollars(budget_nano)} was asked for.",
            param="budget",
        )
    most = configuration.most_per_run_nano
    if most is not None and budget_nano > most:
        raise InvalidRequest(
            f"One run of agent {run.agent!r} may spend at most {format_dollars(most)}; {format_dollars(budget_nano)} was "
            "asked for. Raise that first: treasurer agent set NAME --most-per-run.",
            param="budget",
        )


def _redacted_input(agent: str, definition: AnyAgent, given: dict[str, Any]) -> dict[str, Any]:
    """The input as it is stored, and as the run gets it. Raises RedactionFailed."""
    if definition.redact is None:
        return given
    try:
        return read_input(agent, definition, redacted(definition.redact, Seen.INPUT, given))
    except (InvalidRequest, TypeError, ValueError):
        raise RedactionFailed(
            f"What the redaction of agent {agent!r} leaves of this input does not fit its input type."
        ) from None


def _time_limit_s(configuration: AgentConfiguration, request: StartRequest) -> float:
    """How long the run may take. Raises InvalidRequest: longer than the configuration says, and no administrator asks."""
    most_s, asked_s = configuration.terms.time_limit_s, request.time_limit_s
    if asked_s is not None and asked_s > most_s and not request.may_raise:
        raise InvalidRequest(
            f"A run of agent {request.agent!r} may take at most {most_s} s (version {configuration.version} of its "
            f"configuration); {asked_s:g} s were asked for.",
            param="time_limit",
        )
    return most_s if asked_s is None else asked_s


def money_of(configuration: AgentConfiguration, request: StartRequest) -> RunAmounts:
    """What the run may spend, and what is held at its start. Raises InvalidRequest as `AgentConfiguration.money` does."""
    kind = TriggerKind.CHAT if request.session is not None else _KINDS.get(request.trigger, TriggerKind.REQUEST)
    return configuration.money(
        kind, budget_nano=request.budget_nano, reserve_nano=request.reserve_nano, may_raise=request.may_raise
    )


def read_input(agent: str, definition: AnyAgent, given: Mapping[str, Any]) -> dict[str, Any]:
    """A run's input as it is recorded. Raises InvalidRequest if it does not fit the agent's input type."""
    try:
        value = definition.input_type.model_validate(dict(given))
    except ValidationError as error:
        first, *_ = problems = error.errors(include_input=False, include_url=False)
        told = "; ".join(f"{'.'.join(map(str, each['loc']))[:80]}: {each['msg']}" for each in problems[:5])
        raise InvalidRequest(
            f"Agent {agent!r} cannot run with this input: {told}.",
            param=".".join(["input", *map(str, first["loc"])])[:80],
        ) from None
    recorded: dict[str, Any] = value.model_dump(mode="json")
    return recorded


def time_left_s(run: Run) -> float:
    """How many seconds a run has until its deadline, at least one."""
    return max(1.0, (run.deadline_at - datetime.now(UTC)).total_seconds())


def _check_parent(request: StartRequest, parent: Run, principal: Principal) -> float:
    """How much time a child may take at most. Raises NotPermitted: it is another organisation's."""
    if principal.organisation_id != parent.organisation_id:
        raise NotPermitted(
            f"Agent {request.agent!r} belongs to another organisation than run {parent.id}.", param="agent"
        )
    return time_left_s(parent)


def _check_numbers(request: StartRequest) -> None:
    if request.on_session is not None and request.session is None:
        raise InvalidRequest(
            "on_session says what becomes of a run of a session: name the session too.", param="on_session"
        )
    if request.time_limit_s is not None and not 0 < request.time_limit_s <= 366 * 86_400:
        raise InvalidRequest("A run's time limit is more than 0 seconds and at most a year.", param="time_limit")
    if request.priority is not None and not -100 <= request.priority <= 100:
        raise InvalidRequest("A run's priority is from -100 to 100.", param="priority")
    if request.reserve_nano is not None and request.reserve_nano < 0:
        raise InvalidRequest("A run's reserve is not below $0.", param="reserve")


def _check_same(found: Run, request: StartRequest) -> None:
    """Raises IdempotencyConflict: the run of this key was asked for otherwise. The store has compared agent and input.

    What neither request says is as the configuration was, which may have changed meanwhile, so it is not compared.
    """
    asked = {
        "session": (found.session, request.session),
        "user": (found.on_behalf_of, request.on_behalf_of),
        "tags": (found.tags, request.tags),
        "budget": (found.budget_nano, found.budget_nano if request.budget_nano is None else request.budget_nano),
        "reserve": (found.reserve_nano, found.reserve_nano if request.reserve_nano is None else request.reserve_nano),
        "priority": (found.priority, found.priority if request.priority is None else request.priority),
    }
    other = [name for name, (then, now) in asked.items() if then != now]
    if other:
        raise IdempotencyConflict(
            f"This key has started run {found.id}, with another {', '.join(other)}. Use a new key for another run.",
            param=other[0],
            details={"run": str(found.id)},
        )
