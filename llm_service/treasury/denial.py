"""Why the treasury makes no hold."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class StaleEpoch(Exception):
    """The configuration changed since the principal was read: read it again and ask again."""


class DenialKind(StrEnum):
    """Why there is no room."""

    EXHAUSTED = "exhausted"
    BUSY = "busy"
    NEAR_LIMIT = "near_limit"
    PACED = "paced"
    LOCKED = "locked"
    CROWDED = "crowded"
    NO_WINDOW = "no_window"


@dataclass(frozen=True, slots=True)
class Denial:
    """No hold was made. Nano-dollars; the window is the one that had no room.

    Exhausted: what is posted leaves less than the call's floor, and waiting cannot help before `resets_at`. Busy:
    holds in flight have the rest. Near its limit: this model is served only up to a share of it. Paced: the
    budget's curve lets it through later. Locked: another transaction in the database keeps the window. Crowded: the
    budget takes no more new subjects in this minute. No window: there is none, and none could be opened. Of the last
    three the amounts are zero.
    """

    kind: DenialKind
    budget_id: int
    subject: str
    limit_nano: int
    posted_nano: int
    pending_nano: int
    resets_at: datetime | None
    resumes_at: datetime | None = None

    @property
    def final(self) -> bool:
        """Whether waiting cannot help before the window ends."""
        return self.kind is DenialKind.EXHAUSTED

    @property
    def left_nano(self) -> int:
        """What a call could still take, now."""
        return max(0, self.limit_nano - self.posted_nano - self.pending_nano)
