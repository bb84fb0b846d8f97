"""What every wire format implements: how its answers, streams and errors are written.

What must hold: a stream consists of `opening`, then `events`, then `closing`. Each event comes with the number of its
tokens. They add up to the answer's visible tokens, so that a bill can stop where the stream stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from gateway.stack.simulated_provider.answers import Choice
from gateway.stack.simulated_provider.ask import Ask, Json, expect
from gateway.stack.simulated_provider.prices import Terms, Used

Event = tuple[bytes, int]
T = TypeVar("T")


@dataclass(slots=True)
class Reply:
    """The content of an answer: its id, its choices, and the usage that it reports (None: it reports none).

    `cost_nano` is the reported cost of the whole request, for providers that report one. None: it reports none.
    """

    id: str
    ask: Ask
    choices: list[Choice]
    usage: Used | None
    chunk_tokens: int | None = None
    terms: Terms = field(default_factory=Terms)
    cost_nano: int | None = 0


class Wire(Protocol):
    """One wire format for chat."""

    request_id_header: bytes

    def answer(self, reply: Reply) -> Json: ...

    def opening(self, reply: Reply) -> list[bytes]: ...

    def events(self, reply: Reply) -> Iterator[Event]: ...

    def closing(self, reply: Reply) -> list[bytes]: ...

    def error(self, status: int, message: str, retry_after: float | None) -> Json: ...


def interleave(streams: list[Iterator[T]]) -> Iterator[T]:
    """Take one item from each stream in turn, until all have ended."""
    while streams:
        running: list[Iterator[T]] = []
        for stream in streams:
            item = next(stream, None)
            if item is not None:
                running.append(stream)
                yield item
        streams = running


def objects(value: Any, name: str) -> list[Json]:
    """A list of JSON objects; an absent one is empty.

    Raises:
        BadRequest: names the field.
    """
    items: list[Any] = expect(value, list, name) if value is not None else []
    return [expect(item, dict, f"{name}[{index}]") for index, item in enumerate(items)]


def joined(texts: Iterable[str]) -> str:
    return "\n".join(texts)
