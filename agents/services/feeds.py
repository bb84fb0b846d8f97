"""Reading news feeds: RSS and Atom, from the web, from a file, or one of the samples that ship with Treasurer.

What must hold, because a feed's address may come from anyone and its text is written by strangers:
  A read is bounded in time, size and redirects, and follows http and https only.
  An address within a private network is refused at every redirect, and after a host's name was looked up, so that no
  name can point there.
  A file is read only for a caller at this machine.
  The result is plain text, cut to a length: data for a prompt, never markup.
  Every failure is a `FeedError` that names the feed and the reason.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.resources import files
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import cast

import aiohttp
import feedparser
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

SAMPLES = ("sample:news.xml", "sample:news-atom.xml")
_ACCEPT = "application/atom+xml, application/rss+xml, application/xml;q=0.9, text/xml;q=0.9, */*;q=0.1"
#: Ranges of IPv6 addresses that contain an IPv4 address (RFC 6052, RFC 3056), which could be that of a private host.
_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("2002::/16"))


class FeedError(Exception):
    """A feed could not be read. The message names the feed and says why."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"feed {source} {reason}")
        self.source = source
        self.reason = reason


class FeedRefused(FeedError):
    """The address may not be read: another scheme, a private network, or a file for a remote caller."""


class FeedUnreachable(FeedError):
    """The feed could not be fetched from its host or file: not found, refused, too slow or too large."""


class FeedBroken(FeedError):
    """The content is neither RSS nor Atom."""


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """One story, as plain text. `published` is the date as the feed writes it, or empty."""

    title: str
    url: str
    summary: str
    published: str


@dataclass(frozen=True, slots=True)
class Feed:
    source: str
    title: str
    entries: tuple[FeedEntry, ...]


