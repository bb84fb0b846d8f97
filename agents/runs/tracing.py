"""The spans of runs: a run and all runs below it are one trace, whichever processes do them.

    run digest                     from the request to the end; exported by the process that ends it
    ├── start digest               the trigger; linked to the caller's own trace, if it sent a `traceparent`
    ├── attempt 1 of digest        one worker's claim
    │   ├── digest__model.request  a step; the governed call is below it, and LiteLLM's spans below that
    │   └── execute_tool read_feed
    ├── approval delete            from the question to the decision
    └── attempt 2 of digest

What must hold:
  The trace's id is the id of the root run, and a run's span has an id that is computed from the run's. So no process has to
      be asked or to remember where a span belongs, and a takeover changes nothing.
  Without an endpoint nothing is built, and OpenTelemetry is not loaded.
  No span has an input, an output, an argument or a prompt, unless the operator has asked for content.
  Nothing here delays, fails or changes a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

from agents.approvals.record import Approval, ApprovalState
from agents.recorded_json import to_json
from agents.runs.record import (
    LOST,
    Attempt,
    Ended,
    HandsOver,
    Kind,
    Outcome,
    Run,
    State,
    StepEnd,
    StepHead,
    StepState,
    Waits,
)
from llm_service.telemetry.record import TRACEPARENT, Attribute, SpanPlace, SpanRecord, span_id

#: Langfuse's kinds of observations.
_TYPES = {Kind.MODEL: "chain", Kind.TOOL: "tool", Kind.MCP: "tool", Kind.CHILD: "agent", Kind.OTHER: "span"}


class Observer(Protocol):
    """Where spans and counts go (`Telemetry` is one)."""

    def run_ended(self, agent: str, state: str) -> None: ...
    def run_step(self, kind: str, state: str, lost_nano: int) -> None: ...
    def run_taken_over(self) -> None: ...
    def working(self, runs: int, slots: int) -> None: ...

    @property
    def traced(self) -> bool: ...
    def span(self, record: SpanRecord) -> None: ...
    def within(self, place: SpanPlace, attributes: Mapping[str, object]) -> AbstractContextManager[None]: ...


def trace_id(root_id: UUID) -> int:
    """The trace of a run and of all runs below it."""
    return root_id.int


def place_of(run: Run) -> SpanPlace:
    """The span of a run."""
    return SpanPlace(trace_id(run.root_id), span_id("run", run.id))


def place_of_attempt(run: Run, fence: int) -> SpanPlace:
    """The span of one worker's claim of a run."""
    return SpanPlace(trace_id(run.root_id), span_id("attempt", run.id, fence))


def place_of_step(run: Run, fence: int, position: int) -> SpanPlace:
    """The span of a step, in the claim that does it."""
    return SpanPlace(trace_id(run.root_id), span_id("step", run.id, fence, position))


