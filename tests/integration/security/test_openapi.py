"""Schemathesis over the whole description of the API: whatever is sent, no 5xx."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from gateway.stack.state import StackState

WITHIN = settings(
    max_examples=8, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip


def test_no_request_that_the_description_allows_or_forbids_is_a_5xx(stack: StackState) -> None:
    schema = schemathesis.openapi.from_url(f"{stack.gateway_url}/openapi.json")
    headers = {"Authorization": f"Bearer {stack.admin_key}"}
    seen: set[tuple[str, str]] = set()
    asked: list[str] = []
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # pyright: ignore[reportAttributeAccessIssue]  # a broken description fails here
        name = (operation.method.upper(), operation.path)
        seen.add(name)

        def check(case: Any) -> None:
            asked.append(case.path)
            # Nobody's tests are to be paused, or cut off, by chance.
            if "breakers" in case.path or case.path.endswith("/pause"):
                case.path_parameters = (
                    dict.fromkeys(case.path_parameters or {}, "nobody")
                    | ({"kind": "agents"} if "kind" in (case.path_parameters or {}) else {})
                    | ({"state": "close"} if "state" in (case.path_parameters or {}) else {})
                )
            case.call_and_validate(headers=headers, checks=[not_a_server_error])

        given(case=operation.as_strategy())(WITHIN(check))()
    assert ("POST", "/v1/chat/completions") in seen
    assert ("PUT", "/admin/v1/routes") in seen
    assert len(seen) >= 35
    assert len(asked) >= 4 * len(seen)