@dataclass(frozen=True, slots=True)
class FeedReader:
    """Reads feeds. `allow_files` permits paths of this machine, `allow_private` hosts of a private network."""

    allow_files: bool = False
    allow_private: bool = False
    timeout_s: float = 10
    max_bytes: int = 2 * 1024 * 1024
    max_redirects: int = 3
    max_entries: int = 20
    max_summary_chars: int = 600

    async def read(self, source: str) -> Feed:
        """The feed at an http(s) address, at a path, or among `SAMPLES`, with its first `max_entries` stories.

        Raises:
            FeedRefused, FeedUnreachable, FeedBroken.
        """
        content_type = ""
        if source in SAMPLES:
            data = (files("agents.services") / "samples" / source.removeprefix("sample:")).read_bytes()
        elif "://" in source:
            data, content_type = await self._fetch(source)
        else:
            data = await asyncio.to_thread(self._file, source)
        return await asyncio.to_thread(self._parse, shown(source), data, content_type)

    def _file(self, source: str) -> bytes:
        if not self.allow_files:
            raise FeedRefused(source, "is not an http or https address, and files may not be read here")
        path = Path(source)
        try:
            with path.open("rb") as file:
                data = file.read(self.max_bytes + 1)
        except OSError as error:
            raise FeedUnreachable(source, f"cannot be read: {error.strerror or error}") from error
        if len(data) > self.max_bytes:
            raise FeedUnreachable(source, f"is larger than {self.max_bytes:,} bytes")
        return data

    async def _fetch(self, source: str) -> tuple[bytes, str]:
        resolver = None if self.allow_private else _PublicResolver()
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                aiohttp.ClientSession(
                    connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
                ) as session,
            ):
                return await self._follow(session, source)
        except TimeoutError as error:
            raise FeedUnreachable(shown(source), f"did not answer within {self.timeout_s:g} s") from error
        except (aiohttp.ClientError, ValueError, OSError) as error:
            if isinstance(error.__cause__, _PrivateAddress):
                raise FeedRefused(shown(source), str(error.__cause__)) from None
            raise FeedUnreachable(
                shown(source), f"could not be fetched: {str(error) or type(error).__name__}"
            ) from error

    async def _follow(self, session: aiohttp.ClientSession, source: str) -> tuple[bytes, str]:
        """Follow redirects here, not in aiohttp, so that each address is checked as the first one was."""
        url = URL(source)
        for _ in range(self.max_redirects + 1):
            self._check(source, url)
            async with session.get(url, allow_redirects=False, headers={"accept": _ACCEPT}) as response:
                location = response.headers.get("location")
                if response.status in {301, 302, 303, 307, 308} and location:
                    url = url.join(URL(location))
                    continue
                if response.status != 200:
                    raise FeedUnreachable(shown(source), f"answered HTTP {response.status}")
                return await self._body(source, response), response.headers.get("content-type", "")
        raise FeedUnreachable(shown(source), f"redirects more than {self.max_redirects} times")

    async def _body(self, source: str, response: aiohttp.ClientResponse) -> bytes:
        """The decompressed body. It is counted as it arrives, so that a compressed bomb is cut off too."""
        data = bytearray()
        async for chunk in response.content.iter_chunked(64 * 1024):
            data += chunk
            if len(data) > self.max_bytes:
                raise FeedUnreachable(shown(source), f"is larger than {self.max_bytes:,} bytes")
        return bytes(data)

    def _check(self, source: str, url: URL) -> None:
        if url.scheme not in {"http", "https"} or not url.host:
            raise FeedRefused(shown(source), f"leads to {url.scheme or 'no scheme'}: only http and https are read")
        if not self.allow_private and (address := _address(url.host)) is not None and not is_public(address):
            raise FeedRefused(shown(source), str(_PrivateAddress(url.host)))

    def _parse(self, source: str, data: bytes, content_type: str) -> Feed:
        headers = {"content-type": content_type} if content_type else {}
        # A stream, because feedparser would first try to use the bytes as an address or a file name.
        parsed = cast(Mapping[str, object], feedparser.parse(io.BytesIO(data), response_headers=headers))
        entries = cast(list[Mapping[str, object]], parsed["entries"])
        if not parsed.get("version") and not entries:
            problem = parsed.get("bozo_exception")
            raise FeedBroken(source, "is neither RSS nor Atom" + (f" ({problem})" if problem else ""))
        channel = cast(Mapping[str, object], parsed["feed"])
        title = plain_text(str(channel.get("title") or ""), 200) or source
        return Feed(source, title, tuple(self._entries(entries)))

    def _entries(self, entries: Iterable[Mapping[str, object]]) -> Iterable[FeedEntry]:
        for entry in list(entries)[: self.max_entries]:
            link = str(entry.get("link") or "")
            yield FeedEntry(
                title=plain_text(str(entry.get("title") or ""), 300),
                url=link if link.startswith(("http://", "https://")) else "",
                summary=plain_text(str(entry.get("summary") or ""), self.max_summary_chars),
                published=plain_text(str(entry.get("published") or entry.get("updated") or ""), 60),
            )


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is public. An IPv6 address that contains an IPv4 one is public if that is."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _TRANSLATED):
            return False
    return address.is_global and not address.is_multicast


def plain_text(markup: str, max_chars: int) -> str:
    """HTML as one line of text: no tags, scripts, styles or control characters; cut with an ellipsis."""
    parser = _Text()
    parser.feed(markup[: 50 * max_chars])  # the cut below leaves nothing of the rest
    parser.close()
    printable = (char if char.isprintable() or char in "\u200c\u200d" else " " for char in "".join(parser.parts))
    text = " ".join("".join(printable).split())
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "…"


class _Text(HTMLParser):
    """Collects the text that a browser would show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in {"script", "style"}
        self.parts.append(" " if tag in {"p", "br", "li", "div", "tr", "td"} else "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in {"script", "style"} and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


class _PrivateAddress(OSError):
    """A host's name leads to a private address. An OSError, so that aiohttp treats it as a failed lookup."""

    def __init__(self, host: str) -> None:
        super().__init__(f"leads to {host}, an address within a private network; feeds from there are not read")


class _PublicResolver(AbstractResolver):
    """Looks names up and keeps public addresses only. aiohttp connects to these, and looks nothing up a second time."""

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [result for result in found if (ip := _address(result["host"])) is not None and is_public(ip)]
        if found and not public:
            raise _PrivateAddress(host)
        return public

    async def close(self) -> None:
        await self._resolver.close()


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def shown(source: str) -> str:
    """A source as messages show it: without its password and its query, which may hold secrets."""
    if "://" not in source:
        return source
    try:
        return str(URL(source).with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        return source.split("?", 1)[0]
