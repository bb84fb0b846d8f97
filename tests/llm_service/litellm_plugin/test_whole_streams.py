"""Runs whole_streams_checks.py against LiteLLM's real classes: streams that LiteLLM would end before the provider ends them."""

from __future__ import annotations

import pytest

from tests.llm_service.litellm_plugin.checks import checks_of

pytestmark = pytest.mark.servers  # runs LiteLLM's own Python


@pytest.mark.parametrize("name", checks_of("whole_streams_checks"))
def test_inside_litellm(inside_litellm: dict[str, dict[str, str | None]], name: str) -> None:
    assert inside_litellm["whole_streams_checks"][name] is None, inside_litellm["whole_streams_checks"][name]
