"""`treasurer agent configure|show|versions|use`: how an agent works, as versions that runs pin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.common import ExitCode, emit, fail
from gateway.cli.database import AfterId, AsJson, Limit, administer, print_more
from llm_service.administration.paging import DEFAULT
from llm_service.money import format_dollars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.configuration.inputs import NewVersion
    from agents.configuration.terms import AgentConfiguration, RunAmounts

_Name = Annotated[str, typer.Argument(metavar="NAME")]
_Version = Annotated[int, typer.Argument(metavar="VERSION", min=0, max=2**31 - 1)]
_IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", min=0, help="Only if this is the current version. 0: it was never configured."),
]

# What the agent is.
_Description = Annotated[str | None, typer.Option("--description", help="What it does, in one line.")]
_Logic = Annotated[str | None, typer.Option("--logic", help="The name of its logic, a module of agents/catalog.")]
_Model = Annotated[str | None, typer.Option("--model", help="The model that it asks; routes say which ones stand in.")]
_Prompt = Annotated[str | None, typer.Option("--prompt", help="The label of its prompt.")]
_Tools = Annotated[
    list[str] | None,
    typer.Option(
        "--tool",
        metavar="TOOL[=POLICY]",
        help="A tool that it may use; repeatable. Without any: all of its logic's. POLICY: how a repetition is made "
        "harmless, stricter than the tool declares: key or ask.",
    ),
]

# How much a run may use.
_Budget = Annotated[
    str | None, typer.Option("--budget", help="Dollars: the most that a run and its children may spend.")
]
_Reserve = Annotated[str | None, typer.Option("--reserve", help="Dollars of it that are held when a run starts.")]
_Triggers = Annotated[
    list[str] | None,
    typer.Option(
        "--trigger",
        metavar="KIND:BUDGET[,RESERVE]",
        help="Smaller amounts for runs that were started by a request, chat, schedule or webhook; repeatable.",
    ),
]
_TimeLimit = Annotated[str | None, typer.Option("--time-limit", help="How long a run may take, such as 30m.")]
_StepLimit = Annotated[int | None, typer.Option("--step-limit", help="How many steps a run may have.")]
_ResultLimit = Annotated[int | None, typer.Option("--result-limit", help="Bytes that the result of a step may have.")]
_Concurrency = Annotated[int | None, typer.Option("--concurrency", help="How many of its runs may go on at once.")]
_Priority = Annotated[
    int | None, typer.Option("--priority", help="From -100 to 100; the higher one is taken up first.")
]

# What happens to a run that meets an obstacle.
_OnBudget = Annotated[str | None, typer.Option("--on-budget", help="pause or fail, when a budget is used up.")]
_LostAnswer = Annotated[
    str | None, typer.Option("--lost-answer", help="buy_again or fail, when a paid answer is lost.")
]
_Keep = Annotated[str | None, typer.Option("--keep", help="none or steps: what is kept of answers after a run's end.")]
_KeepFor = Annotated[str | None, typer.Option("--keep-for", help="For how long, such as 30d.")]
_Session = Annotated[
    str | None, typer.Option("--session", help="queue, reject or replace: a message while its session has a run.")
]
_Approvers = Annotated[
    list[str] | None,
    typer.Option("--approver", help="Who may approve what it does: KEY, AGENT/KEY or team:NAME; repeatable."),
]
_ApprovalTime = Annotated[
    str | None, typer.Option("--approval-time", help="How long an approval may be decided, such as 3d.")
]
_Unanswered = Annotated[
    str | None, typer.Option("--unanswered", help="fail or refuse, when nobody decides an approval in time.")
]
_HistoryMessages = Annotated[
    int | None,
    typer.Option(
        "--history-messages", help="How many earlier messages of its session a run reads. 0: no conversations."
    ),
]
_HistoryBytes = Annotated[int | None, typer.Option("--history-bytes", help="How many bytes of them a run reads.")]
_ConversationFor = Annotated[
    str | None, typer.Option("--conversation-for", help="How long a conversation is kept after its last turn: 30d.")
]
_Engine = Annotated[str | None, typer.Option("--engine", help="own: what executes its runs.")]
_Defaults = Annotated[
    list[str] | None,
    typer.Option("--default", metavar="FIELD", help="A field that gets its default again, such as tools; repeatable."),
]


def configure(
    name: _Name,
    description: _Description = None,
    logic: _Logic = None,
    model: _Model = None,
    prompt: _Prompt = None,
    tool: _Tools = None,
    budget: _Budget = None,
    reserve: _Reserve = None,
    trigger: _Triggers = None,
    time_limit: _TimeLimit = None,
    step_limit: _StepLimit = None,
    result_limit: _ResultLimit = None,
    concurrency: _Concurrency = None,
    priority: _Priority = None,
    on_budget: _OnBudget = None,
    lost_answer: _LostAnswer = None,
    keep: _Keep = None,
    keep_for: _KeepFor = None,
    session: _Session = None,
    approver: _Approvers = None,
    approval_time: _ApprovalTime = None,
    unanswered: _Unanswered = None,
    history_messages: _HistoryMessages = None,
    history_bytes: _HistoryBytes = None,
    conversation_for: _ConversationFor = None,
    engine: _Engine = None,
    default: _Defaults = None,
    if_version: _IfVersion = None,
    json: AsJson = False,
) -> None:
    """Make a new version of an agent's configuration: the current one with what is given here."""
    from agents.configuration import versions

    new = _checked(
        {
            "description": description,
            "logic": logic,
            "model": model,
            "prompt": prompt,
            **_tools(tool),
            "budget": budget,
            "reserve": reserve,
            "triggers": _triggers(trigger),
            "time_limit": time_limit,
            "step_limit": step_limit,
            "result_limit": result_limit,
            "concurrency": concurrency,
            "priority": priority,
            "on_budget": on_budget,
            "lost_answer": lost_answer,
            "keep": keep,
            "keep_for": keep_for,
            "session": session,
            "approvers": approver,
            "approval_time": approval_time,
            "unanswered": unanswered,
            "history_messages": history_messages,
            "history_bytes": history_bytes,
            "conversation_for": conversation_for,
            "engine": engine,
            "if_version": if_version,
        },
        default or [],
    )
    print_configuration(
        administer(lambda pool: versions.change_configuration(pool, name, new, _check_model)), json=json
    )


