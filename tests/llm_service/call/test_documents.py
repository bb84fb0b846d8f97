"""PDFs are read in a separate process, which always ends, whatever the file contains."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from llm_service.call import documents
from llm_service.call.documents import Documents
from llm_service.wire.media import Kind
from llm_service.wire.requests import ParsedRequest, parse_chat
from tests.llm_service.wire.media_files import data_url, pdf, png


def chat(*parts: dict[str, Any]) -> ParsedRequest:
    return parse_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode())


def pdf_part(content: bytes) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": data_url("application/pdf", content)}}


IMAGE = {"type": "image_url", "image_url": {"url": data_url("image/png", png(3, 4))}}


async def test_the_pages_of_each_pdf_are_counted() -> None:
    request = await Documents().counted(chat(pdf_part(pdf(3)), IMAGE, pdf_part(b"%PDF-1.4 broken")))
    counted, image, broken = request.media
    assert (counted.kind, counted.pages, counted.content) == (Kind.PDF, 3, None)
    assert (counted.text_bytes or 0) > 0
    assert (image.width, image.height) == (3, 4)
    assert (broken.pages, broken.text_bytes, broken.content) == (None, None, None)


async def test_a_request_without_a_pdf_is_not_touched() -> None:
    request = chat(IMAGE)
    assert await Documents().counted(request) is request


async def test_a_reader_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_PROCESS", "http.server")  # serves until it is ended
    monkeypatch.setattr(documents, "_MOST_S", 0.3)
    began = time.monotonic()
    request = await Documents().counted(chat(pdf_part(pdf(1))))
    assert request.media[0] == replace(request.media[0], pages=None, content=None)
    assert time.monotonic() - began < 5
