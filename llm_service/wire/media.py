"""Finds out the facts about the images, recordings and files of a request from their bytes. Pure.

What must hold (I1):
  The first bytes of a part decide what it is. The field that carries the part does not matter: audio in an `image_url`
  is audio.
  The bytes and each MIME type that the part names must agree, because a provider may trust either.
  Content that is not recognised is refused by name. So is content that is not in the request: a file's id, `gs://`.
  A size or a length is never smaller than the truth. If it cannot be read reliably, it is None, and the bound is then
  the worst case.

This module reads facts only. llm_service/pricing/media.py says how many tokens a provider makes of them.
"""

from __future__ import annotations

import binascii
import io
import struct
import warnings
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, cast

import orjson
from PIL import Image

from llm_service.errors import InvalidRequest

# Pixels are never decoded here, so an image of any size is safe to open.
Image.MAX_IMAGE_PIXELS = None


class Kind(StrEnum):
    """The kinds of parts. The values are used in messages."""

    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    PDF = "PDF"
    TEXT = "text file"
    DOCUMENT = "document"  # an office document or a table, which the provider turns into text by its own rules


@dataclass(frozen=True, slots=True)
class Medium:
    """One image, recording or file of a request.

    `width`, `height`: pixels of an image. `detail`: the resolution that the request asks for.
    `animated`: the image has more than one frame. `milliseconds`: the length of a recording, rounded up.
    `size`: the file's size in bytes. `pages`, `text_bytes`: the pages of a PDF, and the most bytes of text on them.
    `remote`: the part is only a URL, so nothing else about it is known.
    `content`: the bytes of a PDF whose pages have not been counted yet.
    """

    kind: Kind
    size: int = 0
    detail: str | None = None
    width: int | None = None
    height: int | None = None
    animated: bool = False
    milliseconds: int | None = None
    pages: int | None = None
    text_bytes: int | None = None
    remote: bool = False
    content: bytes | None = field(default=None, repr=False)


#: Types of parts that are text for every provider. No other type counts as text: LiteLLM passes on some (`document`,
#: `video_url` …) whose few bytes become many tokens.
_TEXT_PARTS: Final = frozenset({"text", "refusal", "thinking", "redacted_thinking"})
_IMAGE_PARTS: Final = frozenset({"image_url", "input_image"})
_FILE_PARTS: Final = frozenset({"file", "input_file"})
#: Fields that hold media. A part of another type may not have them, because LiteLLM may read them for a provider.
_MEDIA_FIELDS: Final = frozenset(
    {
        "image_url",
        "file",
        "file_data",
        "file_id",
        "file_url",
        "input_audio",
        "audio",
        "audio_url",
        "video_url",
        "source",
    }
)
#: Fields for a MIME type. LiteLLM prefers their value to the MIME type in the data URL.
_MIME_FIELDS: Final = ("format", "mime_type", "content_type")
_IMAGE_FIELDS: Final = frozenset({"url", "detail", *_MIME_FIELDS})
_FILE_FIELDS: Final = frozenset({"file_data", "file_id", "filename", "detail", *_MIME_FIELDS})
_DETAILS: Final = frozenset({"auto", "low", "medium", "high", "ultra_high", "original"})
#: From these a provider makes more text than they have bytes: OpenAI adds a description of a table's columns.
_TABLES: Final = frozenset({"text/csv", "text/tab-separated-values", "text/tsv"})
_OFFICE: Final = ("application/vnd.", "application/msword", "application/rtf", "application/epub+zip")
_TEXT_MIMES: Final = frozenset({"application/json", "application/xml", "application/yaml", "application/javascript"})
_STILL_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif"})
_AUDIO_BRANDS: Final = frozenset({b"M4A ", b"M4B "})


