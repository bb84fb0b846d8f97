"""A run for people to read: its story as a tree, and its events as lines.

What must hold:
The words of a model or of a caller are printed as plain text, so that they cannot control a terminal.
Money is printed exactly.
"""

from __future__ import annotations

import json as json_
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from gateway.cli.reports import printable
from llm_service.money import format_dollars

if TYPE_CHECKING:
    from uuid import UUID

    from agents.approvals.record import Approval
    from agents.runs.events import Event
    from agents.runs.record import Attempt, Run, Spent, Step

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class History:
    """Which workers had a run, and what it has asked people."""

    attempts: Sequence[Attempt] = ()
    asked: Sequence[Approval] = ()


_NO_HISTORY = History()


def format_story(
    run: Run,
    spent: Spent,
    steps: Mapping[UUID, Sequence[Step]],
    below: Sequence[Run] = (),
    history: Mapping[UUID, History] | None = None,
) -> Tree:
    """A run's story as a tree: what is known of it, its steps, and the runs below it. `steps` and `history` are by the id of a
    run."""
    history = history or {}
    tree = Tree(_title(run), guide_style="dim")
    for label, text in facts(run, spent):
        tree.add(Text.assemble((f"{label:<9}", "dim"), text))
    _add_steps(tree, steps[run.id])
    _add_history(tree, history.get(run.id, _NO_HISTORY))
    branches = {run.id: tree}
    for each in below:
        branch = branches.get(each.parent_id or run.id, tree).add(_title(each))
        branches[each.id] = branch
        _add_steps(branch, steps[each.id])
        _add_history(branch, history.get(each.id, _NO_HISTORY))
        if each.error is not None:
            branch.add(Text(_stopped(each.error), style="red"))
    return tree


def format_state(run: Run) -> str:
    """A run's state, and what it waits for."""
    return run.state if run.wait_for is None else f"{run.state} for {run.wait_for}"


def _title(run: Run) -> Text:
    colour = {"succeeded": "green", "failed": "red", "dead": "red", "expired": "red"}.get(run.state, "yellow")
    return Text.assemble(("run ", "bold"), str(run.id), f" (number {run.number}) of agent ", (printable(run.agent), "bold"), ": ", (format_state(run), colour))  # fmt: skip


def facts(run: Run, spent: Spent) -> list[tuple[str, str]]:
    """What is known of a run besides its steps: a word and a line for each."""
    version = run.configuration.get("version")
    found = [("asked by", _asked(run))]
    found.append(("version", f"configuration {'?' if version is None else version}, code {run.code_version}"))
    found.append(("time", _time(run)))
    of = "" if run.budget_nano is None else f" of {format_dollars(run.budget_nano)}"
    lost = f", {format_dollars(spent.lost_nano)} of it for answers that were lost" if spent.lost_nano else ""
    tree = f"; {format_dollars(spent.tree_nano)} with the runs below it" if spent.tree_nano != spent.cost_nano else ""
    found.append(("cost", f"{format_dollars(spent.cost_nano)}{of}{lost}{tree}"))
    if run.forked_from is not None:
        found.append(("fork", f"of run {run.forked_from}, with its first {run.forked_steps} steps"))
    if run.parent_id is not None:
        found.append(("parent", str(run.parent_id)))
    found.append(("input", _short(run.input)))
    if run.output is not None:
        found.append(("output", _short(run.output)))
    if run.error is not None:
        found.append(("stopped", _stopped(run.error)))
    return found


def _asked(run: Run) -> str:
    words = [printable(run.asked_by or "nobody known"), f"by {run.trigger}"]
    if run.on_behalf_of:
        words.append(f"for {printable(run.on_behalf_of)}")
    if run.session:
        words.append(f"in session {printable(run.session)}")
    if run.tags:
        words.append(f"tagged {printable(', '.join(run.tags))}")
    return ", ".join(words)


def _time(run: Run) -> str:
    words = [f"asked for at {run.created_at:%Y-%m-%d %H:%M:%S} UTC"]
    if run.started_at is not None:
        words.append(f"begun after {_seconds(run.started_at - run.created_at)}")
    if run.ended_at is not None and run.started_at is not None:
        words.append(f"ended after {_seconds(run.ended_at - run.started_at)} more")
    if run.fence > 1:
        words.append(f"taken up {run.fence} times")
    if not run.state.ended:
        word = "may wait" if run.state == "waiting" and run.wait_for != "time" else "may take"
        words.append(f"{word} until {run.deadline_at:%Y-%m-%d %H:%M:%S} UTC")
    return ", ".join(words)


def _stopped(error: dict[str, Any]) -> str:
    step = error.get("step")
    at = "" if step is None else f" (at step {step})"
    return printable(f"{error.get('code', 'error')}: {error.get('message', '')}{at}")


