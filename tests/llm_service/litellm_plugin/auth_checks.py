"""The check of grants, against LiteLLM's real classes. Run by run_checks.py."""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from llm_service.grants import Grant, for_service, sign
from llm_service.litellm_plugin.beginnings import Beginnings
from llm_service.litellm_plugin.worker_streams import WorkerStreams
from llm_service.used_grants import UsesUnknown
from tests.llm_service.litellm_plugin.checking import SECRET, Door, body, granted


async def check_a_grant_opens_its_request_once() -> None:
    door, content = Door(), body()
    token = granted(content)
    identity = await door.ask(token, content)
    assert (identity.key_alias, identity.team_id, identity.org_id) == ("digest", "research", "default")
    assert identity.metadata["treasurer"]["attempt"] == 3
    assert identity.metadata["tags"] == ["news"]
    assert identity.rpm_limit is None, "the service has enforced the limits already"
    await door.refused(401, "used before", token, content)


async def check_a_grant_of_another_time_shows_the_proxy_s_clock() -> None:
    content, now = body(), int(time.time())
    early: dict[str, Any] = {"issued_at": now + 3600, "expires_at": now + 3660}
    late: dict[str, Any] = {"issued_at": now - 3660, "expires_at": now - 3600}
    for times, reason in ((early, "not valid yet"), (late, "expired")):
        headers = await Door().refused(401, reason, granted(content, **times), content)
        assert headers["x-treasurer-refused"] == "clock", headers
        assert abs(float(headers["x-treasurer-time"]) - time.time()) < 60, headers


async def check_other_tokens_than_grants_are_refused() -> None:
    for token in ("", "sk-tr-stolen", "sk-" + "m" * 40):
        await Door().refused(401, "not a grant", token, body())


async def check_nothing_is_admitted_without_a_secret_that_is_long_enough() -> None:
    for secret in ("", "x" * 31):
        headers = await Door(secret=secret).refused(503, "TREASURER_GRANT_SECRET", granted(body()), body())
        assert headers["x-treasurer-refused"] == "grants_unavailable"


async def check_other_requests_are_refused() -> None:
    door = Door()
    await door.refused(401, "another body", granted(body()), body(n=2))
    await door.refused(401, "another model", granted(body(), model="gpt-4o-mini"), body())
    await door.refused(401, "another path", granted(body()), body(), "/v1/embeddings")
    for path in ("/v1/models", "/health", "/key/generate", "/v1/responses", "/chat/completions"):
        await door.refused(401, "no grant opens this path", granted(body(), path), body(), path)


async def check_a_body_that_steers_litellm_is_refused() -> None:
    door = Door()
    for field in ("fallbacks", "api_base", "extra_body", "num_retries", "max_output_tokens", "mock_response", "no-log"):
        content = body(**{field: "x"})
        await door.refused(400, field, granted(content), content)
    content = body(metadata={"a": "b"}, tools=[], service_tier="auto", reasoning_effort="low")
    await door.ask(granted(content), content)


async def check_a_query_and_headers_that_steer_litellm_are_refused() -> None:
    """LiteLLM prefers a model in the query to the body's model, and reads retries, timeouts and more from headers."""
    door, content = Door(), body()
    token = granted(content)
    await door.refused(401, "query", token, content, query=b"model=gpt-4o-audio-preview")
    await door.refused(401, "x-litellm-num-retries", token, content, x_litellm_num_retries="3")
    await door.refused(401, "x-litellm-timeout", token, content, x_litellm_timeout="3")
    await door.refused(401, "anthropic-beta", token, content, anthropic_beta="context-1m")
    await door.refused(401, "JSON", token, content, content_type="application/x-www-form-urlencoded")
    await door.ask(token, content, content_type="application/json; charset=utf-8")


async def check_reads_may_be_repeated() -> None:
    door, token = Door(), sign(SECRET, for_service("/model/info"))
    for _ in range(2):
        await door.ask(token, b"", "/model/info", method="GET")
    content, counter = body(), "/utils/token_counter"
    await door.ask(sign(SECRET, for_service(counter, model="gpt-4o", body=content)), content, counter)


async def check_a_use_that_cannot_be_recorded_is_refused() -> None:
    door = Door(folder=Path("/dev/null/grants"))
    headers = await door.refused(503, "TREASURER_GRANT_DIR", granted(body()), body())
    assert headers["x-treasurer-refused"] == "grants_unavailable"


class Database:
    """A fake database, with the uses of grants that all proxies know."""

    def __init__(self, answer: bool | Exception) -> None:
        self.asked = 0
        self._answer = answer

    async def use(self, grant: Grant) -> bool:
        self.asked += 1
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def check_i3_a_grant_that_another_proxy_has_used_is_refused() -> None:
    database = Database(False)
    door, token = Door(shared=database), granted(body())
    headers = await door.refused(401, "used before", token, body())
    assert headers["x-treasurer-refused"] == "grant_used"
    await door.refused(401, "used before", token, body())
    assert database.asked == 1, "a use that this proxy knows of needs no round trip"


async def check_i3_a_grant_is_refused_while_the_database_cannot_be_asked() -> None:
    door = Door(shared=Database(UsesUnknown("ConnectionRefusedError")))
    headers = await door.refused(503, "Postgres does not say", granted(body()), body())
    assert headers["x-treasurer-refused"] == "grants_unavailable"


async def check_a_stream_too_many_is_refused_and_its_place_is_not_lost() -> None:
    door = Door(streams=WorkerStreams(2))

    async def served(content: bytes, over: asyncio.Event) -> None:
        await door.ask(granted(content), content)
        await over.wait()

    content, over = body(stream=True), asyncio.Event()
    requests = [asyncio.create_task(served(content, over)) for _ in range(2)]
    while door.streams.under_way < 2:
        await asyncio.sleep(0)
    token = granted(content)
    for _ in range(2):  # twice, because the refusal leaves the grant unused
        headers = await door.refused(503, "streams under way", token, content)
        assert (headers["x-treasurer-refused"], headers["retry-after"]) == ("proxy_busy", "1")
    await door.ask(granted(body()), body())  # a call without a stream needs no place
    over.set()
    await asyncio.gather(*requests)
    await asyncio.sleep(0)
    assert door.streams.under_way == 0
    await asyncio.create_task(served(content, over))


async def check_a_stream_begins_when_the_one_before_it_asks_its_provider() -> None:
    door = Door(streams=WorkerStreams(beginnings=Beginnings(1, 3600)))

    async def served(call_id: Any, over: asyncio.Event) -> None:
        content = body(stream=True)
        await door.ask(granted(content, call_id=call_id), content)
        waiting.discard(call_id)
        await over.wait()

    first, second, over = uuid4(), uuid4(), asyncio.Event()
    waiting = {first, second}
    requests = [asyncio.create_task(served(call_id, over)) for call_id in (first, second)]
    while first in waiting:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert waiting == {second}
    door.streams.provider_is_asked(f"{first}.3")
    while waiting:
        await asyncio.sleep(0)
    over.set()
    await asyncio.gather(*requests)
