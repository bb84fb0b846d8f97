"""How many pages a PDF has, and how much text they can show. Pure.

What must hold (I1):
  Neither number is smaller than the number that a provider's PDF reader finds. If readers may read a file in different
  ways, it has no such numbers.
  A provider extracts the text of each page. If a PDF has text elsewhere (forms, notes, attached files), its text has no
  bound.

A PDF can be made so that reading it takes long. pypdf limits each step, and this runs in a process that is ended after
some seconds (llm_service/call/pdf_process.py).
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from pypdf import PdfReader
from pypdf.errors import PyPdfError
from pypdf.generic import ArrayObject, DictionaryObject, StreamObject

#: The most pages; no provider reads longer PDFs: https://ai.google.dev/gemini-api/docs/document-processing
MOST_PAGES: Final = 1000
#: The most bytes of unpacked content; a page of dense text has about 20,000.
_MOST_CONTENT: Final = 40_000_000
_DEEPEST: Final = 8
#: If a font has no table of characters, one byte of content is at most one character: three bytes of UTF-8.
_LEAST_GROWTH: Final = 3
#: If it names characters, a name can stand for two or three characters of two bytes each: six bytes of UTF-8.
_NAMED_GROWTH: Final = 6
#: Names such as /f_f_i or /uni00660066, which can stand for any number of characters.
_SEVERAL: Final = re.compile(r"_|uni[0-9A-Fa-f]{5,}")
_DRAWS: Final = re.compile(rb"/[^\s/\[\]<>()]+\s+Do\b")
_HEX: Final = re.compile(rb"<([0-9A-Fa-f\s]*)>")


@dataclass(frozen=True, slots=True)
class PdfFacts:
    """The pages of a PDF, and the most bytes of UTF-8 that their text can be. `text_bytes` is None if nothing bounds it."""

    pages: int
    text_bytes: int | None


class _UnboundedText(Exception):
    """The text may be longer than the content of the pages shows."""


def read_pdf(content: bytes) -> PdfFacts | None:
    """The facts of a PDF. None: it is encrypted, broken or too long, or its number of pages is not certain."""
    try:
        reader = PdfReader(io.BytesIO(content), strict=False)
        if reader.is_encrypted:
            return None
        pages = list(reader.pages)
        root = cast("DictionaryObject", reader.trailer["/Root"])
        claimed = cast("DictionaryObject", root["/Pages"]).get("/Count")
        if not 0 < len(pages) <= MOST_PAGES or claimed != len(pages):
            return None
        try:
            return PdfFacts(len(pages), _text_bytes(root, cast("list[DictionaryObject]", pages)))
        except _UnboundedText:
            return PdfFacts(len(pages), None)
    # pypdf raises its own errors for broken files, and broken objects cause these built-in ones in it.
    except (PyPdfError, ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError, ArithmeticError):
        return None


def _text_bytes(root: DictionaryObject, pages: list[DictionaryObject]) -> int:
    names = _dictionary(root.get("/Names"))
    if "/AcroForm" in root or "/XFA" in root or "/EmbeddedFiles" in names or "/AF" in root:
        raise _UnboundedText
    total = 0
    for page in pages:
        for note in _array(page.get("/Annots")):
            if _dictionary(note).get("/Subtype") != "/Link":
                raise _UnboundedText
        contents = page.get("/Contents")
        contents = None if contents is None else contents.get_object()
        streams = _array(contents) if isinstance(contents, ArrayObject) else [contents]
        shown = b"\n".join(_data(stream) for stream in streams if stream is not None)
        total += _shown_bytes(shown, _dictionary(page.get("/Resources")), _DEEPEST)
        if total > _MOST_CONTENT:
            raise _UnboundedText
    return total


def _shown_bytes(shown: bytes, resources: Mapping[str, object], depth: int) -> int:
    """The most bytes of text that content shows, including the named objects that it draws."""
    if depth == 0:
        raise _UnboundedText
    if any("/ActualText" in _dictionary(each) for each in _dictionary(resources.get("/Properties")).values()):
        raise _UnboundedText  # a reader may extract that text instead of the text that is shown
    growth = max(
        [_LEAST_GROWTH, *(_growth(_dictionary(font)) for font in _dictionary(resources.get("/Font")).values())]
    )
    total = growth * len(shown)
    draws = len(_DRAWS.findall(shown))
    for each in _dictionary(resources.get("/XObject")).values():
        drawn = _resolved(each)
        if isinstance(drawn, StreamObject) and drawn.get("/Subtype") == "/Form" and draws:
            inner = _dictionary(drawn.get("/Resources")) or resources
            total += draws * _shown_bytes(_data(drawn), inner, depth - 1)
        if total > _MOST_CONTENT:
            raise _UnboundedText
    return total


def _growth(font: DictionaryObject) -> int:
    """The most bytes of UTF-8 that one byte of a string can be in a font."""
    if font.get("/Subtype") == "/Type3":
        raise _UnboundedText  # characters of such a font are drawings, which may contain text
    encoding = _resolved(font.get("/Encoding"))
    names = (
        [str(name) for name in _array(encoding.get("/Differences"))] if isinstance(encoding, DictionaryObject) else []
    )
    if any(_SEVERAL.search(name) for name in names):
        raise _UnboundedText
    least = _NAMED_GROWTH if names else _LEAST_GROWTH
    table = _resolved(font.get("/ToUnicode"))
    if not isinstance(table, StreamObject):
        return least
    digits = max((len(b"".join(found.split())) for found in _HEX.findall(_data(table))), default=0)
    return max(least, _LEAST_GROWTH * -(-digits // 4))


def _resolved(value: object) -> object:
    resolve = getattr(value, "get_object", None)
    return value if resolve is None else resolve()


def _dictionary(value: object) -> DictionaryObject:
    found = _resolved(value)
    return found if isinstance(found, DictionaryObject) else DictionaryObject()


def _array(value: object) -> list[object]:
    found = _resolved(value)
    return list(cast("list[object]", found)) if isinstance(found, ArrayObject) else []


def _data(stream: object) -> bytes:
    found = _resolved(stream)
    if not isinstance(found, StreamObject):
        raise _UnboundedText
    data = found.get_data()
    if len(data) > _MOST_CONTENT:
        raise _UnboundedText
    return data