def read_part(part: object) -> tuple[Medium | None, int]:
    """The medium in a part of a message (None for text), and how many bytes of the request are its data.

    Raises:
        InvalidRequest: the part is malformed, or it cannot be bounded and priced.
    """
    if not isinstance(part, dict):
        raise InvalidRequest("Each part of a message's 'content' must be an object.", param="messages")
    fields = cast("dict[str, Any]", part)
    given: object = fields.get("type")
    kind = given if isinstance(given, str) else ""
    if kind in _TEXT_PARTS:
        if not _MEDIA_FIELDS.isdisjoint(fields):
            raise _unpriced(f"A part of type {kind!r} must hold text alone")
        return None, 0
    if kind in _IMAGE_PARTS:
        return _image_part(fields.get("image_url"))
    if kind in _FILE_PARTS:
        return _file_part(fields)
    if kind == "input_audio":
        return _audio_part(fields.get("input_audio"))
    raise _unpriced(f"A part of type {str(given)[:64]!r} cannot be bounded and priced")


def _image_part(given: object) -> tuple[Medium, int]:
    fields = {"url": given} if isinstance(given, str) else _fields(given, "image_url", _IMAGE_FIELDS)
    url, detail = fields.get("url"), _detail(fields)
    if not isinstance(url, str) or not url:
        raise InvalidRequest("An 'image_url' must have a 'url'.", param="messages")
    size = len(orjson.dumps(url))
    if url.startswith(("https://", "http://")):
        for mime in _named_mimes(fields):
            if _declared(mime) is not Kind.IMAGE:
                raise _unpriced(f"A URL of type {mime[:64]!r} cannot be read here, so that its cost cannot be bounded")
        return Medium(Kind.IMAGE, detail=detail, remote=True), size
    return _read(url, _named_mimes(fields), detail, "image_url"), size


def _file_part(part: dict[str, Any]) -> tuple[Medium, int]:
    # OpenAI's Responses API has these fields in the part itself, Chat Completions in an object within the part.
    nested: object = part.get("file")
    beside = {name: value for name, value in part.items() if name in _FILE_FIELDS and value is not None}
    if nested is not None and beside:
        raise InvalidRequest("A file's fields must stand either in 'file' or in the part.", param="messages")
    if "file_url" in part:
        raise _unpriced("A file that is given by a URL cannot be bounded and priced; send its bytes as 'file_data'")
    fields = beside if nested is None else _fields(nested, "file", _FILE_FIELDS)
    if fields.get("file_id") is not None:
        raise _unpriced("An uploaded file ('file_id') cannot be bounded and priced; send its bytes as 'file_data'")
    data = fields.get("file_data")
    if not isinstance(data, str) or not data:
        raise InvalidRequest("A file must have 'file_data', as a data: URL.", param="messages")
    return _read(data, _named_mimes(fields), _detail(fields), "file_data"), len(orjson.dumps(data))


def _audio_part(given: object) -> tuple[Medium, int]:
    fields = _fields(given, "input_audio", frozenset({"data", "format"}))
    data, form = fields.get("data"), fields.get("format")
    if not isinstance(data, str) or not data or form not in ("wav", "mp3"):
        raise InvalidRequest(
            "An 'input_audio' must have 'data' in base64, and the 'format' 'wav' or 'mp3'.", param="messages"
        )
    return _read(f"data:audio/{form};base64,{data}", (), None, "input_audio"), len(orjson.dumps(data))


