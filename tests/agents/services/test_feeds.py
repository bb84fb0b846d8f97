"""Feeds: what is read, what is refused, and how markup by strangers is cleaned."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.resolver import DefaultResolver
from aiohttp.test_utils import TestServer

from agents.services.feeds import (
    SAMPLES,
    FeedBroken,
    FeedReader,
    FeedRefused,
    FeedUnreachable,
    is_public,
    plain_text,
)

RSS = b"""<rss version="2.0"><channel><title>News</title>
<item><title>One &amp; only</title><link>https://x.example/1</link><description>&lt;b&gt;Bold&lt;/b&gt;</description></item>
</channel></rss>"""

Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[TestServer] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("/feed"))

    yield start
    for server in servers:
        await server.close()


OPEN = FeedReader(allow_private=True)


@pytest.mark.parametrize(("source", "stories"), [(SAMPLES[0], 4), (SAMPLES[1], 3)])
async def test_the_samples_that_ship_can_be_read(source: str, stories: int) -> None:
    feed = await FeedReader().read(source)
    assert len(feed.entries) == stories
    assert all(entry.title and entry.url.startswith("https://") and entry.published for entry in feed.entries)
    assert not any("<" in entry.summary for entry in feed.entries)


async def test_a_feed_is_read_over_http(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/feed":
            raise web.HTTPFound("/moved")
        return web.Response(body=RSS, content_type="application/rss+xml")

    feed = await OPEN.read(await serve(handler))
    assert (feed.title, feed.entries[0].title, feed.entries[0].summary) == ("News", "One & only", "Bold")


async def test_the_charset_of_the_answer_counts(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        body = "<rss version='2.0'><channel><title>Größe</title></channel></rss>".encode("latin-1")
        return web.Response(body=body, headers={"content-type": "application/rss+xml; charset=iso-8859-1"})

    feed = await OPEN.read(await serve(handler))
    assert feed.title == "Größe"
    assert feed.entries == ()


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/x",
        "http://localhost:1/x",
        "http://0x7f.1/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.1.2.3/",
        "http://0.0.0.0/",
        "ftp://x.example/feed",
        "file:///etc/hostname",
        "gopher://x.example/",
        "http://",
    ],
)
async def test_private_addresses_and_other_schemes_are_refused(address: str) -> None:
    with pytest.raises(FeedRefused):
        await FeedReader(allow_files=True).read(address)


async def test_a_name_that_leads_inside_is_refused_when_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(self: object, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="10.0.0.7", port=port, family=2, proto=6, flags=0)]

    monkeypatch.setattr(DefaultResolver, "resolve", resolve)
    with pytest.raises(FeedRefused, match="private network"):
        await FeedReader().read("https://innocent.example/feed")


async def test_a_redirect_to_another_scheme_is_refused(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPFound("file:///etc/passwd")

    with pytest.raises(FeedRefused, match="only http and https"):
        await OPEN.read(await serve(handler))


async def test_redirects_are_bounded(serve: Serve) -> None:
    seen = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        raise web.HTTPFound(f"/{seen}")

    with pytest.raises(FeedUnreachable, match="redirects more than 3 times"):
        await OPEN.read(await serve(handler))
    assert seen == 4


async def test_time_and_size_are_bounded(serve: Serve) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response(body=RSS)

    async def bomb(request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(bytes(5_000_000)), headers={"content-encoding": "gzip"})

    with pytest.raises(FeedUnreachable, match=r"within 0\.2 s"):
        await FeedReader(allow_private=True, timeout_s=0.2).read(await serve(slow))
    with pytest.raises(FeedUnreachable, match="larger than"):
        await OPEN.read(await serve(bomb))


async def test_a_source_without_a_feed_is_refused_with_the_reason(serve: Serve, tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.Response:
        if "missing" in request.path_qs:
            raise web.HTTPNotFound
        return web.Response(text="<html><body>Hello</body></html>", content_type="text/html")

    address = await serve(page)
    with pytest.raises(FeedBroken, match="neither RSS nor Atom"):
        await OPEN.read(address)
    with pytest.raises(FeedUnreachable, match="HTTP 404") as caught:
        await OPEN.read(f"{address}?key=missing-secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(FeedUnreachable, match="No such file"):
        await FeedReader(allow_files=True).read(str(tmp_path / "none.xml"))
    with pytest.raises(FeedUnreachable, match="could not be fetched"):
        await FeedReader().read("http://nowhere.invalid/feed")


async def test_files_are_read_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "feed.xml"
    path.write_bytes(RSS)
    assert (await FeedReader(allow_files=True).read(str(path))).title == "News"
    with pytest.raises(FeedRefused):
        await FeedReader().read(str(path))


async def test_a_feed_with_entities_that_explode_is_harmless() -> None:
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9))
    bomb = f'<!DOCTYPE rss [<!ENTITY e0 "ha">{lines}]><rss version="2.0"><channel><title>&e8;</title></channel></rss>'
    feed = OPEN._parse("x", bomb.encode(), "")
    assert len(feed.title) <= 200


def test_markup_becomes_text() -> None:
    assert plain_text("<p>One</p><p>two &lt;b&gt;</p><script>evil()</script><style>x</style>", 100) == "One two <b>"
    assert plain_text("a\x00b\u202ec\nd", 100) == "a b c d"
    assert plain_text("👩‍🚀 in orbit", 100) == "👩‍🚀 in orbit"
    assert plain_text("word " * 100, 20) == "word word word word…"
    assert plain_text("<script>never closed <b>x", 100) == ""
    assert plain_text("a <!-- b --> c &amp; d &lt;e&gt;", 100) == "a c & d <e>"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("::ffff:93.184.216.34", True),
        ("::ffff:192.168.0.1", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("fd00::1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public
