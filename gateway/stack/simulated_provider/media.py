"""How many tokens an image, a sound or a document is, by the rule that its provider publishes. Pure.

What must hold:
- The rules are written down here from the providers' pages, independently of the rules that Treasurer's holds follow.
- Sizes are read from the bytes. A file that cannot be read counts as a picture of 1,024 × 1,024 pixels, a minute of
  sound, or ten pages.

Rules: OpenAI, "Images and vision: calculating costs" (tiles of 512 pixels after two scalings; patches of 32 pixels, 1,536
at most); Anthropic, "Vision" (patches of 28 pixels; a long edge of 1,568 and as many tokens, or of 2,576 and 4,784
tokens from Claude Opus 4.7 on) and "PDF support" (1,500 tokens of text a page, and its picture); Google, "Understand
and count tokens" (258 tokens for a small image, else 258 for a tile of 768 pixels; 32 for a second of sound; 263 for a
second of video; 258 for a page). Read in November 2026.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "audio", "video", "document"]

_UNKNOWN_SIZE = (1024, 1024)
_UNKNOWN_SECONDS = 60.0
_UNKNOWN_PAGES = 10
_KBPS = {1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320), 2: (0, 8, 16, 24, 32, 40, 48, 56)}
_PAGE = re.compile(rb"/Type\s*/Page\b")


@dataclass(frozen=True, slots=True)
class Media:
    """Input tokens of media, by kind. The tokens of a document count as text."""

    text: int = 0
    image: int = 0
    audio: int = 0
    video: int = 0

    def __add__(self, other: Media) -> Media:
        return Media(
            self.text + other.text, self.image + other.image, self.audio + other.audio, self.video + other.video
        )


def measure(model: str, kind: str, data: bytes | None, detail: object = None) -> Media:
    """The tokens of one part. `kind` is its MIME type; `data` None: the provider fetches it, and it is of unknown size."""
    what = _kind(kind, data)
    if what == "image":
        return Media(image=_image(model, *(_size(data) or _UNKNOWN_SIZE), low=detail == "low"))
    if what == "audio":
        return Media(audio=int(32 * (_seconds(data) or _UNKNOWN_SECONDS)))
    if what == "video":
        return Media(video=int(263 * _UNKNOWN_SECONDS))
    pages = (len(_PAGE.findall(data)) if data is not None else 0) or _UNKNOWN_PAGES
    if model.startswith("gemini"):
        return Media(image=258 * pages)
    return Media(text=pages * (1500 + _image(model, *_UNKNOWN_SIZE, low=False)))


def decoded(address: str) -> tuple[str, bytes | None]:
    """The MIME type and the bytes of a `data:` address; both are unknown for any other address."""
    head, comma, body = address.partition(",")
    if not comma or not head.startswith("data:"):
        return "", None
    return head.removeprefix("data:").partition(";")[0], raw(body)


def raw(body: str) -> bytes | None:
    """Bytes in base64. None: it is not base64."""
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        return None


def _kind(mime: str, data: bytes | None) -> Kind:
    """The kind of a part, by its bytes or else by its MIME type."""
    head = data[:16] if data is not None else b""
    if head.startswith((b"\x89PNG", b"\xff\xd8", b"GIF8")) or head[8:12] == b"WEBP":
        return "image"
    if head.startswith((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xfa", b"fLaC", b"OggS")) or head[8:12] == b"WAVE":
        return "audio"
    if head.startswith(b"%PDF"):
        return "document"
    if mime.startswith("audio/"):
        return "audio"
    if mime.startswith("video/"):
        return "video"
    return "document" if mime == "application/pdf" else "image"


def _image(model: str, width: int, height: int, *, low: bool) -> int:
    if model.startswith("claude"):
        return _claude(model, width, height)
    if model.startswith("gemini"):
        if width <= 384 and height <= 384:
            return 258
        return 258 * _parts(width, 768) * _parts(height, 768)
    if model.startswith(("gpt-4.1-mini", "gpt-4.1-nano", "gpt-5-mini", "gpt-5-nano", "o4-mini")):
        hundredths = 246 if "nano" in model else 172 if model.startswith("o4") else 162
        return -(-min(1536, _parts(width, 32) * _parts(height, 32)) * hundredths // 100)
    base, tile = (2833, 5667) if model.startswith("gpt-4o-mini") else (70, 140) if "gpt-5" in model else (85, 170)
    if low:
        return base
    width, height = _fitted(width, height, 2048)
    short = min(width, height)
    if short > 768:
        width, height = width * 768 // short, height * 768 // short
    return base + tile * _parts(width, 512) * _parts(height, 512)


def _claude(model: str, width: int, height: int) -> int:
    sharp = re.search(r"-4-[78]\b|-5\b|-5-\d", model) is not None and not model.startswith("claude-haiku-4")
    edge, most = (2576, 4784) if sharp else (1568, 1568)
    width, height = _fitted(width, height, edge)
    return min(most, _parts(width, 28) * _parts(height, 28))


def _fitted(width: int, height: int, edge: int) -> tuple[int, int]:
    """The same picture with no side above `edge`."""
    long = max(width, height)
    return (width, height) if long <= edge else (max(1, width * edge // long), max(1, height * edge // long))


def _parts(length: int, size: int) -> int:
    return -(-length // size)


def _size(data: bytes | None) -> tuple[int, int] | None:
    """Width and height of a PNG, JPEG, GIF or WebP. None: not known."""
    if data is None or len(data) < 24:
        return None
    if data.startswith(b"\x89PNG"):
        return struct.unpack(">II", data[16:24])
    if data.startswith(b"GIF8"):
        return struct.unpack("<HH", data[6:10])
    if data[8:12] == b"WEBP":
        return _webp_size(data)
    return next(_jpeg_frames(data), None) if data.startswith(b"\xff\xd8") else None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if data[12:16] == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_frames(data: bytes) -> Iterator[tuple[int, int]]:
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        mark, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            yield width, height
        at += 2 + length


def _seconds(data: bytes | None) -> float | None:
    """How long a WAV or MP3 file plays. None: not known."""
    if data is None or len(data) < 44:
        return None
    if data[8:12] == b"WAVE":
        rate = int.from_bytes(data[28:32], "little")
        return (len(data) - 44) / rate if rate else None
    frame = data[10 + _syncsafe(data[6:10]) :] if data.startswith(b"ID3") else data
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    steps = _KBPS[1 if frame[1] >> 3 & 3 == 3 else 2]
    step = frame[2] >> 4
    return len(frame) / (steps[step] * 125) if 0 < step < len(steps) else None


def _syncsafe(size: bytes) -> int:
    return sum((byte & 0x7F) << (7 * (3 - place)) for place, byte in enumerate(size))
