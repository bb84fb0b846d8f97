"""What persons have decided about the steps of one run, and the question if nobody has decided yet. Pure.

What must hold (I8):
  A tool whose policy is `ask` is called only with arguments that a person has approved. A refusal is the tool's answer.
  An answer in a tool's place never says that a call was not made that may have been made.
  Arguments that a person has put in place of the model's reach the tool, or the run fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.approvals.deciding import digest_of_call
from agents.approvals.record import Approval, ApprovalState, NewApproval, Unanswered, Why
from agents.recorded_json import to_json
from agents.runs.failures import Diverged, PersonNeeded, RunFailed, as_json
from agents.runs.record import StepHead
from agents.tools.policy import Happened
from llm_service.ids import new_call_id


@dataclass(frozen=True, slots=True)
class _Announced:
    """The tool call that comes next. `changed`: a person has put its arguments in place of the model's."""

    position: int
    schema: dict[str, Any] | None
    changed: bool


@dataclass(slots=True)
class Decisions:
    """`approvals` has the newest approval of each step of which a person was asked, and `changes` those with which a person
    has changed arguments."""

    unanswered: Unanswered
    approvals: Mapping[int, Approval]
    changes: Mapping[int, Approval]
    _announced: _Announced | None = field(default=None, init=False)

    @classmethod
    def among(cls, approvals: Sequence[Approval], unanswered: Unanswered) -> Decisions:
        """The decisions among a run's approvals, which are in the order in which they were asked."""
        return cls(
            unanswered,
            {each.position: each for each in approvals},
            {each.position: each for each in approvals if each.changed is not None},
        )

    def announce(
        self, position: int, tool: str, arguments: Mapping[str, Any], schema: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """Announce the tool call that comes next. Returns the arguments that a person has put in place of these, if any.

        Raises:
            Diverged: the person was shown another call.
        """
        approval = self.changes.get(position)
        if approval is not None:
            _check_shown(approval, tool, as_json(arguments))
        self._announced = _Announced(position, schema, approval is not None)
        return None if approval is None else approval.changed

    def of(self, head: StepHead, why: Why) -> Happened | None:
        """What a person has decided about a step: to do it (None), or what the tool answers in its place.

        An approval to do a step again is used up when it is begun again (`Step.again`), so it does not count here.

        Raises:
            PersonNeeded: nobody has decided. Diverged: the call is not the one that a person has approved.
            RunFailed: nobody has decided in time.
        """
        approval = self.approvals.get(head.position)
        if approval is not None and approval.why is why:
            if approval.state is ApprovalState.APPROVED and why is Why.BEFORE:
                self._check_approved(approval, head)
                return None
            if approval.state is ApprovalState.REFUSED:
                return Happened(_refused(approval))
            if approval.state is ApprovalState.EXPIRED:
                if self.unanswered is Unanswered.REFUSE:
                    return Happened(_UNANSWERED[why])
                raise RunFailed(
                    "approval_expired",
                    f"A person was asked about step {head.position}, the tool {head.tool or head.name}, and nobody decided in "
                    "time. Retry the run to ask again.",
                    step=head.position,
                    approval=str(approval.id),
                )
        raise PersonNeeded(self._question(head, why))

    def _question(self, head: StepHead, why: Why) -> NewApproval:
        announced, tool = self._announced_at(head.position), head.tool or head.name
        schema = None if announced is None else announced.schema
        digest = digest_of_call(tool, head.arguments)
        return NewApproval(new_call_id(), head.position, tool, why, head.arguments, digest, schema)

    def _check_approved(self, approval: Approval, head: StepHead) -> None:
        """Raises Diverged: the call is not the one that a person has approved."""
        if approval.changed is None:
            _check_shown(approval, head.tool or head.name, head.arguments)
            return
        announced = self._announced_at(head.position)
        if announced is None or not announced.changed:
            raise Diverged(
                "diverged",
                f"A person has changed the arguments of step {head.position}, and the agent's code calls the tool in a way in "
                "which they cannot be changed. Fork the run at the step before.",
                step=head.position,
            )

    def _announced_at(self, position: int) -> _Announced | None:
        announced = self._announced
        return announced if announced is not None and announced.position == position else None


_UNANSWERED = {
    Why.BEFORE: "A person was asked about this call and did not answer in time, so it was not made.",
    Why.UNKNOWN: "It is not known whether this call had its effect. A person was asked whether to repeat it and did not "
    "answer in time, so it was not repeated.",
}


def _refused(approval: Approval) -> str:
    reason = "" if approval.reason is None else f" The reason: {approval.reason}"
    if approval.why is Why.BEFORE:
        return f"A person has refused this call, so it was not made.{reason}"
    return f"It is not known whether this call had its effect, and a person has decided not to repeat it.{reason}"


def _check_shown(approval: Approval, tool: str, arguments: object) -> None:
    """Raises Diverged, unless the call is the one that a person was shown."""
    if digest_of_call(tool, arguments) != approval.digest:
        raise Diverged(
            "diverged",
            f"Step {approval.position} calls {tool} with {to_json(arguments)[:300]}, and a person has decided about another "
            "call: the agent's code has changed since. Fork the run at the step before.",
            step=approval.position,
            approval=str(approval.id),
        )
