"""What gateways get wrong, one scenario each. `--list` prints each scenario's docstring.

A scenario funds an account, uses it in a certain way, and returns a later call of the same kind. With that call the
runner finds out whether what is left of the budget can still be spent. Limits are multiples of what the provider bills
for a whole answer, so that they mean the same at any gateway and any price.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from benchmarks.overspend.calls import Ask, Leave
from benchmarks.overspend.field import Field
from benchmarks.overspend.models import FEE_NANO, ROUTED, WITH_A_FEE
from gateway.stack.simulated_provider.media import measure

Later = Callable[[], Ask]
Script = dict[str, Any]
Play = Callable[[Field], Awaitable[Later]]

JAPANESE = "東京の天気は今日とても良いですが、明日は雨が降るかもしれません。予算を超えないように注意してください。"
EMOJI = "😀🚀🔥💰👩‍👩‍👧‍👦🏳️‍🌈🧑🏽‍🚀🎉🍣🗾🤖💸"
ARABIC = "الطقس في القاهرة اليوم جميل جدا ولكن ربما تمطر غدا فلا تنفق أكثر مما لديك من المال. "
MINUTE_S = 60
BEFORE_BOUNDARY_S = 6.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A name for `--scenario`, a title for the table, and the calls to make.

    `drain_s`: how long a call may go on at the provider after its caller has disconnected.
    """

    name: str
    title: str
    play: Play
    drain_s: float = 0.3
    replicas: int = 1
    quick: bool = False
    at_boundary: bool = False  # it must be played near the end of a minute
    needs: frozenset[str] = frozenset(("one rate",))  # the providers whose models it calls

    @property
    def shows(self) -> str:
        return " ".join((self.play.__doc__ or "").split())


async def burst(field: Field) -> Later:
    """64 callers at once on a budget with room for 27 calls. If a gateway reads the budget before a call and writes it
    after the call, all calls in between overspend it.
    """
    return await _burst(field, instances=1)


async def replicas(field: Field) -> Later:
    """The burst of 64 callers, spread over two instances. If each instance keeps the budget for itself, it is spent
    twice."""
    return await _burst(field, instances=field.instances)