def _fields(given: object, name: str, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidRequest(f"'{name}' must be an object.", param="messages")
    fields = cast("dict[str, Any]", given)
    for each in fields:
        if each not in known:
            raise _unpriced(f"The field {each[:64]!r} of '{name}' is not known here: it could change the cost")
    return fields


def _detail(fields: dict[str, Any]) -> str | None:
    detail: object = fields.get("detail")
    if detail is not None and (not isinstance(detail, str) or detail not in _DETAILS):
        raise InvalidRequest(f"'detail' must be one of {', '.join(sorted(_DETAILS))}.", param="messages")
    return detail


def _named_mimes(fields: dict[str, Any]) -> tuple[str, ...]:
    named = [fields[name] for name in _MIME_FIELDS if fields.get(name) is not None]
    if not all(isinstance(mime, str) for mime in named):
        raise InvalidRequest("A MIME type must be a string.", param="messages")
    return tuple(named)


def _unpriced(why: str) -> InvalidRequest:
    return InvalidRequest(f"{why}. So Treasurer does not pass it on.", param="messages", code="not_priced")


def _declared(mime: str) -> Kind | None:
    """The kind that a MIME type names. None: the type is not known here."""
    name = mime.partition(";")[0].strip().lower()
    family = name.partition("/")[0]
    if family in ("image", "audio", "video"):
        return Kind(family)
    if name == "application/pdf":
        return Kind.PDF
    if name in _TABLES or name.startswith(_OFFICE):
        return Kind.DOCUMENT
    return Kind.TEXT if family == "text" or name in _TEXT_MIMES else None


def _read(url: str, named: tuple[str, ...], detail: str | None, name: str) -> Medium:
    """Read a data: URL."""
    head, found, data = url.partition(";base64,")
    if not found or not head.startswith("data:") or len(head) > 256:
        raise _unpriced(f"The {name!r} {url[:32]!r}… is not a data: URL with base64, and it cannot be read here")
    try:
        content = binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:  # also raised for text that is not ASCII
        raise InvalidRequest(f"The base64 of '{name}' is not valid: {error}.", param="messages") from None
    kind = _recognise(content)
    for mime in (head.removeprefix("data:"), *named):
        declared = _declared(mime)
        if kind is None and declared in (Kind.TEXT, Kind.DOCUMENT) and _is_text(content):
            kind = declared
        if kind is None or kind is not declared:
            found_kind = "nothing that is known here" if kind is None else f"of the kind {kind.value!r}"
            raise _unpriced(f"The {name!r} says that it is {mime[:64]!r}, but its bytes are {found_kind}")
    assert kind is not None  # a data: URL always names a type, so the loop has run
    return _measured(kind, content, detail)


def _recognise(content: bytes) -> Kind | None:
    """The kind that the first bytes show. None: no known kind, so it may be text."""
    start = content[:16]
    if start.startswith(b"RIFF"):
        return {b"WAVE": Kind.AUDIO, b"WEBP": Kind.IMAGE, b"AVI ": Kind.VIDEO}.get(start[8:12])
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")):
        return Kind.IMAGE
    if start.startswith(b"BM") and start[6:10] == b"\0\0\0\0":
        return Kind.IMAGE
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        return Kind.IMAGE if brand in _STILL_BRANDS else Kind.AUDIO if brand in _AUDIO_BRANDS else Kind.VIDEO
    if start.startswith((b"ID3", b"fLaC", b"OggS", b"#!AMR")) or start[8:12] in (b"AIFF", b"AIFC"):
        return Kind.AUDIO
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0:  # the sync word of MPEG audio and of AAC
        return Kind.AUDIO
    if start.startswith((b"\x1a\x45\xdf\xa3", b"FLV\x01", b"\x30\x26\xb2\x75", b"\0\0\x01\xba", b"\0\0\x01\xb3")):
        return Kind.VIDEO
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return Kind.DOCUMENT
    return Kind.PDF if content[:1024].lstrip(b"\xef\xbb\xbf\0\t\n\r ").startswith(b"%PDF-") else None


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _measured(kind: Kind, content: bytes, detail: str | None) -> Medium:
    if kind is Kind.IMAGE:
        width, height, animated = _image_size(content)
        if not width or not height:  # the header says 0, but a decoder may find another size
            width = height = None
        return Medium(kind, len(content), detail, width, height, animated)
    if kind is Kind.AUDIO:
        return Medium(kind, len(content), detail, milliseconds=_milliseconds(content))
    return Medium(kind, len(content), detail, content=content if kind is Kind.PDF else None)


def _image_size(content: bytes) -> tuple[int | None, int | None, bool]:
    """Width, height, and whether there may be more than one frame. An unreadable header: None, None and True."""
    if content.startswith(b"RIFF"):
        return _webp_size(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about details that do not matter here
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "GIF", "BMP")) as image:
                # JPEG is not among these: a phone's JPEG often has a second picture behind the first, which decoders
                # ignore.
                animated = image.format in ("GIF", "PNG") and bool(getattr(image, "is_animated", False))
                return image.width, image.height, animated
    # Pillow raises its own errors and these built-in ones for a broken header.
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, OverflowError):
        return None, None, True


