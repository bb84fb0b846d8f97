"""What every wire format gives: how its requests are read, and how its answers, streams and errors are written.

What must hold: a stream is opening, then events that each say how many tokens they carry, then closing. The
tokens of the events add up to the answer's visible tokens, so that a bill can stop where the stream did.
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
    """What is to be written: the answer's id, its choices, and the usage that it reports (None: none).

    `cost_nano` is what the provider says that the whole request costs, for those that say so; None: it does not say.
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
    """One of each in turn until all have ended."""
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
