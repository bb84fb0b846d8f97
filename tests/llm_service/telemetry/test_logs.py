from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Literal

import pytest

from llm_service.telemetry import logs

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
KEY = "sk-tr-AbCdEf0123456789AbCdEf0123456789AbCdEf01234"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The whole test session shares the root logger, so restore it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpx2", "urllib3", "asyncio")
    before = [(logging.getLogger(n), logging.getLogger(n).level, logging.getLogger(n).propagate) for n in names]
    yield
    logs.bind(None)
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, old, propagate in before:
        logger.setLevel(old)
        logger.propagate = propagate


def log_to(form: Literal["text", "json"], level: Literal["debug", "info"] = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level, form, stream=stream)
    return stream


SECRETS = {
    "a key of ours": (f"refused {KEY}", "sk-tr-[redacted]"),
    "cut short": ("refused sk-tr-AbCdEf01", "sk-tr-[redacted]"),
    "OpenAI": ("key sk-proj-abcDEF1234567890abcDEF", "sk-[redacted]"),
    "Anthropic": ("key=sk-ant-api03-abcdEFGH12345678-AA", "sk-[redacted]"),
    "after an escape": (r"'line\nsk-abcDEF1234567890abcDEF'", "sk-[redacted]"),
    "Google": ("AIzaSyA1234567890abcdefghijklmnopqrstuvw", "AIza[redacted]"),
    "AWS": ("AKIAIOSFODNN7EXAMPLE", "AKIA[redacted]"),
    "Groq": ("gsk_abcdefABCDEF1234567890", "gsk_[redacted]"),
    "bearer": ("Authorization: Bearer abc.DEF-123456~xyz", "Bearer [redacted]"),
    "basic": ("authorization: Basic cGstbGYtMTpzay1sZi0yCg==", "Basic [redacted]"),
    "basic in a header": ("{'authorization': 'Basic cGstbGY6eA=='}", "[redacted]"),
    "a raw authorization": ("authorization=opensesame123", "authorization=[redacted]"),
    "JWT": (f"grant {JWT}", "eyJ[redacted]"),
    "JWT after an escape": (rf"\n{JWT}", "eyJ[redacted]"),
    "URL": ("postgresql://treasurer:hunter2hunter@127.0.0.1:5432/x", "treasurer:[redacted]@127.0.0.1:5432/x"),
    "redis": ("redis://:hunter2hunter@127.0.0.1/0", "redis://:[redacted]@127.0.0.1/0"),
    "JSON": ('{"api_key": "opensesame"}', '"api_key": "[redacted]"'),
    "password": ("password=opensesame", "password=[redacted]"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_what_looks_like_a_secret_is_not_written(name: str):
    text, kept = SECRETS[name]
    redacted = logs.redact(text)
    assert kept in redacted
    for secret in (
        "AbCdEf0",
        "1234567890",
        "api03",
        "hunter2",
        "opensesame",
        "cGstbGY",
        "dBjft",
        "IOSFODNN",
        "abc.DEF",
    ):
        assert secret not in redacted


@pytest.mark.parametrize(
    "text",
    [
        "agent risk-adjusted spent $0.05 of $1.00",
        "max_tokens: 4096, first_token_ms: 12, task-list done",
        "the bearer is gone; a basic understanding of everything",
        "http://127.0.0.1:4100/v1/chat/completions 200",
        "key of agent digest has expired",
    ],
)
def test_ordinary_text_is_left_alone(text: str):
    assert logs.redact(text) == text


def test_redacting_takes_time_in_proportion_however_a_caller_writes():
    started = time.perf_counter()
    for pattern in ("eyJ", "sk-", "eyJa.", "bearer ", "api_key=", "a://x:", "Basic a", "basic " + " " * 50, "AKIA"):
        logs.redact(pattern * 100_000)
    assert time.perf_counter() - started < 30


def test_text_is_one_line_a_record_and_cannot_be_forged():
    stream = log_to("text")
    logging.getLogger("gateway").warning("model %s", "x\r\n2026-11-22T00:00:00Z INFO root forged\x1b[31m\u2028\u202e")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert r"x\r\n2026-11-22T00:00:00Z INFO root forged\x1b[31m\u2028\u202e" in lines[0]
    assert "WARNING gateway model" in lines[0]


def test_a_traceback_is_written_marked_and_redacted():
    stream = log_to("text")
    try:
        raise ValueError(f"bad key {KEY}\n2026 INFO root forged\rx")
    except ValueError:
        logging.getLogger("gateway").exception("it failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("it failed")
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert "ValueError: bad key sk-tr-[redacted]" in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_json_is_one_object_a_line_with_extras_redacted_at_any_depth():
    stream = log_to("json")
    extra = {
        "agent": "digest",
        "cost_nano": 12,
        "headers": {"Authorization": "opensesame", "x": [KEY, {"deep": 'say "sk-abcdefgh12345678"\\'}]},
        "message_id": "a\nb",
    }
    try:
        raise ValueError(JWT)
    except ValueError:
        logging.getLogger("gateway").error("key %s", KEY, extra=extra, exc_info=True)
    [line] = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["message"] == "key sk-tr-[redacted]"
    assert (entry["level"], entry["logger"], entry["agent"], entry["cost_nano"]) == ("error", "gateway", "digest", 12)
    assert entry["time"].endswith("Z")
    assert entry["headers"]["Authorization"] == "[redacted]"
    assert entry["headers"]["x"] == ["sk-tr-[redacted]", {"deep": 'say "sk-[redacted]"\\'}]
    assert "ValueError: eyJ[redacted]" in entry["exception"]
    assert KEY not in line
    assert "opensesame" not in line


async def test_records_carry_the_call_id_of_their_own_task():
    stream = log_to("json")
    log = logging.getLogger("llm_service")

    async def call(name: str) -> None:
        with logs.calling(name):
            await asyncio.sleep(0)
            log.info("from %s", name)

    await asyncio.gather(call("a"), call("b"))
    log.info("outside")
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {entry["message"]: entry.get("call_id") for entry in entries} == {
        "from a": "a",
        "from b": "b",
        "outside": None,
    }


def test_the_text_format_shows_the_call_id():
    stream = log_to("text")
    logs.bind("018f-call")
    logging.getLogger("x").info("hello")
    assert "INFO    x [018f-call] hello" in stream.getvalue()


def test_levels_hold_and_configuring_again_replaces():
    first = log_to("text")
    second = log_to("text")
    logging.getLogger("x").debug("quiet")
    logging.getLogger("uvicorn.error").info("server is up")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
    assert "server is up" in second.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_text_that_utf8_cannot_hold_is_written(form: Literal["text", "json"]):
    stream = log_to(form)
    logging.getLogger("x").info("odd \ud800", extra={"more": "\udcff", "what": object})
    assert stream.getvalue().encode("utf-8")
    assert "odd" in stream.getvalue()


def test_a_huge_message_is_cut():
    stream = log_to("text")
    logging.getLogger("x").info("a" * 1_000_000)
    assert len(stream.getvalue()) < 20_000
    assert "more characters" in stream.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("field", ["agent", "model", "error"])
def test_a_secret_in_a_calls_line_is_never_written_nor_kept(form: Literal["text", "json"], name: str, field: str):
    planted, shown = SECRETS[name]
    stream = log_to(form)
    for _ in range(2):  # twice, because the log remembers texts that it has searched for secrets
        values = {"agent": "support-bot", "model": "gpt-4o", "error": None, "cost_nano": 17} | {field: planted}
        logging.getLogger("calls").info(logs.OwnText("call 0190 posted"), extra=values)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "call 0190 posted" in line
        written = json.loads(line)[field] if form == "json" else line
        assert shown in written
        assert planted not in written
    assert planted not in logs._clean


def test_our_own_text_is_written_as_it_is_only_without_arguments():
    stream = log_to("text")
    logging.getLogger("calls").info(logs.OwnText("call %s posted"), KEY)
    logging.getLogger("calls").info(logs.OwnText("call 1 posted"), extra={"api_key": "opensesame", "model": "a\nb"})
    with_argument, without = stream.getvalue().splitlines()
    assert "call sk-tr-[redacted] posted" in with_argument
    assert without.endswith(r"call 1 posted api_key=[redacted] model=a\nb")


def test_texts_that_were_found_clean_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "_MAX_CLEAN", 3)
    stream = log_to("text")
    for number in range(20):
        logging.getLogger("calls").info(logs.OwnText("call"), extra={"model": f"m{number}", "error": "x" * 200})
    assert len(logs._clean) <= 3
    assert len(stream.getvalue().splitlines()) == 20
