"""The gateway as one ASGI app: the busiest routes before FastAPI, and one runtime from a server's start to its end."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway import app as app_module
from gateway.app import create_app
from gateway.settings import Settings
from llm_service.ids import new_call_id
from llm_service.types import Answer


async def test_one_runtime_is_opened_at_the_start(gateway: Any) -> None:
    assert gateway.events == ["opened"]
    for path in ("/healthz", "/v1/models", "/nothing"):
        await gateway.client.get(path)
    assert gateway.events == ["opened"]  # the fixture checks that the runtime is closed with the server


async def test_a_runtime_that_cannot_be_opened_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    lifespan: Callable[..., AbstractAsyncContextManager[dict[str, Any]]],
) -> None:
    @asynccontextmanager
    async def fails(_settings: Settings) -> AsyncIterator[None]:
        raise OSError("the spool's folder cannot be used")
        yield

    monkeypatch.setattr(app_module, "open_gateway", fails)
    with pytest.raises(OSError, match="spool"):
        async with lifespan(create_app(Settings(data_dir=tmp_path))) as answer:
            assert answer["type"] == "lifespan.startup.failed"


async def test_two_apps_share_nothing(tmp_path: Path, gateway: Any) -> None:
    other = create_app(Settings(data_dir=tmp_path))
    assert other is not gateway.door
    assert gateway.events == ["opened"]


async def test_a_hot_route_is_served_before_fastapi_looks(gateway: Any, agent: dict[str, str]) -> None:
    calls: list[bytes] = []

    class Service:
        async def embed(self, body: bytes, *_: object) -> object:
            calls.append(body)
            return Answer(200, b"{}", {"content-type": "application/json"}, new_call_id(), 0)

    gateway.runtime.service = Service()
    answer = await gateway.client.post("/v1/embeddings", headers=agent, content=b"not even JSON")
    assert (answer.status_code, answer.content, calls) == (200, b"{}", [b"not even JSON"])


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
async def test_there_is_no_page_that_runs_a_third_partys_scripts(gateway: Any, path: str) -> None:
    answer = await gateway.client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/healthz/", "/readyz/", "/metrics/", "/reports/costs/", "/v1/embeddings/"])
async def test_nobody_is_redirected_to_the_host_that_a_request_names(gateway: Any, path: str) -> None:
    answer = await gateway.client.get(path, headers={"host": "evil.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers
    assert "evil" not in answer.text


async def test_every_route_but_the_open_ones_asks_for_a_key(gateway: Any) -> None:
    """The key is checked first, so the answer is the same whatever the id, the name and the body are."""
    description = (await gateway.client.get("/openapi.json")).json()
    asked = 0
    for path, methods in description["paths"].items():
        if path in ("/healthz", "/readyz", "/metrics"):
            continue
        at = re.sub(r"\{[a-z_]+\}", "1", path.replace("{kind}", "agents").replace("{state}", "open"))
        for method in methods:
            answer = await gateway.client.request(method, at)
            assert answer.status_code == 401, (method, path)
            asked += 1
    assert asked > 25
    assert (await gateway.client.get("/healthz")).json() == {"status": "ok"}
