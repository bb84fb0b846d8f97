"""The whole stack starts, and reports its addresses."""

from __future__ import annotations

import aiohttp

from gateway.stack.state import StackState


async def test_every_part_answers(stack: StackState) -> None:
    parts = {"postgres", "redis", "simulated-provider", "litellm-proxy", "gateway-1", "gateway-2", "worker-1"}
    assert set(stack.pids) == parts
    addresses = [f"{url}/readyz" for url in (stack.gateway_url, *stack.gateway_urls)]
    addresses += [f"{stack.provider_url}/_sim/health", f"{stack.proxy_url}/health/liveliness"]
    async with aiohttp.ClientSession() as session:
        for address in addresses:
            async with session.get(address) as answer:
                assert answer.status == 200, address
                if address.endswith("/readyz"):
                    assert (await answer.json())["warnings"] == [], "all clocks are this machine's"


def test_secrets_are_for_their_owner_alone(stack: StackState) -> None:
    for file in (stack.grant_secret_file, stack.admin_key_file, stack.proxy_master_key_file):
        assert file.stat().st_mode & 0o777 == 0o600
    assert (stack.data_dir / "stack.json").stat().st_mode & 0o777 == 0o600
    assert stack.real == []
    assert "gpt-4o-mini" in stack.simulated