async def _burst(field: Field, instances: int) -> Later:
    def ask() -> Ask:
        return field.chat(output=100, script={"latency_s": 0.6})

    first = ask()
    await field.fund(first.cost_nano * 27 + first.cost_nano // 2)
    await field.together([first, *(ask() for _ in range(63))], instances=instances)
    return ask


async def dense_scripts(field: Field) -> Later:
    """Long prompts in Japanese, emoji and Arabic. An estimate of a token for four characters finds half of them, or
    fewer."""
    texts = [JAPANESE * 40, EMOJI * 120, ARABIC * 25]

    def ask() -> Ask:
        return field.chat(field.random.choice(texts), output=8, script={"latency_s": 0.3})

    asks = [ask() for _ in range(32)]
    await field.fund(sum(made.cost_nano for made in asks) // 3)
    await field.by(16, asks, tries=1)
    return ask


async def no_max_tokens(field: Field) -> Later:
    """Callers leave max_tokens out, and answers have 60 to 900 tokens. What a gateway assumes for such a call may be
    too little, or so much that a small budget admits nothing.
    """

    def ask() -> Ask:
        return field.chat(output=field.random.choice([60, 300, 900]), max_tokens=None, script={"latency_s": 0.3})

    asks = [ask() for _ in range(40)]
    await field.fund(sum(made.cost_nano for made in asks) // 3)
    await field.by(16, asks, tries=2)
    return lambda: field.chat(output=60, max_tokens=None)


async def left_early(field: Field) -> Later:
    """Callers leave their streams after the first words. What was generated is billed, and no usage was reported."""
    return await _left(field, Leave(chunks=2))


async def left_midway(field: Field) -> Later:
    """Callers leave their streams in the middle."""
    return await _left(field, Leave(chunks=20))


async def left_before_first_token(field: Field) -> Later:
    """Callers leave their streams before the first token. The input is billed all the same."""
    return await _left(field, Leave(after_s=0.5))


async def _left(field: Field, leave: Leave) -> Later:
    def ask(leave: Leave | None = leave) -> Ask:
        slow = 1.2 if leave is not None and leave.after_s is not None else 0.1
        pace = {"first_token_s": slow, "tokens_per_s": 200.0, "chunk_tokens": 4}
        return field.chat("Tell me a long story of " * 20, output=160, stream=True, leave=leave, script=pace)

    asks = [ask() for _ in range(56)]
    await field.fund(asks[0].cost_nano * 14)
    await field.by(14, asks, tries=2, seconds=15)
    return lambda: ask(None)


async def left_by_a_crowd(field: Field) -> Later:
    """24 callers leave long streams within the same second, while the provider is as fast as possible: all of each
    answer was generated and billed, and almost nothing of it was read.
    """
    return await _crowd(field, {"chunk_tokens": 1})


async def left_by_a_crowd_paced(field: Field) -> Later:
    """24 callers leave long streams, as before, but the provider generates only 60 tokens a second, and stops when its
    connection is closed."""
    return await _crowd(field, {"chunk_tokens": 1, "tokens_per_s": 60.0})


async def _crowd(field: Field, pace: Script) -> Later:
    def ask(leave: Leave | None = None, output: int = 2000) -> Ask:
        return field.chat("Tell me a long story.", output=output, stream=True, leave=leave, script=pace)

    asks = [ask(Leave(after_s=field.random.uniform(0.8, 1.6))) for _ in range(24)]
    await field.fund(asks[0].cost_nano * 6)
    await field.together(asks)
    return lambda: ask(output=60)


async def same_idempotency_key(field: Field) -> Later:
    """A client sends each call three times with one idempotency key: twice at once, once later. It is one purchase."""
    keys = [{"Idempotency-Key": str(UUID(int=field.random.getrandbits(128)))} for _ in range(8)]
    asks = [field.chat(script={"latency_s": 0.4}, headers=key) for key in keys]
    await field.fund(sum(ask.cost_nano for ask in asks) * 4)

    async def thrice(ask: Ask) -> None:
        await asyncio.gather(field.once(ask), field.once(ask))
        await field.once(ask)

    await asyncio.gather(*(thrice(ask) for ask in asks))
    return field.chat


async def impatient_retries(field: Field) -> Later:
    """A client gives up after half a second and sends the call again, without a key. Each of the two is a purchase, and
    those that nobody waited for must be in the books too.
    """
    asks = [field.chat(script={"latency_s": 1.0}, timeout_s=0.5) for _ in range(16)]
    await field.fund(asks[0].cost_nano * 20)

    async def thrice(ask: Ask) -> None:
        for _ in range(3):
            if (await field.once(ask)).end == "refused":
                return

    await asyncio.gather(*(thrice(ask) for ask in asks))
    return field.chat


async def provider_fails_first(field: Field) -> Later:
    """A provider answers 500, 503 or 429 first, and serves the retry. Money of failed attempts must be released."""
    statuses = [500, 503, 429]
    asks = [field.chat(script={"status": statuses[number % 3], "times": 1, "retry_after": 0.2}) for number in range(24)]
    await field.fund(asks[0].cost_nano * 12)

    async def again(ask: Ask) -> None:
        for _ in range(3):
            made = await field.patiently(ask, retry_failures=True)
            if made.end == "answered" or made.final:
                return

    await asyncio.gather(*(again(ask) for ask in asks))
    return field.chat


async def provider_down(field: Field) -> Later:
    """A provider answers 60 calls with unbilled errors only. No money is spent, and the whole budget must be left
    afterwards."""
    return await _faulty(field, [{"status": 500}, {"status": 429}, {"status": 503}], 60)


async def billed_errors(field: Field) -> Later:
    """A provider answers 500 after it has done the work, and bills it. The customer knows this, and has configured the
    gateway accordingly, if it has such a setting. A gateway that still releases the money overspends.
    """
    return await _faulty(field, [{"status": 500, "billed": "full"}], 32, errors_are_billed=True)


async def broken_connections(field: Field) -> Later:
    """Connections break before the answer of calls that the provider has served and billed. A gateway that cannot know
    must not assume that the call was free.
    """
    return await _faulty(field, [{"cut_before_headers": True, "billed": "full"}], 32)


async def _faulty(field: Field, faults: Sequence[Script], calls: int, *, errors_are_billed: bool = False) -> Later:
    scripts = [{"latency_s": 0.2, **faults[number % len(faults)]} for number in range(calls)]
    asks = [field.chat(script=script) for script in scripts]
    await field.fund(asks[0].cost_nano * 10, errors_are_billed=errors_are_billed)
    await field.by(8, asks, tries=1)
    return field.chat


async def cut_streams(field: Field) -> Later:
    """A provider cuts its streams in the middle and bills what it has sent. No usage was reported."""

    def ask(script: Script) -> Ask:
        return field.chat("Tell me a long story of " * 20, output=160, stream=True, script=script)

    asks = [ask({"cut_after_tokens": 80, "tokens_per_s": 400.0, "chunk_tokens": 4}) for _ in range(48)]
    await field.fund(asks[0].cost_nano * 10)
    await field.by(12, asks, tries=2, seconds=15)
    return lambda: ask({"chunk_tokens": 4})


async def slow_provider(field: Field) -> Later:
    """A provider hangs for longer than callers wait. It goes on working, and bills the whole answer."""
    asks = [field.chat(timeout_s=1.0, script={"hang_s": 2.5}) for _ in range(24)]
    await field.fund(asks[0].cost_nano * 10)
    await field.by(12, asks, tries=1)
    return field.chat


async def killed(field: Field) -> Later:
    """The gateway is killed (kill -9) with 20 calls in flight, half of them streams, and restarted. What the dead
    process had begun was billed.
    """
    asks = [field.chat(script={"latency_s": 1.5}) for _ in range(10)]
    slow = {"first_token_s": 0.3, "tokens_per_s": 50.0, "chunk_tokens": 4}
    asks += [field.chat(stream=True, script=slow) for _ in range(10)]
    await field.fund(asks[0].cost_nano * 36)
    flying = asyncio.create_task(field.together(asks))
    await asyncio.sleep(1.0)
    await field.kill_and_restart()
    await flying
    await field.by(16, [field.chat(script={"latency_s": 0.3}) for _ in range(40)], tries=2)
    return field.chat


async def window_boundary(field: Field) -> Later:
    """A budget of one minute is spent to its end shortly before the minute is over, and again shortly after. No
    minute's bill may be above the limit.
    """
    await asyncio.sleep((MINUTE_S - BEFORE_BOUNDARY_S - time.time()) % MINUTE_S)
    first = field.chat(script={"latency_s": 0.8})
    await field.fund(first.cost_nano * 20, "minute")

    async def once() -> None:
        made = await field.once(field.chat(script={"latency_s": 0.8}))
        if made.end == "refused":
            await asyncio.sleep(0.25)

    await asyncio.gather(*(field.until(BEFORE_BOUNDARY_S + 5, once) for _ in range(8)))
    return field.chat


async def dear_tokens(field: Field) -> Later:
    """Tokens with special prices: read from a cache, written to it for minutes or for an hour, and hidden reasoning."""
    text = "The contract says that nobody spends more than the budget. " * 60

    def ask(number: int) -> Ask:
        if number % 3 == 0:
            return field.chat(text, output=20, script={"cached_tokens": 600, "latency_s": 0.2})
        if number % 3 == 1:
            written = {"cache_write_tokens": 700, "cache_write_1h_tokens": 300 * (number % 2), "latency_s": 0.2}
            return field.chat(text, model="claude-haiku-4-5", output=20, script=written)
        return field.chat("Think.", model="gpt-5-mini", output=20, reasoning=400, script={"latency_s": 0.2})

    asks = [ask(number) for number in range(42)]
    await field.fund(sum(made.cost_nano for made in asks) // 3)
    await field.by(14, asks, tries=2)
    return field.chat


async def embeddings(field: Field) -> Later:
    """Embeddings of long texts in dense scripts: no max_tokens, no output, and prices of a few nano-dollars."""
    texts = [JAPANESE * 20, ARABIC * 12, "The weather is fine. " * 100]
    asks = [field.embed(field.random.choice(texts)) for _ in range(48)]
    await field.fund(sum(made.cost_nano for made in asks) // 3)
    await field.by(24, asks, tries=1)
    return lambda: field.embed("Short.")


async def several_choices(field: Field) -> Later:
    """Calls with n = 4: max_tokens applies to each choice."""

    def ask() -> Ask:
        return field.chat(output=60, n=4, script={"latency_s": 0.3})

    asks = [ask() for _ in range(40)]
    await field.fund(asks[0].cost_nano * 12)
    await field.by(20, asks, tries=1)
    return ask


async def built_in_search(field: Field) -> Later:
    """A model that searches automatically: one search a call, at ten times the price of its tokens. A gateway that prices
    only tokens serves ten times as many calls as the budget can pay for.
    """

    def ask() -> Ask:
        return field.chat(model="gpt-4o-search-preview", output=60, script={"latency_s": 0.2})

    asks = [ask() for _ in range(40)]
    await field.fund(asks[0].cost_nano * 12)
    await field.by(10, asks, tries=2)
    return ask


async def deep_research(field: Field) -> Later:
    """A model that searches as often as it likes, reads what it finds, and thinks at length, whatever max_tokens says.
    No parameter bounds that. What a gateway cannot bound it must refuse, and the budget must be left for other calls.
    """
    asks = [field.chat(model="sonar-deep-research", output=200, script={"latency_s": 0.2}) for _ in range(16)]
    await field.fund(asks[0].cost_nano * 4)
    await field.by(8, asks, tries=1)
    return field.chat


async def audio_as_a_file(field: Field) -> Later:
    """Audio that comes in a `file` or an `image_url` part. Its tokens cost three times as much as those of text."""
    sound = _wav(20)
    url = f"data:audio/wav;base64,{base64.b64encode(sound).decode()}"
    parts = ({"type": "file", "file": {"file_data": url}}, {"type": "image_url", "image_url": {"url": url}})
    tokens = measure("gemini-2.5-flash", "audio/wav", sound)

    def ask(number: int) -> Ask:
        part = parts[number % 2]
        return field.chat(
            model="gemini-2.5-flash", output=20, media=part, media_tokens=tokens, script={"latency_s": 0.2}
        )

    asks = [ask(number) for number in range(40)]
    await field.fund(sum(made.cost_nano for made in asks) // 3)
    await field.by(10, asks, tries=2)
    return field.chat


async def images_at_once(field: Field) -> Later:
    """24 small pictures at once, on a budget with room for 9 of them. If a gateway takes each for a picture of the
    greatest size, or for a whole context window, it serves none; if it counts them as free, it serves them all.
    """
    picture = _png(512, 512)
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    tokens = measure("claude-sonnet-5-5", "image/png", picture)

    def ask() -> Ask:
        script = {"latency_s": 0.4}
        return field.chat(model="claude-sonnet-5-5", output=40, media=part, media_tokens=tokens, script=script)

    asks = [ask() for _ in range(24)]
    await field.fund(asks[0].cost_nano * 9)
    await field.by(24, asks, tries=4)
    return ask


async def surcharge(field: Field) -> Later:
    """A surcharge that no request asks for: by a workspace's default, its models run in one region, at 1.1 times every
    price. The usage in the answer names the region.
    """

    def ask() -> Ask:
        return field.chat(model="claude-sonnet-5-5", output=100, script={"region": "us", "latency_s": 0.2})

    asks = [ask() for _ in range(40)]
    await field.fund(asks[0].cost_nano * 12)
    await field.by(10, asks, tries=2)
    return ask


async def off_peak(field: Field) -> Later:
    """A model with another price at peak hours. Whichever hour this is played at: what is billed must be counted, and
    the budget must not be used up by a price that is not billed.
    """

    def ask() -> Ask:
        return field.chat(model="deepseek-flash", output=100, script={"latency_s": 0.2})

    asks = [ask() for _ in range(40)]
    await field.fund(asks[0].cost_nano * 14)
    await field.by(10, asks, tries=2)
    return ask


async def own_cost(field: Field) -> Later:
    """Providers that report the cost of a call: one bills less than its list price (another host served the call), the
    other adds a fee for each request. Neither cost can be computed from tokens.
    """

    def ask(number: int) -> Ask:
        if number % 2:
            return field.chat(model="sonar", output=40, script={"latency_s": 0.2})
        listed = field.chat(model=ROUTED, output=400).cost_nano
        script = {"latency_s": 0.2, "cost_nano": listed * 3 // 5}
        return field.chat(model=ROUTED, output=400, script=script)

    asks = [ask(number) for number in range(40)]
    await field.fund(sum(made.cost_nano for made in asks) // 3)
    await field.by(10, asks, tries=2)
    return lambda: ask(0)


async def unknown_price(field: Field) -> Later:
    """A model whose configuration has a price that no gateway knows: a fee for each answer. The fee is billed, so a
    gateway must not treat a price that it does not understand as free.
    """

    def ask() -> Ask:
        words = field.chat(output=40).cost_nano  # both models have the same rates for tokens
        return field.chat(model=WITH_A_FEE, output=40, script={"latency_s": 0.2, "cost_nano": FEE_NANO + words})

    asks = [ask() for _ in range(40)]
    await field.fund(asks[0].cost_nano * 12)
    await field.by(10, asks, tries=1)
    return field.chat


def _wav(seconds: int, rate: int = 4000) -> bytes:
    """Silence, in 8 bits."""
    data = b"\x80" * (seconds * rate)
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 1, 8)
    return head + struct.pack("<4sI", b"data", len(data)) + data


def _png(width: int, height: int) -> bytes:
    """A black picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(width)) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


_CLAUDE = frozenset(("anthropic",))
_OPENAI = frozenset(("openai",))

SCENARIOS = (
    Scenario("burst", "burst: 64 callers, room for 27", burst, quick=True),
    Scenario("replicas", "the same burst on two instances", replicas, replicas=2, quick=True),
    Scenario("dense-scripts", "long prompts in dense scripts", dense_scripts),
    Scenario("no-max-tokens", "no max_tokens", no_max_tokens),
    Scenario("left-early", "streams left after two chunks", left_early, drain_s=1.2),
    Scenario("left-midway", "streams left in the middle", left_midway, drain_s=1.2),
    Scenario("left-before-first-token", "streams left before the first token", left_before_first_token, drain_s=2.2),
    Scenario("left-by-a-crowd", "24 long streams left at once", left_by_a_crowd, drain_s=4.0),
    Scenario("left-by-a-crowd-paced", "the same, generated slowly", left_by_a_crowd_paced, drain_s=4.0),
    Scenario("same-idempotency-key", "retries with the same key", same_idempotency_key, quick=True),
    Scenario("impatient-retries", "retries without a key", impatient_retries, drain_s=1.2),
    Scenario("provider-fails-first", "provider fails, then serves", provider_fails_first, drain_s=0.5),
    Scenario("provider-down", "provider errs, unbilled", provider_down),
    Scenario("billed-errors", "provider errs, and bills", billed_errors),
    Scenario("broken-connections", "connections break, billed", broken_connections),
    Scenario("cut-streams", "provider cuts streams", cut_streams),
    Scenario("slow-provider", "provider hangs, callers leave", slow_provider, drain_s=2.7),
    Scenario("dear-tokens", "cached, cache-write, reasoning", dear_tokens, needs=_CLAUDE | _OPENAI),
    Scenario("built-in-search", "a search built into the model", built_in_search, needs=_OPENAI),
    Scenario("deep-research", "deep research", deep_research, needs=frozenset(("perplexity", "openai"))),
    Scenario("audio-as-a-file", "audio as a file", audio_as_a_file, needs=frozenset(("google", "openai"))),
    Scenario("images-at-once", "24 small pictures at once", images_at_once, needs=_CLAUDE),
    Scenario("surcharge", "a surcharge nobody asked for", surcharge, needs=_CLAUDE),
    Scenario("off-peak", "prices by the hour", off_peak, needs=frozenset(("deepseek",))),
    Scenario("own-cost", "providers that name their cost", own_cost, needs=frozenset(("openrouter", "perplexity"))),
    Scenario("unknown-price", "a price that nobody knows", unknown_price, needs=frozenset(("openai", "own prices"))),
    Scenario("embeddings", "embeddings", embeddings, quick=True, needs=_OPENAI),
    Scenario("several-choices", "n = 4", several_choices),
    Scenario("window-boundary", "window roll-over", window_boundary, drain_s=1.0, at_boundary=True),
    Scenario("killed", "kill -9 in mid-flight, restart", killed, drain_s=2.5),
)
