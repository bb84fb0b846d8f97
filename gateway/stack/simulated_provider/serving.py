"""Serves one request that makes the provider work: follows the request's script, and writes one line on the invoice.

What must hold:
  From the moment that work begins, a request is billed exactly once, however it ends.
  A refusal (a scripted status, a connection cut before the headers) is billed only if the script's `billed` says so.
  A client that leaves is billed for the input and for what was generated until then. If it leaves before the answer has
      begun (the provider may be hanging), that is the input and what the script's pace would have generated so far.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import orjson

from gateway.stack.simulated_provider.ask import Ask, Json
from gateway.stack.simulated_provider.exchange import ClientLeft, Exchange, Headers
from gateway.stack.simulated_provider.meter import Meter, State
from gateway.stack.simulated_provider.prices import Cost, Terms, Used
from gateway.stack.simulated_provider.script import Knobs
from gateway.stack.simulated_provider.usage import billed, terms, true_input, with_output
from gateway.stack.simulated_provider.wire import Reply, Wire

#: Events of a stream without a pace go out this many at a time.
_BURST = 16
#: Waits shorter than this are not worth a timer.
_SHORTEST_WAIT_S = 0.001
_SLOW_PARTS = 20

_run = os.urandom(3).hex()
_numbers = count(1)


def new_id(prefix: str) -> str:
    """An id that no other request has, in this run or another."""
    return f"{prefix}sim{_run}{next(_numbers):08x}"


@dataclass(slots=True)
class Job:
    """One request's account: what it was planned to use, and whether it is billed yet."""

    id: str
    operation: str
    ask: Ask
    knobs: Knobs
    meter: Meter
    visible: int = 0  # output tokens that the answer shows
    reasoning: int = 0  # output tokens of reasoning before them
    booked: bool = False
    began: float = field(default_factory=time.time)

    @property
    def input(self) -> Used:
        return true_input(self.ask, self.knobs)

    @property
    def full(self) -> Used:
        """What the whole answer uses."""
        return with_output(self.input, self.visible + self.reasoning, self.reasoning, self.knobs)

    @property
    def terms(self) -> Terms:
        return terms(self.ask, self.knobs, self.began)

    def cost(self, used: Used) -> Cost | None:
        """The cost of this usage, by the price list or as a script sets it."""
        if self.knobs.cost_nano is not None:
            return Cost(self.knobs.cost_nano)
        return self.meter.cost(self.ask.face, self.ask.model, used, self.terms)

    @property
    def reported_cost_nano(self) -> int | None:
        """The cost that the answer reports, for providers that report one: the true cost, unless a script lies. None: it
        reports none.
        """
        if self.knobs.silent_about_cost:
            return None
        if self.knobs.reported_cost_nano is not None:
            return self.knobs.reported_cost_nano
        full = self.full
        cost = self.cost(billed(full, full, self.knobs) or Used())
        return cost.nano if cost is not None else 0

    def book(self, state: State, generated: int | None = None) -> None:
        """Bill, once, the input and the first `generated` output tokens (None: all). Reasoning tokens come first."""
        if self.booked:
            return
        self.booked = True
        full = self.full
        used = full if generated is None else with_output(full, min(generated, full.output), self.reasoning, self.knobs)
        charged = billed(used, full, self.knobs)
        if charged is not None:
            self.meter.book(
                id=self.id,
                face=self.ask.face,
                operation=self.operation,
                model=self.ask.model,
                terms=self.terms,
                state=state,
                used=charged,
                cost=self.cost(charged),
                mark=self.knobs.mark,
                began=self.began,
            )

    def refuse(self, state: State) -> None:
        """Bill nothing, unless the script says what is billed."""
        if self.knobs.billed is None:
            self.booked = True
        self.book(state)

    def generated(self, elapsed_s: float) -> int:
        """Output tokens generated this long after the start, at the script's pace. A script without a pace: 0."""
        rate = self.knobs.tokens_per_s
        return int(max(0.0, elapsed_s - self.knobs.first_token_s) * rate) if rate else 0


async def before(exchange: Exchange, job: Job, wire: Wire) -> bool:
    """What a script makes happen before an answer. False: the exchange is over."""
    knobs = job.knobs
    refused = knobs.status is not None or knobs.cut_before_headers
    try:
        if knobs.latency_s:
            await exchange.pause(knobs.latency_s)
        if knobs.hang_s and knobs.hang_after_tokens is None:
            await exchange.pause(knobs.hang_s)
    except ClientLeft:
        job.refuse("client_left") if refused else job.book("client_left", 0)
        return False
    if knobs.cut_before_headers:
        job.refuse("cut")
        await exchange.drop()
        return False
    if knobs.status is not None:
        job.refuse("complete")
        headers: Headers = [(wire.request_id_header, job.id.encode())]
        if knobs.retry_after is not None:
            headers.append((b"retry-after", f"{knobs.retry_after:g}".encode()))
        message = f"Simulated error {knobs.status}, as the script says."
        error: Json = knobs.error if knobs.error is not None else wire.error(knobs.status, message, knobs.retry_after)
        await exchange.json(knobs.status, error, headers)
        return False
    return True


