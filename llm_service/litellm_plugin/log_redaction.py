"""LiteLLM's log without the words of callers and providers. Loaded by the plugin in LiteLLM's environment.

What must hold:
  Once the proxy serves, no line of its log contains a prompt, an answer, or a line break that a caller sent. Without
  this, LiteLLM and uvicorn log every failed request with the error's message and a traceback, both of which quote the
  request or the answer.
  The rest of the line helps to find the fault: the types of the errors, where they were raised, and the call's id. The
  error's message is not lost, because the gateway gets it as the answer.

Standard library only.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from typing import Any

_KIND = re.compile(r"\b[A-Z][A-Za-z]{2,40}(?:Error|Exception|Timeout)\b")
_CALL = re.compile(r"\blitellm_call_id=([0-9a-f-]{36})\b")
#: Our own loggers never quote a caller, so their messages are kept.
_OURS = "treasurer."
_MOST_ERRORS, _FRAMES = 6, 4


def redacted(record: logging.LogRecord) -> logging.LogRecord:
    """A warning or an error as one line that contains nothing of a request."""
    error = record.exc_info[1] if record.exc_info else None
    if record.name.startswith(_OURS):
        parts = [record.getMessage()]
    else:
        message = str(record.msg) if not record.args else record.getMessage()
        kind, call = _KIND.search(message), _CALL.search(message)
        parts = [kind.group() if kind else "a message of LiteLLM's, left out"]
        if call:
            parts.append(f"call {call.group(1)}")
    if error is not None:
        parts.append(_raised(error))
    record.msg, record.args = "; ".join(parts), None
    record.exc_info = record.exc_text = record.stack_info = None
    return record


def _raised(error: BaseException) -> str:
    """The types of an error and of its causes, and where the first cause was raised."""
    kinds: list[str] = []
    first: BaseException = error
    seen: BaseException | None = error
    while seen is not None and len(kinds) < _MOST_ERRORS:
        kinds.append(type(seen).__name__)
        first, seen = seen, seen.__cause__ or seen.__context__
    frames = traceback.extract_tb(first.__traceback__)[-_FRAMES:]
    at = " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    return f"{' from '.join(kinds)} at {at or 'an unknown place'}"


class LogRedaction:
    """Redacts all records of this process from `begin` on. Before that, while LiteLLM starts, the operator needs them."""

    def __init__(self) -> None:
        self._make: Callable[..., logging.LogRecord] | None = None

    def begin(self) -> None:
        """Redact from now on. Calling it again has no effect."""
        if self._make is None:
            self._make = logging.getLogRecordFactory()
            logging.setLogRecordFactory(self._record)

    def end(self) -> None:
        """Log as before `begin`."""
        if self._make is not None:
            logging.setLogRecordFactory(self._make)
            self._make = None

    def _record(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        assert self._make is not None
        record = self._make(*arguments, **named)
        return redacted(record) if record.levelno >= logging.WARNING else record
