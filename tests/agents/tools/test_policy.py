"""What a tool's metadata, or an MCP server's annotations, declare about its repetition."""

from __future__ import annotations

from typing import Any

import pytest

from agents.runs.record import Policy
from agents.tools import policy


async def check(key: str, arguments: dict[str, Any]) -> policy.NobodyKnows:
    return policy.NobodyKnows()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (policy.READ, Policy.READ),
        (policy.KEY, Policy.KEY),
        (policy.ASK, Policy.ASK),
        (policy.verify(check), Policy.VERIFY),
        (None, Policy.ASK),
        ({}, Policy.ASK),
        ({"other": 1}, Policy.ASK),
        ({policy.POLICY: "reed"}, Policy.ASK),
        ({policy.POLICY: "verify"}, Policy.ASK),  # without a function that verifies
        ({"annotations": {"readOnlyHint": True}}, Policy.READ),
        ({"annotations": {"idempotentHint": True}}, Policy.KEY),
        ({"annotations": {"idempotentHint": True, "destructiveHint": True}}, Policy.ASK),
        ({"annotations": {"idempotentHint": True, "destructiveHint": False}}, Policy.KEY),
        ({"annotations": {"readOnlyHint": False, "idempotentHint": False}}, Policy.ASK),
        ({"annotations": {"destructiveHint": False}}, Policy.ASK),
        ({"annotations": {"readOnlyHint": "yes"}}, Policy.ASK),
        ({"annotations": None}, Policy.ASK),
        ({"annotations": {"readOnlyHint": True}, **policy.ASK}, Policy.ASK),  # ours goes before the server's
    ],
)
def test_i8_whatever_is_not_declared_is_asked_about(metadata: dict[str, Any] | None, expected: Policy) -> None:
    assert policy.declared(metadata).policy is expected


def test_the_once_key_is_that_of_the_step_under_way() -> None:
    with policy.under_key("run/2"):
        assert (policy.once_key(), policy.once_key()) == ("run/2", "run/2")
    assert policy.once_key() != policy.once_key()