async def whole(exchange: Exchange, job: Job, body: Json, request_id_header: bytes) -> None:
    """Send an answer that is not streamed."""
    knobs = job.knobs
    data = orjson.dumps(body)
    rate = knobs.tokens_per_s
    wait = knobs.first_token_s + (job.full.output / rate if rate else 0)
    if wait:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await exchange.pause(wait)
        except ClientLeft:
            job.book("client_left", job.generated(clock() - began))
            return
    headers: Headers = [(request_id_header, job.id.encode())]
    if knobs.cut_after_tokens is None and not knobs.slow_body_s:
        job.book("complete")
        await exchange.whole(200, data, headers)
        return
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await exchange.start(200, headers)
    if knobs.cut_after_tokens is not None:
        await exchange.write(data[: len(data) // 2])
        job.book("cut", job.reasoning + knobs.cut_after_tokens)
        await exchange.drop()
        return
    try:
        for part in _parts(data):
            await exchange.pause(knobs.slow_body_s / _SLOW_PARTS)
            await exchange.write(part)
    except ClientLeft:
        job.book("client_left")
        return
    job.book("complete")
    await exchange.write(b"", last=True)


def _parts(data: bytes) -> Iterator[bytes]:
    size = -(-len(data) // _SLOW_PARTS)
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def stream(exchange: Exchange, job: Job, wire: Wire, reply: Reply) -> None:
    """Send an answer as server-sent events, at the script's pace."""
    headers: Headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (wire.request_id_header, job.id.encode()),
    ]
    await exchange.start(200, headers)
    clock = asyncio.get_running_loop().time
    began = clock()
    sender = _Stream(exchange, job)
    try:
        if job.knobs.first_token_s:
            await exchange.write(b"".join(wire.opening(reply)))
            await exchange.pause(job.knobs.first_token_s)
        else:
            sender.held = wire.opening(reply)
        finished = await sender.run(wire, reply)
    except ClientLeft:
        shown = job.reasoning + sender.sent if sender.sent else job.generated(clock() - began)
        job.book("client_left", shown)
        return
    except asyncio.CancelledError:  # this program is being stopped
        job.book("cut", job.reasoning + sender.sent)
        raise
    if not finished:
        job.book("cut", job.reasoning + sender.sent)
        await exchange.drop()
        return
    job.book("complete")
    try:
        await exchange.write(b"".join([*sender.held, *wire.closing(reply)]), last=True)
    except ClientLeft:
        return  # the whole answer was generated and is booked


class _Stream:
    """Sends a stream's events at the script's pace, and counts the tokens that were sent."""

    def __init__(self, exchange: Exchange, job: Job) -> None:
        self.exchange = exchange
        self.job = job
        self.sent = 0  # visible tokens in the events so far
        self.held: list[bytes] = []  # events not written yet

    async def run(self, wire: Wire, reply: Reply) -> bool:
        """Send every event; False when the script cuts the stream.

        Raises:
            ClientLeft: the client left. `sent` is the number of tokens until then.
        """
        knobs = self.job.knobs
        cut = knobs.cut_after_tokens
        hang = knobs.hang_after_tokens if knobs.hang_s else None
        began = asyncio.get_running_loop().time()
        watched = self.exchange.watch()
        for event, tokens in wire.events(reply):
            if cut is not None and self.sent >= cut:
                break
            if hang is not None and self.sent >= hang:
                hang = None
                await self._flush()
                await self.exchange.pause(knobs.hang_s)
            if knobs.tokens_per_s is not None and tokens:
                await self._until(began + (self.job.reasoning + self.sent + tokens) / knobs.tokens_per_s)
            self.held.append(event)
            self.sent += tokens
            if len(self.held) >= _BURST:
                await self._flush()
                await asyncio.sleep(0)
            if watched.done():
                raise ClientLeft
        if hang is not None and self.sent >= hang:
            await self._flush()
            await self.exchange.pause(knobs.hang_s)
        if cut is not None:
            await self._flush()
        return cut is None

    async def _until(self, due: float) -> None:
        wait = due - asyncio.get_running_loop().time()
        if wait > _SHORTEST_WAIT_S:
            await self._flush()
            await self.exchange.pause(wait)

    async def _flush(self) -> None:
        if self.held:
            data, self.held = b"".join(self.held), []
            await self.exchange.write(data)