def _add_steps(tree: Tree, steps: Sequence[Step]) -> None:
    for step in steps:
        branch = tree.add(format_step(step))
        if step.head.arguments not in (None, {}):
            branch.add(Text(_short(step.head.arguments), style="dim"))
        if step.error is not None:
            branch.add(Text(_stopped(step.error), style="red"))


def _add_history(tree: Tree, history: History) -> None:
    """What it has asked people; and who had it, unless that was one worker only."""
    for each in history.asked:
        tree.add(Text.assemble((f"{'asked':<9}", "dim"), format_asked(each)))
    if len(history.attempts) > 1:
        branch = tree.add(Text("attempts", style="dim"))
        for each in history.attempts:
            branch.add(Text(format_attempt(each), style="red" if each.became == "lost" else ""))


def format_attempt(attempt: Attempt) -> str:
    """A claim in a line: who had the run, from when, for how long, and how that ended."""
    words = [f"claim {attempt.fence}  worker {str(attempt.owner)[:8]}  from {attempt.began_at:%Y-%m-%d %H:%M:%S} UTC"]
    if attempt.ended_at is None:
        return f"{words[0]}  has it"
    words.append(_seconds(attempt.ended_at - attempt.began_at))
    became = {"queued": "handed it over", "lost": "was gone; another worker took it over"}
    waits = "" if attempt.wait_for is None else f" for {attempt.wait_for}"
    words.append(became.get(attempt.became or "", f"left it {attempt.became}{waits}"))
    return "  ".join(words)


def format_asked(approval: Approval) -> str:
    """A question in a line: about what, who may decide until when, or who has decided what, and why."""
    why = "before its call" if approval.why == "before" else "because nobody knows whether it was done"
    words = [
        f"about step {approval.position}, {printable(approval.tool)}, {why}, at {approval.asked_at:%Y-%m-%d %H:%M:%S} UTC"
    ]
    if approval.state == "pending":
        who = ", ".join(map(printable, approval.approvers)) or "any administrator"
        words.append(f"may be decided by {who} until {approval.expires_at:%Y-%m-%d %H:%M:%S} UTC")
        words.append(f"treasurer approvals show {approval.id}")
    elif approval.decided_by is None or approval.decided_at is None:
        words.append(str(approval.state))
    else:
        words.append(
            f"{approval.state} by {printable(approval.decided_by)} after {_seconds(approval.decided_at - approval.asked_at)}"
        )
    if approval.changed is not None:
        words.append(f"with other arguments: {_short(approval.changed)}")
    if approval.reason:
        words.append(f"reason: {printable(approval.reason)}")
    return "; ".join(words)


def format_step(step: Step) -> Text:
    """One step in a line: its position, what it was, how it ended, how long it took and what it cost."""
    head = step.head
    what = printable(head.tool or head.name)
    words = [f"{head.position:>3} {head.kind:<5} {what}"]
    if head.tool is not None:
        words.append(f"({head.policy})")
    if step.state != "done":
        words.append("to be done (again)" if step.again else str(step.state))
    if step.started_at is not None and step.ended_at is not None:
        words.append(_seconds(step.ended_at - step.started_at))
    if step.cost_nano:
        words.append(format_dollars(step.cost_nano))
    if step.lost_nano:
        words.append(f"({format_dollars(step.lost_nano)} lost)")
    if step.fence != 1:
        words.append("taken over" if step.fence == 0 else f"claim {step.fence}")
    return Text("  ".join(words))


def format_event(event: Event, *, json: bool) -> str:
    """An event in a line: JSON for programs, or words."""
    if json:
        return json_.dumps({"id": event.shown.id, "event": event.name, **event.data}, default=str)
    data = event.data
    words = [event.name]
    if "position" in data:
        what = data.get("tool") or data.get("name") or data.get("text") or ""
        words.append(f"{data['position']} {data.get('kind', '')} {printable(what)}".rstrip())
    if data.get("cost_nano"):
        words.append(format_dollars(data["cost_nano"]))
    if data.get("wait_for"):
        words.append(f"for {data['wait_for']}")
    if "error" in data:
        words.append(_stopped(data["error"]))
    return "  ".join(words)


def runs_below(run: Run, tree: Sequence[Run]) -> list[Run]:
    """The runs below a run, parents before their children, of all runs of its tree."""
    known = {run.id}
    found: list[Run] = []
    for each in sorted(tree, key=lambda one: one.number):
        if each.parent_id in known:
            known.add(each.id)
            found.append(each)
    return found


def _seconds(span: timedelta) -> str:
    seconds = max(0.0, span.total_seconds())
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _short(value: object) -> str:
    text = printable(json_.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text):,} characters)"
