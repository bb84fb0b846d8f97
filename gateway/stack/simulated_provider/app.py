"""The ASGI application: which path is which wire format, and the controls under `/_sim/`.

    POST /openai/v1/chat/completions   /openai/v1/embeddings   GET /openai/v1/models
    POST /local/v1/…                   as /openai/v1/…, for a local server that is compatible with OpenAI
    POST /perplexity/… /openrouter/… /xai/… /deepseek/…   …/chat/completions, with the provider's own usage fields
    POST /anthropic/v1/messages        /anthropic/v1/messages/count_tokens
    POST /google/…/models/{model}:generateContent   :streamGenerateContent   :countTokens
    GET  /desk/subscriptions           POST /desk/cancellations   GET /_sim/desk   (`desk.py`)
    GET  /_sim/health
    GET  /_sim/invoice?lines=1&since=SEQ
    GET  /_sim/requests?mark=MARK      the bodies, as they arrived, of the latest requests whose script keeps them
    GET, POST /_sim/script             the rules in force; a list of rules that replaces them
    POST /_sim/reset                   forgets the rules, the kept requests and the meter, and not the desk

What must hold: a request that cannot be served gets a 4xx in its own format's error shape, and is not billed.
"""

from __future__ import annotations

import time
from collections import deque
from urllib.parse import parse_qs

from gateway.stack.simulated_provider import anthropic, google, openai
from gateway.stack.simulated_provider.answers import compose
from gateway.stack.simulated_provider.ask import Ask, BadRequest, Json, expect
from gateway.stack.simulated_provider.desk import Desk
from gateway.stack.simulated_provider.exchange import ClientLeft, Exchange, Receive, Scope, Send
from gateway.stack.simulated_provider.habits import habits
from gateway.stack.simulated_provider.meter import Meter
from gateway.stack.simulated_provider.script import Knobs, Scripts
from gateway.stack.simulated_provider.serving import Job, before, new_id, stream, whole
from gateway.stack.simulated_provider.usage import reported
from gateway.stack.simulated_provider.wire import Reply, Wire

_PLAIN = Knobs()
#: Providers that use OpenAI's wire format, each under its own path.
_LIKE_OPENAI = ("openai", "local", "perplexity", "openrouter", "xai", "deepseek")
_MOST_KEPT = 256
_CHAT, _MESSAGES, _GENERATE = openai.ChatWire(), anthropic.MessagesWire(), google.GenerateWire()