@dataclass(frozen=True, slots=True)
class RunTraces:
    """Exports spans of runs. `content`: with inputs, outputs and arguments, which are left out otherwise."""

    spans: Observer | None = None
    content: bool = False
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def to(self) -> Observer | None:
        """Where spans go. None: nowhere, so none is built."""
        return self.spans if self.spans is not None and self.spans.traced else None

    def started(self, run: Run) -> None:
        """A run was recorded. Its start is linked to the span of the caller, if that is in another trace."""
        if (to := self.to) is None:
            return
        asker = TRACEPARENT.get()
        is_elsewhere = asker is not None and f"-{trace_id(run.root_id):032x}-" not in asker
        place = SpanPlace(trace_id(run.root_id), span_id("start", run.id))
        to.span(
            SpanRecord(
                f"start {run.agent}",
                place,
                place_of(run).span_id,
                run.created_at,
                self.now(),
                _of_run(run) | {"langfuse.observation.type": "span"},
                link=asker if is_elsewhere else None,
            )
        )

    def attempt(self, run: Run, began_at: datetime, outcome: Outcome | None) -> None:
        """A worker let go of a run. None: it had lost it. `run` is as it was claimed."""
        if (to := self.to) is not None:
            to.span(_attempt(run, began_at, self.now(), outcome))

    def lost(self, run: Run, attempts: Sequence[Attempt]) -> None:
        """A run is taken up. If the worker that had it before is gone, it cannot have exported its attempt's span."""
        for each in attempts:
            if each.fence == run.fence - 1 and each.became == LOST:
                if self.spans is not None:
                    self.spans.run_taken_over()
                if (to := self.to) is not None:
                    before = replace(run, fence=each.fence)
                    to.span(_attempt(before, each.began_at, each.ended_at or self.now(), None))

    def approved(self, run: Run, approvals: Sequence[Approval], after: int) -> None:
        """A run is taken up again: the questions about steps after position `after` have an answer now."""
        if (to := self.to) is None:
            return
        for each in approvals:
            if each.position > after and each.state is not ApprovalState.PENDING:
                to.span(_approval(run, each, self.now()))

    def ended(self, run: Run) -> None:
        """A run has ended. `run` is as it was left."""
        if self.spans is not None and run.state.ended:
            self.spans.run_ended(run.agent, run.state)
        if (to := self.to) is None or not run.state.ended:
            return
        attributes = _of_run(run) | _outcome_of(run)
        if self.content:
            attributes |= {"langfuse.observation.input": to_json(run.input)}
            attributes |= {} if run.output is None else {"langfuse.observation.output": to_json(run.output)}
        to.span(
            SpanRecord(
                f"run {run.agent}", place_of(run), None if run.parent_id is None else span_id("run", run.parent_id),
                run.created_at, run.ended_at or self.now(), attributes,
                error=None if run.state is State.SUCCEEDED else str((run.error or {}).get("code", run.state)),
            )
        )  # fmt: skip

    def working(self, runs: int, slots: int) -> None:
        """So many runs are under way in this process, of so many that it can do at once."""
        if self.spans is not None:
            self.spans.working(runs, slots)

    def steps(self, run: Run) -> StepTraces:
        """The spans of the steps of a claim."""
        return StepTraces(self, run)


@dataclass(frozen=True, slots=True)
class StepTraces:
    """Exports spans of the steps that one worker does of one run."""

    traces: RunTraces
    run: Run

    def within(self, position: int) -> AbstractContextManager[None]:
        """What the step sends, and what its code observes, is below the step's span."""
        to = self.traces.to
        return nullcontext() if to is None else self._within(to, position)

    @contextmanager
    def _within(self, to: Observer, position: int) -> Iterator[None]:
        place = place_of_step(self.run, self.run.fence, position)
        token = TRACEPARENT.set(place.traceparent)
        try:
            with to.within(place, _propagated(self.run)):
                yield
        finally:
            TRACEPARENT.reset(token)

    def step(self, head: StepHead, end: StepEnd) -> None:
        """A step was recorded."""
        if (observer := self.traces.spans) is not None:
            observer.run_step(head.kind, end.state, end.lost_nano)
        if (to := self.traces.to) is None or end.state is StepState.UNKNOWN:
            return
        now = self.traces.now()
        attributes = _of_step(self.run, head, end)
        if self.traces.content and head.arguments is not None:
            attributes |= {"langfuse.observation.input": to_json(head.arguments)}
        to.span(
            SpanRecord(
                f"execute_tool {head.tool}" if head.tool is not None else head.name,
                place_of_step(self.run, self.run.fence, head.position),
                place_of_attempt(self.run, self.run.fence).span_id,
                now - timedelta(seconds=end.took_s), now, attributes,
                error=None if end.error is None else str(end.error.get("code", "error")),
            )
        )  # fmt: skip


NO_TRACES = RunTraces()


# -- what spans say


