"""What a run pins when it is added: its model, its limits, and what it does when something goes wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from agents.runs.journal import Limits, OnAnswerLost


class OnBudget(StrEnum):
    """What a run does that a budget has no room for."""

    PAUSE = "pause"  # it waits for money, and tries again from time to time
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration of one run. A change of the agent's does not reach runs that were added before."""

    model: str
    steps: int = 50
    result_bytes: int = 1024 * 1024
    on_answer_lost: OnAnswerLost = OnAnswerLost.BUY_AGAIN
    on_budget: OnBudget = OnBudget.PAUSE
    #: How often a step is tried again whose provider failed.
    retries: int = 4
    #: How long the results of the steps of a run that succeeded are kept. Those of other runs are kept for a week at least.
    keep_s: float = 0.0

    @property
    def limits(self) -> Limits:
        """The part that bounds the journal."""
        return Limits(self.steps, self.result_bytes, self.on_answer_lost)

    def as_json(self) -> dict[str, Any]:
        """As it is pinned."""
        return asdict(self)

    @classmethod
    def read(cls, pinned: dict[str, Any]) -> Configuration:
        """From what was pinned, by this version or another: what is not there has its default."""
        known = {each.name: pinned[each.name] for each in fields(cls) if each.name in pinned}
        known |= {
            name: kind(known[name])
            for name, kind in (("on_answer_lost", OnAnswerLost), ("on_budget", OnBudget))
            if name in known
        }
        return cls(**known)