def _webp_size(content: bytes) -> tuple[int | None, int | None, bool]:
    """The same as `_image_size`, for WebP. Pillow is not used, because it would allocate memory for all pixels.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    chunk, head = content[12:16], content[20:30]
    if len(head) < 10:
        return None, None, True
    if chunk == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1, bool(head[0] & 2)
    if chunk == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, False
    if chunk == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[6:10])
        return width & 0x3FFF, height & 0x3FFF, False
    return None, None, True


def _milliseconds(content: bytes) -> int | None:
    """The length of a recording in milliseconds, rounded up. None: it cannot be known without decoding."""
    if content.startswith(b"RIFF"):
        return _wav_milliseconds(content)
    return _mp3_milliseconds(content)


def _wav_milliseconds(content: bytes) -> int | None:
    """The length of a WAV file, from the format of its samples and its size. The length in its header is not trusted."""
    place, form = 12, b""
    while place + 8 <= len(content):
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if name == b"data":
            break
        if name == b"fmt ":
            if form:
                return None  # if there are two, decoders differ on which one counts
            form = content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    if len(form) < 16:
        return None
    code, channels, rate, _, block, bits = struct.unpack("<HHIIHH", form[:16])
    if code == 0xFFFE:  # extensible format: the real format code comes later in the chunk
        code = int.from_bytes(form[24:26], "little")
    # Formats 1 and 3 have uncompressed samples. With compressed samples, the file's size does not show the length.
    if code not in (1, 3) or not rate or not block or block * 8 != channels * bits:
        return None
    return -(-len(content) * 1000 // (rate * block))


#: Kilobits a second, by index: https://www.iso.org/standard/22412.html (MPEG-1) and /26797.html (MPEG-2).
_MPEG1_KBPS: Final = (None, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, None)
_MPEG2_KBPS: Final = (None, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, None)
_MP3_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
#: The most frames that are counted, because other calls wait meanwhile. A longer recording is not measured; an hour has
#: more.
_MOST_FRAMES: Final = 40_000


def _mp3_milliseconds(content: bytes) -> int | None:
    """The length of MPEG audio, layer III: the sum of its frames. A length in a header is not trusted.

    None: there are other data between the frames, or too many frames.
    """
    place = 0
    if content.startswith(b"ID3") and len(content) > 10:
        place = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
    end = len(content) - 128 if content[-128:-125] == b"TAG" else len(content)
    microseconds = frames = 0
    while place + 4 <= end:
        head = int.from_bytes(content[place : place + 4], "big")
        version, layer = head >> 19 & 3, head >> 17 & 3
        rates = _MP3_RATES.get(version)
        if head >> 21 != 0x7FF or layer != 1 or rates is None or head >> 10 & 3 == 3:
            return None
        kbps = (_MPEG1_KBPS if version == 3 else _MPEG2_KBPS)[head >> 12 & 15]
        frames += 1
        if kbps is None or frames > _MOST_FRAMES:
            return None
        rate, samples = rates[head >> 10 & 3], 1152 if version == 3 else 576
        microseconds += -(-samples * 1_000_000 // rate)
        place += samples // 8 * kbps * 1000 // rate + (head >> 9 & 1)
    return -(-microseconds // 1000) if frames else None
