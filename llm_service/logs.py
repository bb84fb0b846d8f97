"""Logging: one line a record, with the call id, without secrets.

What must hold:
- Whatever is logged, by us or by a library, in a message, an argument, an extra or a traceback: what
  looks like a credential is replaced before it is written.
- A caller cannot forge a record: in the text format control characters are escaped, and the lines of a
  traceback are marked; in the JSON format a record is one JSON object on one line.
- Levels and destination are set once, on the root logger; the loggers of servers write through it too.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO
from uuid import UUID

_call_id: ContextVar[str | None] = ContextVar("treasurer_call_id", default=None)

REDACTED = "[redacted]"

# Each keeps what tells a reader which kind of secret it was, and no more. All are linear in the text.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"), f"eyJ{REDACTED}"),  # JWT: our grants, cloud tokens
    (re.compile(r"(?<![\w-])sk-tr-[\w-]{4,}"), f"sk-tr-{REDACTED}"),
    (re.compile(r"(?<![\w-])(sk|rk)-[\w-]{8,}"), rf"\1-{REDACTED}"),  # OpenAI, Anthropic, Langfuse, LiteLLM
    (re.compile(r"\bAIza[\w-]{20,}"), f"AIza{REDACTED}"),  # Google
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}"), rf"\1{REDACTED}"),  # AWS
    (re.compile(r"(?<![\w-])(gsk_|xai-|hf_|ghp_|xox[abps]-)[\w-]{8,}"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (
        re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*[\"']?(?:basic\s+)?)(?!bearer|basic)[^\s\"',}]+"),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b(basic)\s+(?=[\w+/=]*[A-Z0-9+/=])[\w+/]{16,}={0,2}"), rf"\1 {REDACTED}"),
    (re.compile(r"(\w://[^\s:/@]*:)[^\s/@]+@"), rf"\1{REDACTED}@"),  # a password in a URL
    (
        re.compile(
            r"(?i)((?:api[_-]?key|access_token|refresh_token|client_secret|secret_key|grant_secret|master_key|password)"
            r"[\"']?\s*[:=]\s*[\"']?)(?!\[redacted)[^\s\"',;&}]+"
        ),
        rf"\1{REDACTED}",
    ),
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "call_id", "taskName"}


@contextmanager
def calling(call_id: UUID | str) -> Iterator[None]:
    """Records that are logged inside carry this call id. Not across a `yield` of a generator: use `bind` there."""
    token = _call_id.set(str(call_id))
    try:
        yield
    finally:
        _call_id.reset(token)


def bind(call_id: UUID | str | None) -> None:
    """Records of this task, and of tasks it starts, carry this call id from now on."""
    _call_id.set(None if call_id is None else str(call_id))


def redact(text: str) -> str:
    """The text without anything that looks like a credential."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


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
        return redact("\n".join(part for part in parts if part))


class TextFormatter(_Formatter):
    """For people: `time level logger [call id] message key=value`, a traceback's lines marked with `|`."""

    def format(self, record: logging.LogRecord) -> str:
        call_id = getattr(record, "call_id", None)
        call = f" [{call_id}]" if call_id else ""
        extras = "".join(f" {name}={value}" for name, value in self._extras(record).items())
        message = one_line(redact(record.getMessage() + extras))
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
            "message": redact(record.getMessage()),
        }
        call_id = getattr(record, "call_id", None)
        if call_id:
            entry["call_id"] = call_id
        for name, value in self._extras(record).items():
            entry.setdefault(name, value)
        trace = self._trace(record)
        if trace:
            entry["exception"] = trace
        # Strings are redacted again as JSON, for what extras hold at any depth; escapes are left alone by it.
        return redact(json.dumps(entry, default=str))


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["text", "json"] = "text",  # noqa: A002  the word an operator knows
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
    if level != "debug":  # a line for each request that our own HTTP clients make helps nobody
        for name in ("httpx", "httpx2", "urllib3", "asyncio"):
            logging.getLogger(name).setLevel(logging.WARNING)
