"""Counts the pages of a request's PDFs, in a separate process.

What must hold:
  A PDF that is made to be slow to read, or to need much memory, harms neither other calls nor this process.
  If the pages cannot be counted, the request stays as it is, and the PDF is bounded by the model's context window.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import replace
from typing import Final

import orjson

from llm_service.wire.media import Medium
from llm_service.wire.pdf import PdfFacts
from llm_service.wire.requests import ParsedRequest

log = logging.getLogger(__name__)

#: Larger files are not read; no provider takes larger ones within a request.
_MOST_BYTES: Final = 50_000_000
_PROCESS: Final = "llm_service.call.pdf_process"
_MOST_S: Final = 10.0
_AT_ONCE: Final = 2


class Documents:
    """Reads PDFs, a few at a time."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def counted(self, request: ParsedRequest) -> ParsedRequest:
        """The request, with the pages of its PDFs where they can be counted."""
        if all(medium.content is None for medium in request.media):
            return request
        return replace(request, media=tuple([await self._counted(medium) for medium in request.media]))

    async def _counted(self, medium: Medium) -> Medium:
        if medium.content is None:
            return medium
        facts = await self._facts(medium.content) if len(medium.content) <= _MOST_BYTES else None
        if facts is None:
            return replace(medium, content=None)
        return replace(medium, content=None, pages=facts.pages, text_bytes=facts.text_bytes)

    async def _facts(self, content: bytes) -> PdfFacts | None:
        async with self._places:
            reader = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-m", _PROCESS, env={},  # so that the process gets no secrets
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                async with asyncio.timeout(_MOST_S):
                    written, _ = await reader.communicate(content)
            except TimeoutError:
                log.warning("a PDF of %d bytes was given up after %.0f s", len(content), _MOST_S)
                return None
            finally:
                if reader.returncode is None:
                    reader.kill()
                    await reader.wait()
        found = orjson.loads(written) if reader.returncode == 0 and written else None
        return None if found is None else PdfFacts(**found)