def show(
    name: _Name,
    version: Annotated[
        int | None, typer.Option("--version", min=0, help="Another version than the current one.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show how an agent is configured."""
    from agents.configuration.versions import for_people

    print_configuration(
        administer(
            lambda pool: for_people(pool).current(name) if version is None else for_people(pool).at(name, version)
        ),
        json=json,
    )


def list_versions(name: _Name, limit: Limit = DEFAULT, after: AfterId = None, json: AsJson = False) -> None:
    """The versions of an agent's configuration, the newest first."""
    from agents.configuration.versions import ConfigurationView, for_people

    found = administer(lambda pool: for_people(pool).page(name, limit=limit, after=after))
    rows = (
        [ConfigurationView.showing(each).model_dump(mode="json") for each in found]
        if json
        else [
            {
                "version": each.version,
                "made at": each.made_at,
                "by": each.made_by,
                "model": each.terms.model,
                "budget": format_dollars(each.terms.budget_nano),
                "digest": each.digest.hex()[:12],
            }
            for each in found
        ]
    )
    emit(rows, json=json, empty=f"Agent {name} was never configured: it works by the defaults of its code.")
    print_more(found, lambda each: each.version)


def use(name: _Name, version: _Version, if_version: _IfVersion = None, json: AsJson = False) -> None:
    """Make a new version of an agent's configuration with the content of an earlier one."""
    from agents.configuration import versions
    from agents.configuration.inputs import UseVersion

    wanted = UseVersion(version=version, if_version=if_version)
    print_configuration(administer(lambda pool: versions.use_version(pool, name, wanted, _check_model)), json=json)


def print_configuration(configuration: AgentConfiguration, *, json: bool) -> None:
    """Print a version: in the admin API's format for programs, or as lines for people."""
    if json:
        from agents.configuration.versions import ConfigurationView

        emit([ConfigurationView.showing(configuration).model_dump(mode="json")], json=True)
        return
    for line in describe(configuration):
        typer.echo(line)


def describe(configuration: AgentConfiguration) -> list[str]:
    """A version as text for people."""
    from agents.configuration.terms import TriggerKind

    terms = configuration.terms
    made = (
        f"version {configuration.version}, made {configuration.made_at:%Y-%m-%d %H:%M:%S} UTC by {configuration.made_by}"
        if configuration.made_at is not None
        else "version 0, the defaults of its code"
    )
    policies = terms.tool_policies
    tools = "all of its logic's" if terms.tools is None else ", ".join(terms.tools) or "none"
    kept = f"steps for {_period(terms.keep_s)}" if terms.keep_s is not None else "nothing"
    lines = {
        "logic": terms.logic,
        "model": terms.model,
        "prompt": terms.prompt,
        "tools": tools,
        "tool policies": ", ".join(f"{tool} {policy}" for tool, policy in policies.items()) or None,
        **{f"{kind}": _money(configuration.money(kind)) for kind in TriggerKind},
        "time limit": _period(terms.time_limit_s),
        "step limit": str(terms.step_limit),
        "result limit": f"{terms.result_limit_bytes:,} bytes",
        "concurrency": "any number of runs" if terms.concurrency is None else f"{terms.concurrency} at once",
        "priority": str(terms.priority),
        "budget used up": terms.on_budget.value,
        "answer lost": terms.lost_answer.value,
        "kept": kept,
        "session": terms.session.value,
        "approvers": ", ".join(terms.approvers) or "any administrator",
        "approval time": "30d" if terms.approval_s is None else _period(terms.approval_s),
        "unanswered": terms.unanswered.value,
        "conversations": f"the last {terms.history_messages} messages, {terms.history_bytes:,} bytes, are read; kept for "
        f"{_period(terms.conversation_s)}"
        if terms.history_messages
        else "none",
        "engine": terms.engine,
    }
    width = max(map(len, lines))
    head = [f"Agent {configuration.agent}, {made}.", terms.description]
    return head + [f"  {name:<{width}}  {value}" for name, value in lines.items() if value is not None]


def _money(money: RunAmounts) -> str:
    return f"{format_dollars(money.budget_nano)} a run, {format_dollars(money.reserve_nano)} held at its start"


def _period(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _tools(given: Sequence[str] | None) -> dict[str, Any]:
    if not given:
        return {}
    parts = [each.partition("=") for each in given]
    return {
        "tools": [tool for tool, _, _ in parts],
        "tool_policies": {tool: policy for tool, sign, policy in parts if sign},
    }


def _triggers(given: Sequence[str] | None) -> dict[str, Any] | None:
    """`chat:0.10` or `chat:0.10,0.02`."""
    if not given:
        return None
    triggers: dict[str, Any] = {}
    for each in given:
        kind, colon, amounts = each.partition(":")
        budget, comma, reserve = amounts.partition(",")
        if not colon or not budget or (comma and not reserve):
            fail(f"--trigger: {each!r} is not KIND:BUDGET or KIND:BUDGET,RESERVE, such as chat:0.10", ExitCode.USAGE)
        if kind in triggers:
            fail(f"--trigger: {kind} is given twice", ExitCode.USAGE)
        triggers[kind] = {"budget": budget} | ({"reserve": reserve} if comma else {})
    return triggers


def _checked(typed: dict[str, Any], defaults: Sequence[str]) -> NewVersion:
    """The checked input, in which null stands for a field's default. A mistake ends the program."""
    from pydantic import ValidationError

    from agents.configuration.inputs import NewVersion
    from llm_service.administration.inputs import bad_input

    fields = {name: value for name, value in typed.items() if value is not None}
    if not fields.keys() - {"if_version"} and not defaults:
        fail("nothing is to be changed: name a field, such as --budget 0.50", ExitCode.USAGE)
    for name in defaults:
        if name in fields:
            fail(f"--default {name}: it is also given a value", ExitCode.USAGE)
    try:
        return NewVersion.model_validate({**fields, **dict.fromkeys(defaults)})
    except ValidationError as error:
        fail(bad_input(error.errors(include_url=False, include_context=False)).message, ExitCode.USAGE)


async def _check_model(model: str) -> None:
    """Refuse a model that the running stack does not have. If no stack runs, print that the model was not checked."""
    from gateway.composition import open_catalog
    from gateway.settings import load_settings
    from gateway.stack.state import NotRunning

    try:
        async with open_catalog(load_settings()) as runtime:
            await runtime.catalog.get(model)
    except NotRunning:
        typer.echo(f"note: no stack runs here, so it was not checked whether there is a model {model!r}.", err=True)
