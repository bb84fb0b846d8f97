"""A request's body as JSON's bytes: unpacked if it is compressed, and refused if it cannot be JSON in UTF-8. Pure.

What must hold:
  An unpacked body is no larger than any other body may be: unpacking stops at the limit.
  If a body cannot be read, the refusal names what was sent and what is accepted.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Mapping

from llm_service.errors import BodyTooLarge, InvalidRequest, UnsupportedBody

#: Codings of a body that are unpacked. For zstd and Brotli the standard library of Python 3.11 has no decoder.
CODINGS = "gzip, deflate"
_GZIP = zlib.MAX_WBITS | 16
#: By the name of a coding: how zlib is to read it. Some clients send `deflate` without the header that RFC 9110 asks for.
_WINDOWS = {"gzip": (_GZIP,), "x-gzip": (_GZIP,), "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS)}
_UTF_32_16 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def is_packed(headers: Mapping[str, str]) -> bool:
    """Whether the headers say that the body is compressed."""
    return _coding(headers) not in ("", "identity")


def plain_body(body: bytes, headers: Mapping[str, str], *, most_bytes: int, too_large: str) -> bytes:
    """The body without its compression and its byte order mark.

    Raises:
        UnsupportedBody: its compression, its character set or its type is not accepted.
        BodyTooLarge: it is larger than `most_bytes` once it is unpacked; the message is `too_large`.
        InvalidRequest: it is not what its Content-Encoding says.
    """
    if not body:
        return body
    kind, _, parameters = headers.get("content-type", "").partition(";")
    if kind.strip().lower().startswith("multipart/"):
        raise UnsupportedBody(
            "The body is a multipart form. Send a JSON object, with 'Content-Type: application/json'."
        )
    if is_packed(headers):
        body = _unpacked(body, _coding(headers), most_bytes, too_large)
    charset = _charset(parameters)
    if _is_wide(body) or (charset not in ("", "utf-8", "utf8") and not body.isascii()):
        raise UnsupportedBody(
            f"The body is not in UTF-8{f' but in {charset[:40]!r}' if charset else ''}. Send JSON in UTF-8."
        )
    return body.removeprefix(codecs.BOM_UTF8)


def _coding(headers: Mapping[str, str]) -> str:
    return headers.get("content-encoding", "").strip().lower()


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return ""


def _is_wide(body: bytes) -> bool:
    """Whether a text is in UTF-16 or UTF-32: JSON begins with an ASCII character, which is more than one byte there."""
    return body.startswith(_UTF_32_16) or b"\0" in body[:2]


def _unpacked(body: bytes, coding: str, most_bytes: int, too_large: str) -> bytes:
    windows = _WINDOWS.get(coding)
    if windows is None:
        raise UnsupportedBody(
            f"The body's Content-Encoding is {coding[:40]!r}. Treasurer takes {CODINGS}, or none.", accepts=CODINGS
        )
    for window in windows:
        try:
            return _inflated(body, window, most_bytes, too_large)
        except zlib.error:
            continue
    raise InvalidRequest(
        f"The body is not what its Content-Encoding says: it cannot be unpacked as {coding}.", code="invalid_encoding"
    )


def _inflated(body: bytes, window: int, most_bytes: int, too_large: str) -> bytes:
    """Unpack a body, which may consist of several packed parts.

    Raises:
        zlib.error: it is not packed this way, or is cut. BodyTooLarge: it becomes larger than `most_bytes`.
    """
    parts: list[bytes] = []
    left = most_bytes
    while body:
        unpacker = zlib.decompressobj(window)
        parts.append(unpacker.decompress(body, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise BodyTooLarge(too_large)
        if not unpacker.eof:
            raise zlib.error("the end is missing")
        body = unpacker.unused_data
    return b"".join(parts)
