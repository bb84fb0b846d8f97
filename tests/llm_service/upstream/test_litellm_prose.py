"""Messages that LiteLLM 1.106 wrote about errors of the simulated provider, and the text that callers get instead."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.upstream.litellm_prose import Said, said

AFTER = "\n\nLiteLLM: model group 'm' failed with the error above. No fallback was attempted."
OPENAI = '{"error":{"message":"Too long.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}'
ANTHROPIC = '{"type":"error","error":{"type":"not_found_error","message":"No such model."}}'
GOOGLE = '{"error":{"code":403,"message":"Not for you.","status":"PERMISSION_DENIED"}}'


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            f"litellm.BadRequestError: OpenAIException - {OPENAI}{AFTER}",
            Said("Too long.", "context_length_exceeded", "messages", "invalid_request_error"),
        ),
        (
            f"litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError: OpenAIException - {OPENAI}",
            Said("Too long.", "context_length_exceeded", "messages", "invalid_request_error"),
        ),
        (f"litellm.NotFoundError: AnthropicException - {ANTHROPIC}{AFTER}", Said("No such model.", type="not_found_error")),
        (
            f"litellm.InternalServerError: AnthropicException - b'{ANTHROPIC}'. Handle with `litellm.InternalServerError`.{AFTER}",
            Said("No such model.", type="not_found_error"),
        ),
        (f"litellm.BadRequestError: GeminiException BadRequestError - {GOOGLE}{AFTER}", Said("Not for you.")),
        (f"b'{GOOGLE}'{AFTER}", Said("Not for you.")),
        (f"litellm.APIError: Vertex_ai_betaException - [{GOOGLE}]", Said("Not for you.")),
        ("litellm.APIError: APIError: OpenAIException - {'error': {'message': \"It's full\", 'code': 'full'}}", Said("It's full", "full")),
        ('OpenAIException - {"error": "text"}', Said("text")),
        ('OpenAIException - {"detail": "text"}', Said("text")),
        ("litellm.RateLimitError: RateLimitError: OpenAIException - Slow down" + AFTER, Said("Slow down")),
        ("Slow down", Said("Slow down")),
        ("litellm.BadRequestError: OpenAIException - ", Said()),
        ("", Said()),
    ],
)  # fmt: skip
def test_the_providers_own_words_are_left(message: str, expected: Said) -> None:
    assert said(message) == expected


@pytest.mark.parametrize(
    ("message", "words", "code", "param"),
    [
        (
            "litellm.UnsupportedParamsError: anthropic does not support parameters: ['logit_bias', 'seed'], for model=claude-haiku-5-5."
            " To drop these, set `litellm.drop_params=True` or for proxy:\n\n`litellm_settings:\n drop_params: true`\n. \n If you want"
            " to use these params dynamically send allowed_openai_params=['logit_bias', 'seed'] in your request."
            + AFTER,
            "does not take 'logit_bias', 'seed'",
            "unsupported_parameter",
            "logit_bias",
        ),
        (
            "No deployments available for selected model, Try again in 5 seconds. All deployments for selected model are in cooldown."
            " Passed model=gpt-4.1-mini. pre-call-checks=False, cooldown_list=['openai-gpt-4.1-mini']",
            "Nothing was sent",
            "deployments_cooling_down",
            None,
        ),
        (
            "litellm.APIConnectionError: APIConnectionError: OpenAIException - Response payload is not completed:"
            " <TransferEncodingError: 400, message='Not enough data to satisfy transfer length header.'>",
            "the connection to it broke",
            None,
            None,
        ),
        (
            "litellm.InternalServerError: OpenAIException - Cannot connect to host 10.0.0.7:9 ssl:default [Connect call failed]",
            "could not be reached",
            None,
            None,
        ),
        ("litellm.Timeout: APITimeoutError - Request timed out. Error_str: Request timed out.", "in time", None, None),
    ],
)
def test_what_litellm_itself_refuses_or_fails_at_is_said_in_our_words(
    message: str, words: str, code: str | None, param: str | None
) -> None:
    found = said(message)
    assert found.message is not None
    assert words in found.message
    assert (found.code, found.param) == (code, param)
    assert not re.search(r"litellm|drop_params|cooldown_list|10\.0\.0\.7|Exception", found.message, re.IGNORECASE)


PARTS = st.sampled_from(
    ["litellm.", "BadRequestError: ", "OpenAIException - ", "b'", "{", "}", '"error"', ":", "[", "set drop_params", AFTER,
     '{"error":{"message":"litellm says"}}', "{'a': ", "\\x", "1"]
)  # fmt: skip


@given(st.lists(st.one_of(PARTS, st.text(max_size=5)), max_size=12).map("".join))
def test_no_word_of_litellms_is_left_of_any_message(message: str) -> None:
    found = said(message)
    assert "litellm" not in (found.message or "").lower()
    assert "drop_params" not in (found.message or "").lower()
