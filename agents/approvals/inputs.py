"""What a person says about an approval, by REST and at the command line."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from agents.approvals.deciding import MOST_REASON
from agents.approvals.record import Decision
from llm_service.administration.inputs import Input


def check_reason(value: str) -> str:
    """The reason of a decision. Raises ValueError: it is too long, says nothing, or has control characters."""
    if not 1 <= len(value) <= MOST_REASON or value.isspace():
        raise ValueError(f"a reason is 1 to {MOST_REASON} characters")
    if not all(char.isprintable() or char in "\n\t" for char in value):
        raise ValueError("a reason is text without control characters")
    return value


Reason = Annotated[str, AfterValidator(check_reason)]
Digest = Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]


class DecisionInput(Input):
    """A decision. `digest`: that of the approval as it was shown. The model reads `reason` if the call is refused.
    `arguments`: those to call the tool with in place of the ones that were shown."""

    decision: Literal["approve", "refuse"]
    digest: Digest
    reason: Reason | None = None
    arguments: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_a_reason(self) -> Self:
        if self.decision == "refuse" and self.reason is None:
            raise ValueError("a refusal has a reason, which the model reads")
        return self

    def by(self, name: str) -> Decision:
        """The decision of this person."""
        return Decision(self.decision == "approve", bytes.fromhex(self.digest), name, self.reason, self.arguments)
