"""The text that a model writes in a step of a run: as it is recorded, and piece by piece while it is written.

What must hold:
  Live text goes ahead of the record and is never the record: what is lost of it a watcher gets when the step is recorded.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable
from uuid import UUID

if TYPE_CHECKING:
    from llm_service.model import GovernedService

#: For how long a run counts as watched after its watcher said so last.
WATCHED_S = 60.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the text of a run's step at `position`. `offset` is the number of characters before it, and `crc` their checksum:
    a reader whose text has this length and this checksum goes on with the piece."""

    position: int
    offset: int
    crc: int
    text: str


def checksum(text: str, before: int = 0) -> int:
    """The CRC-32 of a text that follows another one with the checksum `before`."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"), before)


def text_in(result: str | None) -> str | None:
    """The text in the recorded result of a model step, which is a `ModelResponse` of PydanticAI as JSON."""
    response: object = None if result is None else json.loads(result)
    if not isinstance(response, dict):
        return None
    parts = cast("list[dict[str, Any]]", cast("dict[str, Any]", response).get("parts") or [])
    return "".join(str(part["content"]) for part in parts if part.get("part_kind") == "text")


@runtime_checkable
class ShowsText(Protocol):
    """A service that shows the text of its answers to those who watch (`LiveCalls`)."""

    def unwatched(self) -> GovernedService:
        """The same service without that."""
        ...


class LiveText(Protocol):
    """Where live text goes. No method raises an error if it cannot do its work: live text is then missing."""

    async def watch(self, run_ids: Sequence[UUID]) -> None:
        """Say that these runs are watched, for `WATCHED_S` from now on."""
        ...

    async def is_watched(self, run_id: UUID) -> bool: ...

    def post(self, run_id: UUID, piece: Piece) -> None:
        """Send a piece on. Returns at once."""
        ...

    async def heads(self, run_ids: Sequence[UUID]) -> dict[UUID, str]:
        """The ids of the last pieces of these runs. A run without live text has none."""
        ...

    async def read(self, run_id: UUID, after: str) -> tuple[str, list[Piece]]:
        """Some pieces after the one with the id `after` ("0": from the first), and the id of the last one of them."""
        ...


class NoLiveText:
    """Watchers see text when its step is recorded."""

    async def watch(self, run_ids: Sequence[UUID]) -> None:
        """See `LiveText`."""

    async def is_watched(self, run_id: UUID) -> bool:
        """See `LiveText`."""
        return False

    def post(self, run_id: UUID, piece: Piece) -> None:
        """See `LiveText`."""

    async def heads(self, run_ids: Sequence[UUID]) -> dict[UUID, str]:
        """See `LiveText`."""
        return {}

    async def read(self, run_id: UUID, after: str) -> tuple[str, list[Piece]]:
        """See `LiveText`."""
        return after, []
