"""A request counts as never sent only while it is open, and before a deployment was chosen for it."""

from __future__ import annotations

import asyncio

from llm_service.litellm_plugin.open_requests import OpenRequests


async def test_i1_only_a_known_request_without_a_deployment_was_never_sent() -> None:
    requests = OpenRequests()
    assert not requests.never_sent("a")
    requests.begin("a")
    requests.begin("b")
    assert requests.never_sent("a")
    requests.sending("a")
    assert not requests.never_sent("a")
    assert requests.never_sent("b")


async def test_a_request_is_known_for_as_long_as_its_task_lives() -> None:
    requests = OpenRequests()

    async def serve() -> None:
        requests.begin("a")
        await asyncio.sleep(0)
        assert requests.never_sent("a")

    await asyncio.create_task(serve())
    await asyncio.sleep(0)
    assert not requests.never_sent("a")
    requests.sending("a")  # too late: the request has ended, so nothing is recorded
    assert not requests.never_sent("a")
