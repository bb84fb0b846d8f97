"""The meter: one invoice line for each request that did work, and sums of them in integers.

What must hold: the invoice is the sum of its lines, to the nano-dollar. With a file, each line is
flushed to the operating system as soon as it is written, so that no line is lost when this program is killed (a power
cut may lose some).
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson

from gateway.stack.simulated_provider.prices import Cost, PriceList, Terms, Used

State = Literal["complete", "cut", "client_left"]
_SUMMED = ("input", "cached", "cache_write", "cache_write_1h", "output", "reasoning")


@dataclass(frozen=True, slots=True)
class Line:
    """One request on the invoice. `cost_nano` is in nano-dollars; `began` (when the request came) and `at` (when it was
    billed) are in seconds since the epoch.

    `mark` comes from the request's script; `unpriced` names the units that were used and have no price in the list.
    """

    seq: int
    id: str
    face: str
    operation: str
    model: str
    tier: str
    state: State
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nano: int
    priced: bool
    at: float
    mark: str = ""
    audio_tokens: int = 0
    cached_audio_tokens: int = 0
    image_tokens: int = 0
    video_tokens: int = 0
    audio_output_tokens: int = 0
    image_output_tokens: int = 0
    citation_tokens: int = 0
    searches: int = 0
    search_context: str = ""
    region: str = ""
    unpriced: tuple[str, ...] = ()
    began: float = 0.0


class Meter:
    """Books requests and adds up the invoice."""

    def __init__(self, prices: PriceList, path: Path | None = None) -> None:
        self._prices = prices
        self._lines: list[Line] = []
        self._file: BinaryIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines, length = _recover(path)
            self._file = path.open("ab")
            self._file.truncate(length)

    def cost(self, face: str, model: str, used: Used, terms: Terms) -> Cost | None:
        """What a request costs by the price list. None: the list does not have the model."""
        rates = self._prices.rates(face, model)
        return rates.cost(used, terms) if rates is not None else None

    def book(
        self,
        *,
        id: str,
        face: str,
        operation: str,
        model: str,
        terms: Terms,
        state: State,
        used: Used,
        cost: Cost | None,
        mark: str = "",
        began: float = 0.0,
    ) -> Line:
        """Bill one request. The line's sequence number is one more than the last. `cost` None: the model has no price."""
        line = Line(
            seq=self._lines[-1].seq + 1 if self._lines else 1,
            id=id,
            face=face,
            operation=operation,
            model=model,
            tier=terms.tier,
            state=state,
            input_tokens=used.input,
            cached_tokens=used.cached,
            cache_write_tokens=used.cache_write,
            cache_write_1h_tokens=used.cache_write_1h,
            output_tokens=used.output,
            reasoning_tokens=used.reasoning,
            cost_nano=cost.nano if cost is not None else 0,
            priced=cost is not None and not cost.unpriced,
            at=round(time.time(), 6),
            mark=mark,
            audio_tokens=used.audio,
            cached_audio_tokens=used.cached_audio,
            image_tokens=used.image,
            video_tokens=used.video,
            audio_output_tokens=used.audio_output,
            image_output_tokens=used.image_output,
            citation_tokens=used.citations,
            searches=used.searches,
            search_context=terms.search_context,
            region=terms.region,
            unpriced=cost.unpriced if cost is not None else (),
            began=round(began, 6),
        )
        self._lines.append(line)
        if self._file is not None:
            self._file.write(orjson.dumps(line) + b"\n")
            self._file.flush()
        return line

    def reset(self) -> None:
        """Forget every line, in the file too."""
        self._lines.clear()
        if self._file is not None:
            self._file.truncate(0)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def invoice(self, since: int = 0, *, lines: bool = False) -> dict[str, Any]:
        """The invoice of the lines after sequence number `since`."""
        # Sequence numbers have no gaps, so the lines after `since` are a slice.
        chosen = self._lines[max(0, since - self._lines[0].seq + 1) :] if self._lines else []
        invoice: dict[str, Any] = {
            "total_nano": sum(line.cost_nano for line in chosen),
            "requests": len(chosen),
            "last_seq": self._lines[-1].seq if self._lines else 0,
            "models": _by(chosen, "model"),
            "faces": _by(chosen, "face"),
            "states": dict(Counter(line.state for line in chosen)),
            "unpriced": sorted({line.model for line in chosen if not line.priced}),
        }
        if lines:
            invoice["lines"] = [asdict(line) for line in chosen]
        return invoice


def _by(lines: list[Line], key: Literal["model", "face"]) -> dict[str, dict[str, int]]:
    names = [f"{kind}_tokens" for kind in _SUMMED] + ["cost_nano"]
    sums: dict[str, dict[str, int]] = {}
    for line in lines:
        row = sums.setdefault(getattr(line, key), dict.fromkeys(["requests", *names], 0))
        row["requests"] += 1
        for name in names:
            row[name] += getattr(line, name)
    return sums


def _recover(path: Path) -> tuple[list[Line], int]:
    """The whole lines of the file, and where they end: a line torn by a kill is dropped."""
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    length = data.rfind(b"\n") + 1
    return [_line(orjson.loads(line)) for line in data[:length].splitlines()], length


def _line(given: dict[str, Any]) -> Line:
    given["unpriced"] = tuple(given.get("unpriced", ()))
    return Line(**given)