def _of_run(run: Run) -> dict[str, Attribute]:
    """What each span of a run says. The names for user, session and tags are those of OTLP and of Langfuse's SDK."""
    values: dict[str, Attribute | None] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": run.agent,
        "gen_ai.conversation.id": run.session,
        "treasurer.agent": run.agent,
        "treasurer.run": str(run.id),
        "treasurer.run_number": run.number,
        "treasurer.root_run": str(run.root_id),
        "treasurer.trigger": run.trigger.value,
        "treasurer.asked_by": run.asked_by,
        "treasurer.code_version": run.code_version,
        "langfuse.observation.type": "agent",
        "langfuse.trace.tags": list(run.tags) or None,
    }
    values |= dict.fromkeys(("langfuse.session.id", "session.id"), run.session)
    values |= dict.fromkeys(("langfuse.user.id", "user.id"), run.on_behalf_of)
    if run.parent_id is None:
        values["langfuse.trace.name"] = run.agent
    return {name: value for name, value in values.items() if value is not None}


def _propagated(run: Run) -> dict[str, object]:
    """What Langfuse's SDK gives each observation below a step."""
    values = {"user_id": run.on_behalf_of, "session_id": run.session, "tags": list(run.tags) or None}
    return {name: value for name, value in values.items() if value is not None}


def _outcome_of(run: Run) -> dict[str, Attribute]:
    values: dict[str, Attribute | None] = {
        "treasurer.state": run.state.value,
        "treasurer.cost_nano": run.cost_nano,
        "treasurer.lost_nano": run.lost_nano,
        "treasurer.budget_nano": run.budget_nano,
        "treasurer.claims": run.fence,
        "error.type": None if run.error is None else str(run.error.get("code", "error")),
    }
    return {name: value for name, value in values.items() if value is not None}


def _attempt(run: Run, began_at: datetime, now: datetime, outcome: Outcome | None) -> SpanRecord:
    error: str | None = None
    match outcome:
        case None:
            said, error = "lost", "lease_lost"
        case Ended():
            said = outcome.state.value
            error = None if outcome.error is None else str(outcome.error.get("code", "error"))
        case Waits():
            said = f"waits for {outcome.wait_for}"
        case HandsOver():
            said = "hands over"
    attributes = _of_run(run) | {
        "treasurer.claim": run.fence, "treasurer.outcome": said, "langfuse.observation.type": "span",
    }  # fmt: skip
    return SpanRecord(
        f"attempt {run.fence} of {run.agent}",
        place_of_attempt(run, run.fence),
        place_of(run).span_id,
        began_at,
        now,
        attributes,
        error,
    )


def _of_step(run: Run, head: StepHead, end: StepEnd) -> dict[str, Attribute]:
    values: dict[str, Attribute | None] = {
        "gen_ai.operation.name": None if head.tool is None else "execute_tool",
        "gen_ai.tool.name": head.tool,
        "treasurer.step": head.position,
        "treasurer.step_kind": head.kind.value,
        "treasurer.policy": head.policy.value,
        "treasurer.claim": run.fence,
        "treasurer.cost_nano": end.cost_nano,
        "treasurer.lost_nano": end.lost_nano,
        "treasurer.call_id": None if end.call_id is None else str(end.call_id),
        "error.type": None if end.error is None else str(end.error.get("code", "error")),
        "langfuse.observation.type": _TYPES[head.kind],
    }
    return _of_run(run) | {name: value for name, value in values.items() if value is not None}


def _approval(run: Run, approval: Approval, now: datetime) -> SpanRecord:
    values: dict[str, Attribute | None] = {
        "treasurer.approval": str(approval.id),
        "treasurer.step": approval.position,
        "treasurer.state": approval.state.value,
        "treasurer.asked_because": approval.why.value,
        "treasurer.decided_by": approval.decided_by,
        "treasurer.arguments_changed": approval.changed is not None,
        "gen_ai.tool.name": approval.tool,
        "langfuse.observation.type": "span",
    }
    return SpanRecord(
        f"approval {approval.tool}",
        SpanPlace(trace_id(run.root_id), span_id("approval", approval.id)),
        place_of(run).span_id,
        approval.asked_at,
        approval.decided_at or min(approval.expires_at, now),
        _of_run(run) | {name: value for name, value in values.items() if value is not None},
    )
