"""The number of pages of a PDF, and an upper bound of the text on them."""

from __future__ import annotations

import io
import zlib

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject

from llm_service.wire.pdf import PdfFacts, read_pdf
from tests.llm_service.wire.media_files import pdf


@pytest.mark.parametrize("pages", [1, 3, 200])
def test_i1_pages_and_text_are_never_fewer_than_a_reader_finds(pages: int) -> None:
    content = pdf(pages, "A rather long line of text, " * 20)
    facts = read_pdf(content)
    extracted = "".join(page.extract_text() for page in PdfReader(io.BytesIO(content)).pages)
    assert facts is not None
    assert facts.pages == pages
    assert facts.text_bytes is not None
    assert len(extracted.encode()) <= facts.text_bytes < 10 * len(extracted.encode())


def test_a_packed_page_counts_as_it_is_when_unpacked() -> None:
    writer = PdfWriter(clone_from=io.BytesIO(pdf(1, "x" * 5_000)))
    for page in writer.pages:
        page.compress_content_streams()
    written = io.BytesIO()
    writer.write(written)
    assert len(written.getvalue()) < 2_000
    facts = read_pdf(written.getvalue())
    assert facts is not None
    assert (facts.text_bytes or 0) >= 5_000


def changed(change: str) -> bytes:
    writer = PdfWriter(clone_from=io.BytesIO(pdf(1)))
    page = writer.pages[0]
    if change == "form":
        writer.root_object[NameObject("/AcroForm")] = DictionaryObject()
    elif change == "note":
        note = DictionaryObject({NameObject("/Subtype"): NameObject("/FreeText")})
        page[NameObject("/Annots")] = ArrayObject([note])
    elif change == "file":
        writer.add_attachment("a.txt", b"x" * 1000)
    elif change == "ligatures":
        encoding = DictionaryObject({NameObject("/Differences"): ArrayObject([NumberObject(65), NameObject("/f_f_i")])})
        page["/Resources"]["/Font"]["/F1"][NameObject("/Encoding")] = encoding  # pyright: ignore[reportIndexIssue]
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


@pytest.mark.parametrize("change", ["form", "note", "file", "ligatures"])
def test_i1_text_beside_the_pages_content_has_no_bound(change: str) -> None:
    assert read_pdf(changed(change)) == PdfFacts(1, None)


def test_links_are_not_text() -> None:
    writer = PdfWriter(clone_from=io.BytesIO(pdf(1)))
    link = DictionaryObject({NameObject("/Subtype"): NameObject("/Link")})
    writer.pages[0][NameObject("/Annots")] = ArrayObject([link])
    written = io.BytesIO()
    writer.write(written)
    facts = read_pdf(written.getvalue())
    assert facts is not None
    assert facts.text_bytes is not None


@pytest.mark.parametrize(
    "content",
    [b"", b"%PDF-1.4", b"%PDF-1.7\n" + b"\0" * 3000, pdf(2).replace(b"/Count 2", b"/Count 1"), pdf(1001),
     pdf(1)[:200], zlib.compress(pdf(1))],
    ids=["empty", "header", "zeros", "a count that is too small", "too many", "cut", "packed"],
)  # fmt: skip
def test_i1_a_file_of_which_readers_may_differ_has_no_facts(content: bytes) -> None:
    assert read_pdf(content) is None


def test_an_encrypted_file_has_no_facts() -> None:
    writer = PdfWriter(clone_from=io.BytesIO(pdf(1)))
    writer.encrypt("", algorithm="RC4-128")
    written = io.BytesIO()
    writer.write(written)
    assert read_pdf(written.getvalue()) is None
