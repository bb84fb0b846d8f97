"""The headers in which Treasurer reports on a call to its caller. They are named only here. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from llm_service.call.attempt import Admitted
from llm_service.money import format_decimal

CALL_ID = "x-treasurer-call-id"
#: The header with the model that answered. A kept answer is given again only to a caller who may use this model.
MODEL = "x-treasurer-model"
#: What the call cost, in dollars.
COST = "x-treasurer-cost"
#: "true" on a kept answer that is given again.
REPLAYED = "x-treasurer-replayed"


def response_headers(admitted: Admitted, cost_nano: int | None) -> dict[str, str]:
    """The headers for the caller. Before the cost is known (a stream), "budget left" counts all of the hold as spent."""
    attempt, call, hold = admitted.attempt, admitted.call, admitted.hold
    headers = {CALL_ID: str(call.call_id)}
    if cost_nano is not None:
        headers[COST] = format_decimal(cost_nano)
    left = hold.tightest_left_nano
    if left is not None:
        left += 0 if cost_nano is None else hold.amount_nano - cost_nano
        headers["x-treasurer-budget-left"] = format_decimal(left)
        tightest = hold.tightest_budget_id
        name = next((budget.name for budget in call.principal.budgets if budget.id == tightest), None)
        if name is not None:
            headers["x-treasurer-budget"] = name
    asked = call.request.max_tokens if call.request.max_tokens is not None else admitted.bound.output_tokens
    if call.operation == "chat" and admitted.output_tokens < asked:
        headers["x-treasurer-max-tokens"] = f"clamped:{admitted.output_tokens}"
    elif admitted.bound.defaulted and call.operation == "chat":
        headers["x-treasurer-max-tokens"] = f"default:{admitted.output_tokens}"
    if attempt.number:
        headers[MODEL] = admitted.model.name
        headers["x-treasurer-attempts"] = str(attempt.number + 1)
    return headers | admitted.rate_permit.headers()


def replayed_headers(kept: Mapping[str, str]) -> dict[str, str]:
    """The headers of a kept answer when it is given again."""
    return {**kept, REPLAYED: "true"}
