"""What a run reads of its conversation, and what is kept of one. Pure.

What must hold:
  Turns are whole or left out. So a tool's call is never without its result, nor a result without its call.
  The newest turns are read, without a gap: the oldest go first.
  A turn that is larger than the limits is not read, nor what is older.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from agents.conversations.record import HistoryLimits, Said

#: What is kept of a conversation: its newest turns with so many messages, of so many bytes.
KEPT = HistoryLimits(messages=2_000, bytes=8 * 1024 * 1024)
#: How many messages of a conversation are shown at most: more than what is kept and the turn under way.
MOST_MESSAGES = 5_000


def fitting(newest_first: Iterable[Said], limits: HistoryLimits) -> list[str]:
    """The messages of the newest turns that fit into the limits, the oldest first. `newest_first` begins with the last message."""
    turns = list[list[str]]()
    messages = size = 0
    for _, group in groupby(newest_first, lambda said: said.turn):
        turn = [said.text for said in group]
        messages += len(turn)
        size += bytes_of(turn)
        if messages > limits.messages or size > limits.bytes:
            break
        turns.append(turn)
    return [text for turn in reversed(turns) for text in reversed(turn)]


def bytes_of(turn: Sequence[str]) -> int:
    """The size of messages as they are stored, which is in ASCII."""
    return sum(map(len, turn))
