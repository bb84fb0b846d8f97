"""What one version of an agent's configuration says, and what it means for a run. Pure.

What must hold:
  A version is whole: it has every field, so that a later change of an agent's defaults in the code does not change it.
  What a version says and is not understood here is refused, and never ignored: it may be a stricter policy of a newer
      release.
  No run holds more than its budget, and no trigger's budget is above the agent's.
  A policy may make a tool stricter than its author declared it, and never less strict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.approvals.record import Unanswered
from agents.recorded_json import digest_of
from agents.runs.record import Policy, SessionPolicy
from llm_service.errors import Conflict, InvalidRequest
from llm_service.money import MAX_NANO, format_dollars

#: From the least strict to the strictest.
STRICTNESS = (Policy.READ, Policy.KEY, Policy.VERIFY, Policy.ASK)


class TriggerKind(StrEnum):
    """What starts a run, where budget and reserve may differ. A command is a request; an event is a webhook."""

    REQUEST = "request"
    CHAT = "chat"
    SCHEDULE = "schedule"
    WEBHOOK = "webhook"


#: The triggers that nobody waits for. Their runs hold all of their budget before they start: one that has begun then
#: comes to its end. Runs that somebody waits for hold nothing at first: their first call takes what it needs.
UNATTENDED = frozenset({TriggerKind.SCHEDULE, TriggerKind.WEBHOOK})


class OnBudget(StrEnum):
    """What becomes of a run that has used up a budget: it waits for money, or it fails."""

    PAUSE = "pause"
    FAIL = "fail"


class LostAnswer(StrEnum):
    """What a run does if the answer to a call that was paid is lost: it asks again, once for a step, or it fails."""

    BUY_AGAIN = "buy_again"
    FAIL = "fail"


class Keep(StrEnum):
    """What is kept of a run's answers and results after its end. What it cost and did is kept in any case."""

    NONE = "none"
    STEPS = "steps"


Nano = Annotated[int, Field(ge=1, le=MAX_NANO)]
NanoOrNothing = Annotated[int, Field(ge=0, le=MAX_NANO)]


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TriggerTerms(_Stored):
    """Other amounts for the runs of one trigger. None: the agent's."""

    budget_nano: Nano | None = None
    reserve_nano: NanoOrNothing | None = None


class Terms(_Stored):
    """What one version says. Lists and texts are bounded where they are given (`inputs.py`).

    `prompt` is a label. `tools` None: all of the logic's. `reserve_nano` None: what the kind of trigger is used to
    (`UNATTENDED`). `concurrency` None: any number of runs at once. `approval_s` None: an approval may be decided as long as the
    run may wait (30 days in all). `history_messages` 0: runs have no conversations, whatever session they name.
    """

    description: str
    logic: str
    model: str
    prompt: str | None
    tools: tuple[str, ...] | None
    tool_policies: dict[str, Policy]
    budget_nano: Nano
    reserve_nano: NanoOrNothing | None
    triggers: dict[TriggerKind, TriggerTerms]
    time_limit_s: Annotated[int, Field(ge=1)]
    step_limit: Annotated[int, Field(ge=1)]
    result_limit_bytes: Annotated[int, Field(ge=1)]
    concurrency: Annotated[int, Field(ge=1)] | None
    priority: int
    on_budget: OnBudget
    lost_answer: LostAnswer
    keep: Keep
    keep_s: Annotated[int, Field(ge=1)] | None
    session: SessionPolicy
    approvers: tuple[str, ...]
    engine: Literal["own"]
    approval_s: Annotated[int, Field(ge=1)] | None = None
    unanswered: Unanswered = Unanswered.FAIL
    history_messages: Annotated[int, Field(ge=0)] = 200
    history_bytes: Annotated[int, Field(ge=1)] = 128 * 1024
    conversation_s: Annotated[int, Field(ge=1)] = 30 * 86_400

    def content(self) -> dict[str, Any]:
        """The terms as JSON."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class RunAmounts:
    """What a run may spend in all, and how much of that is held for it when it starts."""

    budget_nano: int
    reserve_nano: int


@dataclass(frozen=True, slots=True)
class AgentConfiguration:
    """One version of an agent's configuration. Version 0 is the defaults of the agent's code, which nobody has made."""

    agent: str
    version: int
    terms: Terms
    made_at: datetime | None = None
    made_by: str = ""
    #: What an administrator allows a run of this agent at most, whatever the version says. It is in no version.
    most_per_run_nano: int | None = None

    @property
    def digest(self) -> bytes:
        """The digest of what the version says; two versions that say the same have the same."""
        return digest_of(self.terms.content())

    def pinned(self) -> dict[str, Any]:
        """The version as JSON, for a run's record: whatever changes later, the run keeps it. See `unpinned`."""
        return {"version": self.version, "terms": self.terms.content()}

    def money(
        self,
        kind: TriggerKind,
        *,
        budget_nano: int | None = None,
        reserve_nano: int | None = None,
        may_raise: bool = False,
    ) -> RunAmounts:
        """What a run of this trigger may spend, and what is held for it.

        The trigger may ask for less. Only an administrator may ask for more (`may_raise`), up to what one run of the agent may spend.

        Raises:
            InvalidRequest: the budget that was asked for is zero or above the configured one, or the reserve is not a
                part of the budget.
        """
        terms, own = self.terms, self.terms.triggers.get(kind, TriggerTerms())
        most = min(own.budget_nano or terms.budget_nano, self.most_per_run_nano or MAX_NANO)
        budget = most if budget_nano is None else budget_nano
        if not 0 < budget <= ((self.most_per_run_nano or MAX_NANO) if may_raise else most):
            raise InvalidRequest(
                f"A run of agent {self.agent!r} by a {kind} may have a budget of at most {format_dollars(most)} "
                f"(version {self.version} of its configuration), and of more than nothing; {format_dollars(budget)} was "
                "asked for. An administrator can raise it: treasurer agent configure, or --most-per-run of treasurer agent set.",
                param="budget",
            )
        if reserve_nano is not None and not 0 <= reserve_nano <= budget:
            raise InvalidRequest(
                f"A reserve of {format_dollars(reserve_nano)} is no part of the run's budget of {format_dollars(budget)}.",
                param="reserve",
            )
        for reserve in (reserve_nano, own.reserve_nano, terms.reserve_nano):
            if reserve is not None:
                return RunAmounts(budget, min(reserve, budget))
        return RunAmounts(budget, budget if kind in UNATTENDED else 0)

    def allows(self, tool: str) -> bool:
        """Whether runs may use this tool of the logic."""
        return self.terms.tools is None or tool in self.terms.tools

    def policy(self, tool: str, declared: Policy) -> Policy:
        """How a repetition of a tool is made harmless: the stricter one of what it declares and what is configured."""
        return max(declared, self.terms.tool_policies.get(tool, declared), key=STRICTNESS.index)


def unpinned(agent: str, pinned: Mapping[str, Any]) -> AgentConfiguration:
    """The configuration that a run has pinned. Raises Conflict as `read_terms` does."""
    version = int(pinned["version"])
    return AgentConfiguration(agent, version, read_terms(agent, version, json.dumps(pinned["terms"])))


def read_terms(agent: str, version: int, text: str) -> Terms:
    """The terms of a version, from the JSON that is stored.

    Raises:
        Conflict: this release does not understand all of it.
    """
    try:
        return Terms.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise Conflict(
            f"Version {version} of agent {agent!r} says something that this release of Treasurer does not understand "
            f"({place}: {problem['msg']}). Use the release that made it, or make a new version.",
            code="agent_version_not_understood",
            param=place or None,
        ) from None
