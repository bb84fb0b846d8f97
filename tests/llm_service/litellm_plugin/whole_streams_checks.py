"""A stream is read until the provider ends it, through LiteLLM's own wrapper. Run by run_checks.py."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import litellm
from litellm import constants
from litellm.litellm_core_utils.litellm_logging import Logging
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.types.utils import ModelResponseStream

from llm_service.litellm_plugin.whole_streams import read_streams_to_their_end
from tests.llm_service.litellm_plugin.checking import chunk

EQUAL = 200


async def _provider() -> AsyncIterator[ModelResponseStream]:
    for _ in range(EQUAL):
        yield chunk(content="----")
    yield chunk(content=None, finish_reason="stop")


async def _read() -> int:
    """How many of the provider's equal chunks LiteLLM's wrapper passes on."""
    log = Logging(
        model="gpt-4o", messages=[], stream=True, call_type="acompletion", start_time=time.time(),
        litellm_call_id="c", function_id="f",
    )  # fmt: skip
    stream = CustomStreamWrapper(_provider(), "gpt-4o", log, custom_llm_provider="openai")
    return len([each async for each in stream if each.choices[0].delta.content == "----"])


async def check_litellm_breaks_a_stream_of_equal_chunks() -> None:
    """What LiteLLM does without our module. If this fails, our module may not be needed any more."""
    before = litellm.REPEATED_STREAMING_CHUNK_LIMIT
    litellm.REPEATED_STREAMING_CHUNK_LIMIT = 100
    fault = ""
    try:
        await _read()
    except Exception as error:  # noqa: BLE001  # LiteLLM wraps it in its own class
        fault = str(error)
    finally:
        litellm.REPEATED_STREAMING_CHUNK_LIMIT = before
    assert "repeating the same chunk" in fault, "it did not break"


async def check_equal_chunks_and_a_limit_of_time_end_no_stream() -> None:
    constants.LITELLM_MAX_STREAMING_DURATION_SECONDS = 0.0
    read_streams_to_their_end()
    assert await _read() == EQUAL
