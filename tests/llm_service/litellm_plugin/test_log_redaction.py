"""LiteLLM's log lines once it serves: they show what went wrong and where, and no text of a caller."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from llm_service.litellm_plugin.log_redaction import LogRedaction

PROMPT = "the planted prompt\n12:00:00 - FORGED:ERROR: all is well"
CALL = "3790b609-859d-4cb8-8d4f-f3cd16d4d3f1"


@pytest.fixture
def quiet() -> Iterator[LogRedaction]:
    quiet = LogRedaction()
    yield quiet
    quiet.end()


def fail() -> None:
    try:
        raise KeyError(PROMPT)
    except KeyError as error:
        raise RuntimeError(f"litellm.BadRequestError: {PROMPT}") from error


def logged(caplog: pytest.LogCaptureFixture, name: str, message: str, *, failing: bool = False) -> str:
    caplog.clear()
    try:
        if failing:
            fail()
        logging.getLogger(name).error(message)
    except RuntimeError:
        logging.getLogger(name).exception(message)
    [record] = caplog.records
    return logging.Formatter("%(name)s:%(levelname)s: %(message)s").format(record)


def test_an_errors_kind_place_and_call_are_logged_and_not_its_text(
    quiet: LogRedaction, caplog: pytest.LogCaptureFixture
) -> None:
    message = f"chat_completion(): Exception occured - litellm_call_id={CALL} - litellm.BadRequestError: {PROMPT}"
    assert PROMPT in logged(caplog, "LiteLLM Proxy", message)  # while LiteLLM starts, nothing is redacted
    quiet.begin()
    quiet.begin()
    line = logged(caplog, "LiteLLM Proxy", message, failing=True)
    assert line.startswith(
        f"LiteLLM Proxy:ERROR: BadRequestError; call {CALL}; RuntimeError from KeyError at test_log_redaction"
    )
    assert "\n" not in line
    assert "planted" not in line
    assert "planted" not in logged(caplog, "uvicorn.error", PROMPT, failing=True)
    assert logged(caplog, "LiteLLM Router", PROMPT) == "LiteLLM Router:ERROR: a message of LiteLLM's, left out"
    quiet.end()
    assert PROMPT in logged(caplog, "LiteLLM Proxy", message)


def test_ours_say_what_they_mean_and_not_what_an_error_quotes(
    quiet: LogRedaction, caplog: pytest.LogCaptureFixture
) -> None:
    quiet.begin()
    line = logged(caplog, "treasurer.litellm_plugin", "A witness could not be recorded: KeyError", failing=True)
    assert line.startswith(
        "treasurer.litellm_plugin:ERROR: A witness could not be recorded: KeyError; RuntimeError from"
    )
    assert "planted" not in line


def test_what_is_no_warning_is_left_as_it_is(quiet: LogRedaction, caplog: pytest.LogCaptureFixture) -> None:
    quiet.begin()
    with caplog.at_level(logging.INFO, "uvicorn.error"):
        logging.getLogger("uvicorn.error").info("Uvicorn running on %s", "here")
    assert caplog.messages == ["Uvicorn running on here"]
