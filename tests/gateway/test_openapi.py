"""The API's description: complete, and correct for errors and for the two routes that FastAPI does not see."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from llm_service import errors
from llm_service.errors import TreasurerError
from llm_service.wire.openai_errors import openai_error

OPEN = ("/healthz", "/readyz", "/metrics")
HOT = ("/v1/chat/completions", "/v1/embeddings")
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TreasurerError)]


@pytest.fixture
async def description(gateway: Any) -> dict[str, Any]:
    """The description as anybody may read it."""
    answer = await gateway.client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


async def test_every_room_of_the_api_is_described(description: dict[str, Any]) -> None:
    paths = set(description["paths"])
    assert {*OPEN, *HOT, "/v1/models", "/admin/v1/keys", "/admin/v1/changes", "/reports/costs"} <= paths


async def test_every_operation_may_fail_in_our_shape_and_needs_a_key(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        answers = operation["responses"]
        assert "422" not in answers, (method, path)
        assert any(status.startswith("2") for status in answers), (method, path)
        if path in OPEN:
            assert "security" not in operation
            continue
        assert operation["security"] == [{"HTTPBearer": []}], (method, path)
        for status in ("4XX", "5XX"):
            schema = answers[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Error"}, (method, path)
    assert "HTTPBearer" in description["components"]["securitySchemes"]


async def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    found = set(references(description))
    assert "#/components/schemas/Error" in found
    known = {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    assert found <= known
    assert not {"HTTPValidationError", "ValidationError"} & set(description["components"]["schemas"])


async def test_the_shape_of_every_error_is_the_one_that_is_described(description: dict[str, Any]) -> None:
    schema = description["components"]["schemas"]["Error"]
    described = schema["properties"]["error"]
    kinds = {"string": str, "null": type(None), "object": dict}
    assert len(KINDS) > 20
    for kind, details in itertools.product(KINDS, ({}, {"budget": "b"})):
        error = kind.__new__(kind)  # some have an __init__ with other arguments
        TreasurerError.__init__(error, "m", details=details)
        body = openai_error(error)
        assert set(body) == set(schema["required"])
        assert set(described["required"]) <= set(body["error"]) <= set(described["properties"])
        for name, value in body["error"].items():
            allowed = described["properties"][name]["type"]
            names = [allowed] if isinstance(allowed, str) else allowed
            assert isinstance(value, tuple(kinds[each] for each in names)), name


@pytest.mark.parametrize(("path", "needs"), [(HOT[0], {"model", "messages"}), (HOT[1], {"model", "input"})])
async def test_a_hot_route_is_described_as_it_is_served(
    gateway: Any, description: dict[str, Any], path: str, needs: set[str]
) -> None:
    assert list(description["paths"][path]) == ["post"]
    operation = description["paths"][path]["post"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(request["required"]) == set(request["properties"]) == needs
    assert request["additionalProperties"] is True
    streams = "text/event-stream" in operation["responses"]["200"]["content"]
    assert streams == ("messages" in needs)
    assert (await gateway.client.post(path, content=b"{}")).status_code == 401
    wrong = await gateway.client.get(path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
