"""LiteLLM's log without what callers wrote. Loaded by the plugin, in LiteLLM's environment; standard library only.

What must hold: once the proxy serves, no line of its log holds a prompt, an answer, or a line break of a caller's.
LiteLLM and uvicorn log every failed request with its error's message and a traceback, and both quote what a
caller sent, or what a provider said of it. What is left tells where to look: the kinds of the errors, where they
were raised, and the call. What the error said went to the gateway, as its answer.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from typing import Any

_KIND = re.compile(r"\b[A-Z][A-Za-z]{2,40}(?:Error|Exception|Timeout)\b")
_CALL = re.compile(r"\blitellm_call_id=([0-9a-f-]{36})\b")
#: Ours say what they mean, and no caller's words.
_OURS = "treasurer."
_MOST_ERRORS, _FRAMES = 6, 4


def without_words(record: logging.LogRecord) -> logging.LogRecord:
    """A warning or an error in one line that holds nothing of a request."""
    error = record.exc_info[1] if record.exc_info else None
    if record.name.startswith(_OURS):
        told = [record.getMessage()]
    else:
        said = str(record.msg) if not record.args else record.getMessage()
        kind, call = _KIND.search(said), _CALL.search(said)
        told = [kind.group() if kind else "a message of LiteLLM's, left out"]
        if call:
            told.append(f"call {call.group(1)}")
    if error is not None:
        told.append(_raised(error))
    record.msg, record.args = "; ".join(told), None
    record.exc_info = record.exc_text = record.stack_info = None
    return record


def _raised(error: BaseException) -> str:
    """The kinds of an error and of what it was raised from, and where the first of them was raised."""
    kinds: list[str] = []
    first: BaseException = error
    seen: BaseException | None = error
    while seen is not None and len(kinds) < _MOST_ERRORS:
        kinds.append(type(seen).__name__)
        first, seen = seen, seen.__cause__ or seen.__context__
    frames = traceback.extract_tb(first.__traceback__)[-_FRAMES:]
    at = " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    return f"{' from '.join(kinds)} at {at or 'an unknown place'}"


class QuietLogs:
    """Makes records without words, from `begin` on: what goes wrong while LiteLLM starts is the operator's to read."""

    def __init__(self) -> None:
        self._make: Callable[..., logging.LogRecord] | None = None

    def begin(self) -> None:
        """From now on. Again: nothing."""
        if self._make is None:
            self._make = logging.getLogRecordFactory()
            logging.setLogRecordFactory(self._record)

    def end(self) -> None:
        """As it was."""
        if self._make is not None:
            logging.setLogRecordFactory(self._make)
            self._make = None

    def _record(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        assert self._make is not None
        record = self._make(*arguments, **named)
        return without_words(record) if record.levelno >= logging.WARNING else record
