"""Agents are configured on the real stack: its models are those that may be named, and the audit finds no fault."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from gateway.stack.state import StackState
from tests.integration.administering import Treasurer
from tests.integration.caller import Caller, open_caller


async def configure(caller: Caller, method: str, body: dict[str, object]) -> tuple[int, dict[str, Any]]:
    """Call the admin API of the second gateway, for the caller's agent."""
    url = f"{caller.stack.gateway_urls[1]}/admin/v1/agents/{caller.agent}/configuration"
    headers = {"Authorization": f"Bearer {caller.stack.admin_key}"}
    async with aiohttp.ClientSession() as http, http.request(method, url, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_only_a_model_that_the_proxy_serves_is_accepted(stack: StackState, treasurer_on_stack: Treasurer) -> None:
    async with open_caller(stack) as caller:
        status, answer = await configure(caller, "PUT", {"logic": "digest", "model": "gpt-99"})
        assert (status, answer["error"]["param"]) == (404, "model"), answer
        assert "The model 'gpt-99' does not exist. Known models: " in answer["error"]["message"]
        status, answer = await configure(caller, "PUT", {"logic": "digest", "model": "text-embedding-3-small"})
        assert (status, answer["error"]["code"]) == (404, "model_not_found"), answer
        status, answer = await configure(caller, "PUT", {"logic": "digest", "model": "claude-haiku-4-5"})
        assert (status, answer["version"]) == (200, 1), answer

        refused = await treasurer_on_stack("agent", "configure", caller.agent, "--model", "gpt-99")
        assert (refused.code, refused.out) == (1, ""), refused
        assert "The model 'gpt-99' does not exist" in " ".join(refused.err.split())
        changed = await treasurer_on_stack("agent", "configure", caller.agent, "--model", "gemini-2.5-flash", "--json")
        assert changed.code == 0, changed.err
        [row] = json.loads(changed.out)
        assert (row["version"], row["model"]) == (2, "gemini-2.5-flash")
        # The other gateway reads it at once: no gateway keeps a copy.
        shown = await caller.admin("GET", f"agents/{caller.agent}/configuration", url=stack.gateway_urls[0])
        assert (shown["version"], shown["digest"]) == (2, row["digest"])
        assert await caller.faults() == []
