"""Who may decide an approval, and which decisions are valid."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from agents.approvals.deciding import Decider, checked, digest_of_call, may_decide, may_see
from agents.approvals.record import Approval, ApprovalState, Decision, Why
from llm_service.errors import ApprovalExpired, Conflict, InvalidRequest, NotFound, NotPermitted, TreasurerError

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "days": {"type": "integer", "minimum": 1}},
    "required": ["name"],
    "additionalProperties": False,
}
ARGUMENTS = {"name": "old"}
APPROVAL = Approval(
    id=uuid4(), number=1, run_id=uuid4(), position=2, agent="helper", team_id=1, tool="delete", why=Why.BEFORE,
    arguments=ARGUMENTS, digest=digest_of_call("delete", ARGUMENTS), schema=SCHEMA, approvers=(),
    state=ApprovalState.PENDING, changed=None, reason=None, decided_by=None, asked_at=NOW,
    expires_at=NOW + timedelta(hours=1), decided_at=None,
)  # fmt: skip
OPERATOR = Decider("cli ann", everything=True)
OPS, OTHER_ADMINISTRATOR = Decider("ops"), Decider("other")
OWN = Decider("laptop", agent="helper", team="news", team_id=1)
COLLEAGUE = Decider("desk", agent="boss", team="news", team_id=1)
STRANGER = Decider("desk", agent="stranger", team="sales", team_id=2)
EVERYBODY = (OPERATOR, OPS, OTHER_ADMINISTRATOR, OWN, COLLEAGUE, STRANGER)
APPROVES = Decision(True, APPROVAL.digest, "ops")


def deciders(*approvers: str) -> list[Decider]:
    return [who for who in EVERYBODY if may_decide(replace(APPROVAL, approvers=approvers), who)]


def test_the_configuration_names_who_decides() -> None:
    assert deciders() == [OPERATOR, OPS, OTHER_ADMINISTRATOR]
    assert deciders("ops") == [OPERATOR, OPS]
    assert deciders("boss/desk") == [OPERATOR, COLLEAGUE]
    assert deciders("boss/other") == [OPERATOR]
    assert deciders("team:sales") == [OPERATOR, STRANGER]
    assert deciders("desk") == [OPERATOR]  # an administrator's key of this name, not that of an agent


@pytest.mark.parametrize("approvers", [(), ("helper/laptop",), ("team:news",), ("laptop",)])
def test_an_agents_own_key_never_decides(approvers: tuple[str, ...]) -> None:
    assert not may_decide(replace(APPROVAL, approvers=approvers), OWN)


def test_others_do_not_see_it_unless_they_may_decide_it() -> None:
    assert [who for who in EVERYBODY if not may_see(APPROVAL, who)] == [STRANGER]
    for name in ("team:sales", "stranger/desk"):
        assert may_see(replace(APPROVAL, approvers=(name,)), STRANGER)


@pytest.mark.parametrize(
    ("changes", "decision", "who", "error", "code"),
    [
        ({}, {}, STRANGER, NotFound, "not_found"),
        ({}, {}, OWN, NotPermitted, "not_an_approver"),
        ({}, {}, COLLEAGUE, NotPermitted, "not_an_approver"),
        ({"approvers": ("ops",)}, {}, OTHER_ADMINISTRATOR, NotPermitted, "not_an_approver"),
        ({"expires_at": NOW}, {}, OPS, ApprovalExpired, "approval_expired"),
        ({"state": ApprovalState.EXPIRED}, {}, OPS, ApprovalExpired, "approval_expired"),
        ({"state": ApprovalState.APPROVED, "decided_by": "x"}, {}, OPS, Conflict, "approval_decided"),
        ({"state": ApprovalState.REFUSED, "decided_by": "x"}, {}, OPS, Conflict, "approval_decided"),
        ({"state": ApprovalState.WITHDRAWN}, {}, OPS, Conflict, "approval_withdrawn"),
        ({}, {"digest": digest_of_call("delete", {"name": "new"})}, OPS, Conflict, "approval_differs"),
        ({}, {"digest": digest_of_call("keep", ARGUMENTS)}, OPS, Conflict, "approval_differs"),
    ],
)
def test_a_decision_that_cannot_be_taken_is_refused_by_name(
    changes: dict[str, Any], decision: dict[str, Any], who: Decider, error: type[TreasurerError], code: str
) -> None:
    with pytest.raises(error) as caught:
        checked(replace(APPROVAL, **changes), replace(APPROVES, **decision), who, NOW)
    assert caught.value.code == code


def test_a_decision_is_taken() -> None:
    assert checked(APPROVAL, APPROVES, OPS, NOW) == APPROVES
    changed = replace(APPROVES, arguments={"name": "older", "days": 3})
    assert checked(APPROVAL, changed, OPS, NOW) == changed
    assert checked(APPROVAL, replace(APPROVES, arguments={"name": "old"}), OPS, NOW) == APPROVES  # nothing is changed


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({}, '"name" is a required property'),
        ({"name": 7}, 'name: 7 is not of type "string"'),
        ({"name": "much too long"}, "longer than 5 characters"),
        ({"name": "old", "days": 0}, "days: 0 is less than the minimum of 1"),
        ({"name": "old", "force": True}, "'force' was unexpected"),
        ({"name": "\ud800"}, ""),
    ],
)
def test_changed_arguments_have_to_fit_the_tool(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(InvalidRequest, match="Tool 'delete' does not take these arguments") as caught:
        checked(APPROVAL, replace(APPROVES, arguments=arguments), OPS, NOW)
    assert caught.value.param == "arguments"
    assert fault in caught.value.message


@pytest.mark.parametrize(
    ("changes", "decision", "message"),
    [
        ({}, {"approve": False}, "A refusal has a reason, not arguments"),
        ({"why": Why.UNKNOWN}, {}, "may have been done with the arguments that are shown"),
        ({"schema": None}, {}, "cannot be changed"),
        ({"schema": {"type": "nonsense"}}, {}, "its schema cannot be read"),
        ({"schema": {"$ref": "http://127.0.0.1:9/schema"}}, {}, "its schema cannot be read"),
    ],
)
def test_arguments_that_nothing_can_check_are_refused(
    changes: dict[str, Any], decision: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        checked(replace(APPROVAL, **changes), replace(APPROVES, arguments={"name": "x"}, **decision), OPS, NOW)


def test_a_digest_is_of_the_tool_and_its_arguments() -> None:
    digests = {
        digest_of_call(*call) for call in (("a", {}), ("b", {}), ("a", {"x": 1}), ("a", {"x": "1"}), ("a", None))
    }
    assert len(digests) == 5
    assert digest_of_call("a", {"x": 1, "y": 2}) == digest_of_call("a", {"y": 2, "x": 1})