class Provider:
    """The simulated provider. `models` is what `GET …/models` lists."""

    def __init__(
        self, meter: Meter, *, seed: int = 0, models: list[str] | None = None, desk: Desk | None = None
    ) -> None:
        self._meter = meter
        self._desk = desk or Desk()
        self._seed = seed
        self._models = models or []
        self._scripts = Scripts()
        self._kept: deque[Json] = deque(maxlen=_MOST_KEPT)
        self._began = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the simulated provider speaks HTTP, not {scope['type']}")
        exchange = Exchange(scope, receive, send)
        face, _, rest = exchange.path[1:].partition("/")
        wire: Wire = {"anthropic": _MESSAGES, "google": _GENERATE}.get(face, _CHAT)
        try:
            if face in _LIKE_OPENAI:
                await self._openai(exchange, face, rest)
            elif face == "anthropic":
                await self._anthropic(exchange, rest)
            elif face == "google":
                await self._google(exchange, rest)
            elif face == "desk":
                await self._at_desk(exchange, rest)
            elif face == "_sim":
                await self._control(exchange, rest)
            else:
                raise BadRequest(f"There is nothing at {exchange.path}.", status=404)
        except BadRequest as error:
            await exchange.json(error.status, wire.error(error.status, error.message, None))
        except ClientLeft:
            return  # the client left before its request was complete, so no work was done and nothing is billed
        finally:
            exchange.done()

    async def _openai(self, exchange: Exchange, face: str, rest: str) -> None:
        if exchange.method == "GET" and rest == "v1/models":
            await exchange.json(200, openai.models(self._models))
        elif exchange.method == "POST" and rest.endswith("chat/completions"):
            await self._chat(exchange, _CHAT, openai.read(face, await exchange.object()), "chatcmpl-")
        elif exchange.method == "POST" and rest.endswith("embeddings"):
            await self._embeddings(exchange, face)
        else:
            raise BadRequest(f"Invalid URL ({exchange.method} {exchange.path})", status=404)

    async def _anthropic(self, exchange: Exchange, rest: str) -> None:
        if exchange.method == "POST" and rest == "v1/messages":
            await self._chat(exchange, _MESSAGES, anthropic.read("anthropic", await exchange.object()), "msg_")
        elif exchange.method == "POST" and rest == "v1/messages/count_tokens":
            ask = anthropic.read("anthropic", await exchange.object(), limited=False)
            await exchange.json(200, {"input_tokens": ask.input_tokens})
        else:
            raise BadRequest(f"Not found: {exchange.method} {exchange.path}", status=404)

    async def _google(self, exchange: Exchange, rest: str) -> None:
        model, _, method = rest.rpartition("models/")[2].rpartition(":")
        if exchange.method != "POST" or not model:
            raise BadRequest(f"Not found: {exchange.method} {exchange.path}", status=404)
        body = await exchange.object()
        if method in ("generateContent", "streamGenerateContent"):
            ask = google.read(model, body, stream=method == "streamGenerateContent")
            if ask.stream and b"alt=sse" not in exchange.query:
                raise BadRequest("The simulated provider streams with ?alt=sse only.")
            await self._chat(exchange, _GENERATE, ask, "")
        elif method == "countTokens":
            await exchange.json(200, {"totalTokens": google.read(model, body, stream=False).input_tokens})
        else:
            raise BadRequest(f"Not found: the method {method!r}", status=404)

    def _knobs(self, exchange: Exchange, operation: str, ask: Ask) -> Knobs:
        own = habits(ask.face, ask.model)
        found = self._scripts.knobs(ask.face, operation, ask.model, exchange.headers, ask.marked_text, own)
        knobs = found or _PLAIN
        if knobs.keep_request:
            self._kept.append({"mark": knobs.mark, "face": ask.face, "path": exchange.path, "body": exchange.received})
        return knobs

    async def _chat(self, exchange: Exchange, wire: Wire, ask: Ask, prefix: str) -> None:
        knobs = self._knobs(exchange, "chat", ask)
        choices = compose(ask, knobs, self._seed)
        visible, reasoning = sum(choice.visible for choice in choices), sum(choice.reasoning for choice in choices)
        job = Job(new_id(prefix), "chat", ask, knobs, self._meter, visible, reasoning)
        try:
            if not await before(exchange, job, wire):
                return
            usage = reported(job.full, knobs)
            reply = Reply(job.id, ask, choices, usage, knobs.chunk_tokens, job.terms, job.reported_cost_nano)
            if ask.stream:
                await stream(exchange, job, wire, reply)
            else:
                await whole(exchange, job, wire.answer(reply), wire.request_id_header)
        finally:
            job.book("cut", 0)  # only if this program stops: a booked job is not booked again

    async def _embeddings(self, exchange: Exchange, face: str) -> None:
        body = await exchange.object()
        ask, texts = openai.read_embeddings(face, body)
        knobs = self._knobs(exchange, "embeddings", ask)
        job = Job(new_id("emb-"), "embeddings", ask, knobs, self._meter)
        try:
            if await before(exchange, job, _CHAT):
                made = openai.embeddings(body, ask, texts, reported(job.full, knobs))
                await whole(exchange, job, made, _CHAT.request_id_header)
        finally:
            job.book("cut", 0)

    async def _at_desk(self, exchange: Exchange, rest: str) -> None:
        asked = (exchange.method, rest)
        if asked == ("GET", "subscriptions"):
            found = self._desk.subscriptions(_customer(exchange))
            await exchange.json(200, {"subscriptions": found})
        elif asked == ("POST", "cancellations"):
            subscription: str = expect((await exchange.object()).get("subscription"), str, "subscription")
            made = self._desk.cancel(subscription, exchange.headers.get("idempotency-key", ""))
            await exchange.json(200, made)
        else:
            raise BadRequest(f"The desk has no {exchange.method} {exchange.path}.", status=404)

    async def _control(self, exchange: Exchange, rest: str) -> None:
        asked = (exchange.method, rest)
        if asked == ("GET", "health"):
            await exchange.json(200, {"status": "ok", "uptime_s": round(time.monotonic() - self._began, 3)})
        elif asked == ("GET", "invoice"):
            query = parse_qs(exchange.query.decode("latin-1"))
            since = query.get("since", ["0"])[0]
            if not since.isdecimal():
                raise BadRequest("since must be a line's sequence number")
            lines = query.get("lines", ["0"])[0] not in ("0", "")
            await exchange.json(200, self._meter.invoice(int(since), lines=lines))
        elif asked == ("GET", "requests"):
            mark = parse_qs(exchange.query.decode("latin-1")).get("mark", [""])[0]
            await exchange.json(200, {"requests": [kept for kept in self._kept if kept["mark"] == mark]})
        elif asked == ("GET", "desk"):
            await exchange.json(200, self._desk.account(_customer(exchange)))
        elif asked == ("GET", "script"):
            await exchange.json(200, self._scripts.listing())
        elif asked == ("POST", "script"):
            self._scripts.replace(await exchange.any_json())
            await exchange.json(200, self._scripts.listing())
        elif asked == ("POST", "reset"):
            self._scripts.replace([])
            self._kept.clear()
            self._meter.reset()
            await exchange.json(200, {"status": "ok"})
        else:
            raise BadRequest(f"There is no control {exchange.method} {exchange.path}.", status=404)


def _customer(exchange: Exchange) -> str:
    return parse_qs(exchange.query.decode("latin-1")).get("customer", [""])[0]
