"""Who may decide an approval, and which decisions are valid. Pure.

What must hold:
  An agent never decides about itself: none of its keys may, whatever its configuration says.
  Without configured approvers, only administrators may decide.
  A decision names the digest of what was shown, so nobody approves a thing that they did not see.
  Changed arguments fit the tool's JSON schema. A step that may have been done is repeated as it was, or not at all,
      because its receiver may know it by its once key.
  A schema may be a stranger's (an MCP server's): it loads nothing, and its patterns take linear time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

import jsonschema_rs

from agents.approvals.record import Approval, ApprovalState, Decision, Why
from agents.recorded_json import digest_of
from llm_service.errors import ApprovalExpired, Conflict, InvalidRequest, NotFound, NotPermitted

#: What stands before a team's name among the approvers. No name has a colon.
TEAM = "team:"
MOST_REASON = 2000
#: Faults of changed arguments that an error names at most.
_MOST_FAULTS = 5


@dataclass(frozen=True, slots=True)
class Decider:
    """Who decides. An administrator's key has only a `key`; with `everything`, it is the operator, whom no policy binds,
    because a person with access to the database may change the policy."""

    key: str
    agent: str | None = None
    team: str | None = None
    team_id: int | None = None
    everything: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The approvers that this decider is."""
        if self.agent is None:
            return (self.key,)
        return (f"{self.agent}/{self.key}", f"{TEAM}{self.team}")

    @property
    def shown(self) -> str:
        """The name that an approval records."""
        return self.key if self.everything else f"key {self.names[0]}"


def digest_of_call(tool: str, arguments: object) -> bytes:
    """The digest of what a person is shown: the tool and its arguments, which are JSON."""
    return digest_of({"arguments": arguments, "tool": tool})


def may_see(approval: Approval, who: Decider) -> bool:
    """Whether this caller learns that the approval exists."""
    return who.agent is None or who.team_id == approval.team_id or not set(who.names).isdisjoint(approval.approvers)


def may_decide(approval: Approval, who: Decider) -> bool:
    """Whether the policy of the approval's agent names this caller."""
    if who.everything:
        return True
    if who.agent is not None and who.agent == approval.agent:
        return False
    if not approval.approvers:
        return who.agent is None
    return not set(who.names).isdisjoint(approval.approvers)


def no_approval(approval_id: UUID) -> NotFound:
    """The error for an approval that does not exist."""
    return NotFound(f"There is no approval {approval_id}.", param="approval")


def checked(approval: Approval, decision: Decision, who: Decider, now: datetime) -> Decision:
    """The decision as it is recorded: arguments that are as they were shown are not changed ones.

    Raises:
        NotFound: this caller may not see it. NotPermitted: the caller may not decide it.
        Conflict: it is decided, or withdrawn, or shows something else than the decision names.
        ApprovalExpired: too late. InvalidRequest: the changed arguments do not fit.
    """
    if not may_see(approval, who):
        raise no_approval(approval.id)
    if not may_decide(approval, who):
        raise _not_permitted(approval, who)
    fault = cannot_decide(approval, decision, now)
    if fault is not None:
        raise fault
    if decision.arguments is not None and decision.arguments == approval.arguments and decision.approve:
        return replace(decision, arguments=None)
    if decision.arguments is not None:
        _check_arguments(approval, decision)
    return decision


def cannot_decide(approval: Approval, decision: Decision, now: datetime) -> Conflict | ApprovalExpired | None:
    """Why the approval, as it is now, cannot be decided so. None: it can."""
    details = {"approval": str(approval.id), "state": approval.state.value}
    if approval.state is ApprovalState.EXPIRED or (
        approval.state is ApprovalState.PENDING and approval.expires_at <= now
    ):
        return ApprovalExpired(
            f"Approval {approval.id} has expired at {approval.expires_at:%Y-%m-%d %H:%M:%S} UTC. Nothing was changed.",
            details=details | {"state": ApprovalState.EXPIRED.value},
        )
    if approval.state is ApprovalState.WITHDRAWN:
        return Conflict(
            f"Approval {approval.id} is withdrawn: run {approval.run_id} does not wait for it any more. Nothing was changed.",
            code="approval_withdrawn",
            details=details,
        )
    if approval.state is not ApprovalState.PENDING:
        return Conflict(
            f"Approval {approval.id} was {approval.state} by {approval.decided_by}. The first decision counts; nothing was "
            "changed.",
            code="approval_decided",
            details=details,
        )
    if decision.digest != approval.digest:
        return Conflict(
            f"Approval {approval.id} has digest {approval.digest.hex()}: the decision is about another tool or other "
            "arguments. Look at it again, and decide about what it shows.",
            code="approval_differs",
            param="digest",
            details=details | {"digest": approval.digest.hex()},
        )
    return None


def _check_arguments(approval: Approval, decision: Decision) -> None:
    """Refuse changed arguments that the tool would not take. Raises InvalidRequest."""
    if not decision.approve:
        raise InvalidRequest("A refusal has a reason, not arguments.", param="arguments")
    if approval.why is Why.UNKNOWN:
        raise InvalidRequest(
            f"Step {approval.position} may have been done with the arguments that are shown, so it is done again with these, "
            "or not at all. Approve it without arguments, or refuse it and tell the model why.",
            param="arguments",
        )
    if approval.schema is None:
        raise InvalidRequest(
            f"The arguments of tool {approval.tool!r} cannot be changed, because nothing but its own code can check them. "
            "Approve it without arguments, or refuse it and tell the model why.",
            param="arguments",
        )
    faults = _faults(approval.schema, decision.arguments)
    if faults:
        raise InvalidRequest(
            f"Tool {approval.tool!r} does not take these arguments: {'; '.join(faults)}.", param="arguments"
        )


def _faults(schema: Mapping[str, Any], arguments: object) -> list[str]:
    try:
        validator = jsonschema_rs.validator_for(
            dict(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        return [f"its schema cannot be read ({str(error)[:200]})"]
    try:
        json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()
        found = list(islice(validator.iter_errors(arguments), _MOST_FAULTS))
    except ValueError as error:  # half of a surrogate pair, for instance, which no tool can be given
        return [f"they cannot be read ({str(error)[:200]})"]
    return [f"{_place(fault.instance_path)}{fault.message[:200]}" for fault in found]


def _place(path: Sequence[str | int]) -> str:
    return f"{'.'.join(map(str, path))[:80]}: " if path else ""


def _not_permitted(approval: Approval, who: Decider) -> NotPermitted:
    if who.agent == approval.agent:
        why = "an agent's own key never decides what the agent may do"
    else:
        named = ", ".join(approval.approvers) or "administrators"
        why = f"the agent's configuration names {named}"
    return NotPermitted(
        f"{who.shown[:1].upper()}{who.shown[1:]} may not decide approval {approval.id} of agent {approval.agent!r}: {why}.",
        code="not_an_approver",
        details={"approval": str(approval.id)},
    )
