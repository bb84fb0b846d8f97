"""What an administrator gives as an agent's configuration, and the terms that it makes. Pure.

What must hold:
  A mistake is refused with the name of its field, and nothing is changed.
  A name that means nothing (a logic, a tool) is refused, with the names that there are. Whether a model exists is asked
      of the catalogue of models, by the caller.
  A field that is left out has its default: that of the agent's code, or else that of this module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from agents.approvals.record import Unanswered
from agents.configuration.terms import (
    STRICTNESS,
    Keep,
    LostAnswer,
    OnBudget,
    Terms,
    TriggerKind,
    TriggerTerms,
)
from agents.definition import AnyAgent
from agents.runs.record import Policy, SessionPolicy
from llm_service.administration.inputs import Amount, AmountOrZero, Duration, Input, Name, read_input
from llm_service.errors import InvalidRequest
from llm_service.money import format_dollars

_LONGEST = timedelta(days=366)
#: For what neither the administrator nor the agent's code says.
_HOUSE: Mapping[str, Any] = {
    "prompt": None,
    "tools": None,
    "tool_policies": {},
    "budget_nano": 1_000_000_000,
    "reserve_nano": None,
    "triggers": {},
    "time_limit_s": 86_400,
    "step_limit": 50,
    "result_limit_bytes": 1024 * 1024,
    "concurrency": None,
    "priority": 0,
    "on_budget": OnBudget.PAUSE,
    "lost_answer": LostAnswer.BUY_AGAIN,
    "keep": Keep.NONE,
    "keep_s": None,
    "session": SessionPolicy.QUEUE,
    "approvers": (),
    "engine": "own",
    "approval_s": None,
    "unanswered": Unanswered.FAIL,
    "history_messages": 200,
    "history_bytes": 128 * 1024,
    "conversation_s": 30 * 86_400,
}
#: The input's fields that are stored under another name, because they are stored in another unit.
_STORED = {
    "budget": "budget_nano",
    "reserve": "reserve_nano",
    "time_limit": "time_limit_s",
    "result_limit": "result_limit_bytes",
    "keep_for": "keep_s",
    "approval_time": "approval_s",
    "conversation_for": "conversation_s",
}


def _text(value: str) -> str:
    if not 1 <= len(value) <= 500 or not value.isprintable() or value.isspace():
        raise ValueError("a description is 1 to 500 printable characters, in one line")
    return value


def _model(value: str) -> str:
    if not 1 <= len(value) <= 128 or not value.isprintable() or any(sign in value for sign in " *?["):
        raise ValueError("a model is named, such as gpt-4o-mini, and is not a pattern")
    return value


def _tool(value: str) -> str:
    if not 1 <= len(value) <= 128 or not value.isprintable() or " " in value:
        raise ValueError("a tool is named by 1 to 128 printable characters without spaces")
    return value


def _approver(value: str) -> str:
    if not 1 <= len(value) <= 130 or not value.isprintable() or value.isspace():
        raise ValueError(
            "an approver is the name of an administrator's key, agent/key, or team:NAME: 1 to 130 printable characters"
        )
    return value


def _period(value: timedelta) -> timedelta:
    if not timedelta(seconds=1) <= value <= _LONGEST:
        raise ValueError("at least 1s and at most 366d")
    return value


def _engine(value: str) -> str:
    if value == "temporal":
        raise ValueError("the engine temporal is not built yet; use own")
    if value != "own":
        raise ValueError("the engine is own")
    return value


Description = Annotated[str, AfterValidator(_text)]
ModelName = Annotated[str, AfterValidator(_model)]
ToolName = Annotated[str, AfterValidator(_tool)]
Approver = Annotated[str, AfterValidator(_approver)]
Period = Annotated[Duration, AfterValidator(_period)]


class TriggerInput(Input):
    """Budget and reserve for the runs of one trigger, in dollars."""

    budget: Amount | None = None
    reserve: AmountOrZero | None = None


class TriggersInput(Input):
    """Amounts that differ by trigger."""

    request: TriggerInput | None = None
    chat: TriggerInput | None = None
    schedule: TriggerInput | None = None
    webhook: TriggerInput | None = None


class ConfigurationInput(Input):
    """The configuration of an agent. `budget`: the most that a run and its children spend; `reserve`: what is held when
    a run starts. Both are in dollars. Sizes are in bytes."""

    description: Description | None = None
    logic: Name | None = None
    model: ModelName | None = None
    prompt: Name | None = None
    tools: Annotated[list[ToolName], Field(max_length=100)] | None = None
    tool_policies: Annotated[dict[ToolName, Annotated[Policy, Field(strict=False)]], Field(max_length=100)] | None = (
        None
    )
    budget: Amount | None = None
    reserve: AmountOrZero | None = None
    triggers: TriggersInput | None = None
    time_limit: Period | None = None
    step_limit: Annotated[int, Field(ge=1, le=1000)] | None = None
    result_limit: Annotated[int, Field(ge=1024, le=16 * 1024 * 1024)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    on_budget: Annotated[OnBudget, Field(strict=False)] | None = None
    lost_answer: Annotated[LostAnswer, Field(strict=False)] | None = None
    keep: Annotated[Keep, Field(strict=False)] | None = None
    keep_for: Period | None = None
    session: Annotated[SessionPolicy, Field(strict=False)] | None = None
    approvers: Annotated[list[Approver], Field(max_length=20)] | None = None
    approval_time: Period | None = None
    unanswered: Annotated[Unanswered, Field(strict=False)] | None = None
    history_messages: Annotated[int, Field(ge=0, le=1_000)] | None = None
    history_bytes: Annotated[int, Field(ge=1024, le=4 * 1024 * 1024)] | None = None
    conversation_for: Period | None = None
    engine: Annotated[str, AfterValidator(_engine), WithJsonSchema({"type": "string", "enum": ["own"]})] | None = None


class NewVersion(ConfigurationInput):
    """A new version. With `if_version` it is made only if that version is the current one (0: the agent's defaults)."""

    if_version: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were given, with their values as `Terms` has them; None for a field that was given as null."""
        fields = self.model_fields_set - {"if_version"}
        return {_STORED.get(name, name): _stored(getattr(self, name)) for name in fields}


class UseVersion(Input):
    """An earlier version that is to be in force again; 0: the agent's defaults."""

    version: Annotated[int, Field(ge=0, le=2**31 - 1)]
    if_version: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


def _stored(value: object) -> object:
    match value:
        case timedelta():
            return int(value.total_seconds())
        case TriggersInput():
            by_kind = {kind: getattr(value, kind.value) for kind in TriggerKind}
            return {
                kind: TriggerTerms(budget_nano=each.budget, reserve_nano=each.reserve)
                for kind, each in by_kind.items()
                if each is not None
            }
        case list():
            return tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # texts, by the input's fields
        case _:
            return value


def default_terms(definition: AnyAgent) -> Terms:
    """The terms of an agent that nobody has configured: what its code says, and else what this module does.

    Raises:
        InvalidRequest: the code's defaults are not a configuration.
    """
    new = read_input(NewVersion, definition.defaults)
    own = {"description": definition.description, "logic": definition.name, "model": definition.model}
    return checked(Terms.model_validate({**_HOUSE, **own, **new.given()}), definition)


def changed(terms: Terms, new: NewVersion, definition: AnyAgent) -> Terms:
    """The terms with the fields that were given; a field that was given as null gets its default again.

    Raises:
        InvalidRequest: what comes out is not a configuration.
    """
    fields = {name: getattr(terms, name) for name in Terms.model_fields}
    given = new.given()
    if None in given.values():
        default = default_terms(definition)
        given = {name: getattr(default, name) if value is None else value for name, value in given.items()}
    if given.get("keep") is Keep.NONE and "keep_s" not in given:
        given["keep_s"] = None
    return checked(Terms.model_validate({**fields, **given}), definition)


def checked(terms: Terms, definition: AnyAgent) -> Terms:
    """The terms, if their parts fit each other and the logic.

    Raises:
        InvalidRequest: the first thing that does not; `param` names its field.
    """
    for param, fault in (*_faults_of_tools(terms, definition), *_faults_of_money(terms), *_other_faults(terms)):
        raise InvalidRequest(fault, param=param)
    return terms


def _faults_of_tools(terms: Terms, definition: AnyAgent) -> list[tuple[str, str]]:
    known, faults = definition.tools, list[tuple[str, str]]()
    allowed = known if terms.tools is None else terms.tools
    for tool in terms.tools or ():
        if tool not in known:
            faults.append(("tools", f"Logic {definition.name!r} has no tool {tool!r}. {_tools(known)}"))
    if len(set(terms.tools or ())) < len(terms.tools or ()):
        faults.append(("tools", "A tool is named twice."))
    for tool, policy in terms.tool_policies.items():
        if tool not in known or tool not in allowed:
            faults.append(
                ("tool_policies", f"A policy names the tool {tool!r}, which runs do not have. {_tools(allowed)}")
            )
        elif STRICTNESS.index(policy) < STRICTNESS.index(known[tool]):
            faults.append(
                (
                    "tool_policies",
                    f"The tool {tool!r} declares the policy {known[tool]}: a configuration may make it stricter, and "
                    f"{policy} is less strict. From the least strict: {', '.join(STRICTNESS)}.",
                )
            )
        elif policy is Policy.VERIFY is not known[tool]:
            faults.append(("tool_policies", f"The tool {tool!r} has no function that verifies: choose ask."))
    return faults


def _tools(names: Collection[str]) -> str:
    return f"The tools are: {', '.join(sorted(names))}." if names else "There are no tools."


def _faults_of_money(terms: Terms) -> list[tuple[str, str]]:
    faults = list[tuple[str, str]]()
    if terms.reserve_nano is not None and terms.reserve_nano > terms.budget_nano:
        faults.append(("reserve", _above("The reserve", terms.reserve_nano, "the budget", terms.budget_nano)))
    for kind, own in terms.triggers.items():
        budget = own.budget_nano or terms.budget_nano
        if budget > terms.budget_nano:
            place = f"triggers.{kind}.budget"
            faults.append((place, _above(f"The budget for a {kind}", budget, "the agent's", terms.budget_nano)))
        if own.reserve_nano is not None and own.reserve_nano > budget:
            place = f"triggers.{kind}.reserve"
            faults.append((place, _above(f"The reserve for a {kind}", own.reserve_nano, "its budget", budget)))
    return faults


def _above(what: str, amount: int, of: str, most: int) -> str:
    return f"{what}, {format_dollars(amount)}, is above {of}, {format_dollars(most)}."


def _other_faults(terms: Terms) -> list[tuple[str, str]]:
    faults = list[tuple[str, str]]()
    if terms.keep is Keep.STEPS and terms.keep_s is None:
        faults.append(("keep_for", "Say for how long steps are kept: keep_for, such as 30d."))
    if terms.keep is Keep.NONE and terms.keep_s is not None:
        faults.append(
            ("keep_for", "keep_for says for how long steps are kept: set keep to steps too, or leave it out.")
        )
    if len(set(terms.approvers)) < len(terms.approvers):
        faults.append(("approvers", "An approver is named twice."))
    return faults


def check_approvers(agent: str, terms: Terms) -> None:
    """Refuse an agent's own key as an approver: it would decide about itself. Raises InvalidRequest."""
    for name in terms.approvers:
        if name.partition("/")[0] == agent and "/" in name:
            raise InvalidRequest(
                f"Key {name!r} is the agent's own: it cannot approve what the agent does.", param="approvers"
            )
