"""The plugin as LiteLLM loads it. Run by run_checks.py, which sets the environment."""
# ruff: noqa: PT017 (pytest is not installed in LiteLLM's environment)
# pyright: basic, reportMissingImports=false, reportPrivateUsage=false

from __future__ import annotations

import io
import logging
import resource

from litellm.proxy._types import ProxyException

from llm_service.litellm_plugin import hooks
from tests.llm_service.litellm_plugin.checking import body, granted, request


async def check_a_crash_leaves_no_dump() -> None:
    assert max(resource.getrlimit(resource.RLIMIT_CORE)) <= 1


async def check_the_environment_s_secret_and_folder_are_used() -> None:
    content = body()
    token = granted(content)
    assert (await hooks.custom_auth(request(content), token)).key_alias == "digest"
    try:
        await hooks.custom_auth(request(content), token)
    except ProxyException as error:
        assert "used before" in error.message, error.message
    else:
        raise AssertionError("it was let in twice")


async def check_the_log_is_redacted_once_a_request_was_checked() -> None:
    written = io.StringIO()
    logger, handler = logging.getLogger("LiteLLM of a check"), logging.StreamHandler(written)
    logger.addHandler(handler)
    try:
        await hooks.custom_auth(request(body()), granted(body()))
        logger.error("ValueError: the caller wrote %s", "my secret prompt")
    finally:
        logger.removeHandler(handler)
    assert written.getvalue() == "ValueError\n", written.getvalue()


async def check_the_witnesses_and_the_check_of_grants_share_the_worker_s_streams() -> None:
    assert hooks.witness_logger._streams is hooks._auth._streams
