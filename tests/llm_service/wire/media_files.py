"""Files for tests of media, written byte by byte, without any code that is tested."""

from __future__ import annotations

import base64
import io
import struct
import zlib

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject


def data_url(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def png(width: int, height: int, *, animated: bool = False) -> bytes:
    """The header of a PNG and the beginning of its data. The code reads no more than that."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    if animated:
        chunks.append((b"acTL", struct.pack(">II", 3, 0)))
    chunks.append((b"IDAT", zlib.compress(b"\0" * 16)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def jpeg(width: int, height: int, before: bytes = b"") -> bytes:
    """A JPEG up to the headers of its frame and its scan. `before`: segments in front of these."""
    frame = struct.pack(">HBHHBBBBBBBBBB", 17, 8, height, width, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1)
    return b"\xff\xd8" + before + b"\xff\xc0" + frame + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + b"\0" * 8 + b"\xff\xd9"


def wav(seconds: float, rate: int = 16_000, *, claimed: int | None = None, code: int = 1) -> bytes:
    """A WAV file of silence, with two bytes a sample. `claimed`: the size of the data by its header."""
    data = b"\0" * int(seconds * rate) * 2
    size = len(data) if claimed is None else claimed
    form = struct.pack("<HHIIHH", code, 1, rate, rate * 2, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16) + form
        + b"data" + struct.pack("<I", size) + data
    )  # fmt: skip


def mp3(frames: int, *, tagged: bool = False) -> bytes:
    """Frames of MPEG-1 layer III with 128 kbit/s at 44.1 kHz: 417 bytes and 26.12 ms each."""
    tag = b"ID3\x04\0\0" + bytes((0, 0, 1, 0)) + b"\0" * 128 if tagged else b""
    return tag + (b"\xff\xfb\x90\x00" + b"\0" * 413) * frames


def pdf(pages: int = 1, text: str = "Hello", **root: object) -> bytes:
    """A PDF that shows a text on each page."""
    writer = PdfWriter()
    for _ in range(pages):
        page = writer.add_blank_page(612, 792)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)  # pyright: ignore[reportPrivateUsage]
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        named = DictionaryObject({NameObject(key): NameObject(value) for key, value in font.items()})
        fonts = DictionaryObject({NameObject("/F1"): named})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    for name, value in root.items():
        writer.root_object[NameObject(f"/{name}")] = value  # pyright: ignore[reportArgumentType]
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()
