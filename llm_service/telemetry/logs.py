"""Logging: one line a record, with the call id, without secrets.

What must hold:
- Text that looks like a credential is replaced before it is written, whether we or a library logged it, and whether it
  is in a message, an argument, an extra or a traceback.
- Only an `OwnText` is not searched for credentials: one is logged for each call, and its search took a seventh of the
  time of a call.
- A caller cannot forge a record: in the text format control characters are escaped, and the lines of a
  traceback are marked; in the JSON format a record is one JSON object on one line.
- Levels and destination are set once, on the root logger; the loggers of servers write through it too.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast
from uuid import UUID

_call_id: ContextVar[str | None] = ContextVar("treasurer_call_id", default=None)

REDACTED = "[redacted]"

# Each replacement keeps only enough to show which kind of secret it was. No pattern needs a word boundary before a
# distinctive prefix, because in a repr the two characters `\n` may stand there. Repeats that can fail are bounded, so
# the search is linear.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"eyJ[\w-]{5,1024}\.[\w-]+(?:\.[\w-]*)?"), f"eyJ{REDACTED}"),  # JWT: Treasurer's grants, cloud tokens
    (re.compile(r"sk-tr-[\w-]{4,}"), f"sk-tr-{REDACTED}"),
    (re.compile(r"(?<![A-Za-z])(sk|rk)-(?!tr-\[)[\w-]{8,}"), rf"\1-{REDACTED}"),  # OpenAI, Anthropic, Langfuse …
    (re.compile(r"(sk|rk)-(?!tr-\[)(?=[\w-]{0,200}\d)[\w-]{16,}"), rf"\1-{REDACTED}"),
    (re.compile(r"AIza[\w-]{20,}"), f"AIza{REDACTED}"),  # Google
    (re.compile(r"(AKIA|ASIA)[A-Z0-9]{12,}"), rf"\1{REDACTED}"),  # AWS
    (re.compile(r"(gsk_|xai-|hf_|ghp_|xox[abps]-)[\w-]{12,}"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)(bearer)\s+[\w.~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?basic)\s+[^\s\"',}]+"), rf"\1 {REDACTED}"),
    (re.compile(r"((?i:basic))\s+(?=[a-z]{0,200}[A-Z0-9+/=])[\w+/]{16,}={0,2}"), rf"\1 {REDACTED}"),
    (re.compile(r"(\w://[^\s:/@]*:)[^\s/]+@"), rf"\1{REDACTED}@"),  # a password in a URL
    (
        re.compile(
            r"(?i)((?:api[_-]?key|access_token|refresh_token|client_secret|secret_key|grant_secret|master_key|password"
            r"|authorization)[\"']?\s*[:=]\s*[\"']?)(?!\w*-?\[redacted|bearer|basic)[^\s\"',;&}]+"
        ),
        rf"\1{REDACTED}",
    ),
)
_SECRET_NAME = re.compile(r"(?i)api[_-]?key|token$|secret|password|authorization|master_key")
_MAX_TEXT = 16_384  # characters of a message or value: a caller who provokes a long one must not cost CPU
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "call_id", "taskName"}


#: A cache of short texts without a credential, such as the names of agents, models and errors in each call. A text that
#: was redacted is not cached, so no credential stays in memory here.
_clean: set[str] = set()
_MAX_CLEAN, _MAX_CLEAN_TEXT = 4_096, 128


class OwnText(str):
    """A message made only of our own ids, numbers and fixed words: it is written as it is. Values of any other origin,
    such as names, belong in `extra`, which is redacted."""

    __slots__ = ()


@contextmanager
def calling(call_id: UUID | str) -> Iterator[None]:
    """Log records in this context carry this call id. A generator that yields in the context must use `bind`."""
    token = _call_id.set(str(call_id))
    try:
        yield
    finally:
        _call_id.reset(token)


def bind(call_id: UUID | str | None) -> None:
    """Records of this task, and of tasks it starts, carry this call id from now on."""
    _call_id.set(None if call_id is None else str(call_id))


def redact(text: str) -> str:
    """The text without anything that looks like a credential, and no longer than a log line should be."""
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}… ({len(text) - _MAX_TEXT} more characters)"
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _redact_name(text: str) -> str:
    """`redact` for texts that are often repeated."""
    if text in _clean:
        return text
    redacted = redact(text)
    if redacted == text and len(text) <= _MAX_CLEAN_TEXT:
        if len(_clean) >= _MAX_CLEAN:
            _clean.clear()
        _clean.add(text)
    return redacted


def one_line(text: str) -> str:
    """The text with control characters, line ends and direction marks made visible (`\\n`, `\\x1b`)."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class _AddCallId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "call_id"):
            record.call_id = _call_id.get()
        return True


class _Formatter(logging.Formatter):
    def _time(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _extras(self, record: logging.LogRecord) -> dict[str, Any]:
        return {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}

    def _trace(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info else [record.exc_text or ""]
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        # A trace is redacted line by line, so that it is not cut like a long message: its last lines show what
        # happened.
        return "\n".join(redact(line) for part in parts if part for line in part.split("\n"))


class TextFormatter(_Formatter):
    """For people: `time level logger [call id] message key=value`, a traceback's lines marked with `|`."""

    def format(self, record: logging.LogRecord) -> str:
        call_id = getattr(record, "call_id", None)
        call = f" [{call_id}]" if call_id else ""
        extras = "".join(f" {name}={_redacted(name, value)}" for name, value in self._extras(record).items())
        message = record.getMessage() + extras
        message = one_line(message if _is_own(record) else redact(message))
        lines = [f"{self._time(record)} {record.levelname:<7} {record.name}{one_line(call)} {message}"]
        lines.extend(f"  | {one_line(line)}" for line in self._trace(record).split("\n") if line)
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


class JsonFormatter(_Formatter):
    """For programs: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self._time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if _is_own(record) else redact(record.getMessage()),
        }
        call_id = getattr(record, "call_id", None)
        if call_id:
            entry["call_id"] = call_id
        for name, value in self._extras(record).items():
            entry.setdefault(name, _redacted(name, value))
        trace = self._trace(record)
        if trace:
            entry["exception"] = trace
        return json.dumps(entry)


def _is_own(record: logging.LogRecord) -> bool:
    return type(record.msg) is OwnText and not record.args


def _redacted(name: str, value: object) -> object:
    """An extra's value in a form that JSON can hold, redacted at any depth, by its text or by its name."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if _SECRET_NAME.search(name):
        return REDACTED
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {redact(str(key)): _redacted(str(key), item) for key, item in items}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(name, item) for item in cast("Iterable[object]", value)]
    return _redact_name(str(value))


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["text", "json"] = "text",
    *,
    stream: TextIO | None = None,
) -> None:
    """Set up logging for this process, to `stream` (standard error). Calling it again replaces what it set up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    handler.addFilter(_AddCallId())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)
    if level != "debug":  # otherwise each request of our own HTTP clients would log a useless line
        for name in ("httpx", "httpx2", "urllib3", "asyncio"):
            logging.getLogger(name).setLevel(logging.WARNING)
