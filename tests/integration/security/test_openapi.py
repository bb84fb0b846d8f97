"""Schemathesis on the whole description of the API: whatever anybody sends, the description lists the answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller

WITHIN = settings(
    derandomize=True, deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
#: A number that no object has.
NOBODYS = 10**12


@dataclass
class Asked:
    """What was sent by one of the callers, and the statuses of the answers."""

    who: str
    headers: dict[str, str]
    statuses: Counter[int] = field(default_factory=Counter[int])
    operations: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar. Limits and routes for all agents that tests set are removed at the end."""
    async with open_caller(stack) as caller:
        before = {kind: await numbers(caller, kind) for kind in ("limits", "routes")}
        yield caller
        for kind, known in before.items():
            for number in await numbers(caller, kind) - known:
                await caller.admin("DELETE", f"{kind}/{number}")


async def numbers(caller: Caller, kind: str) -> set[int]:
    return {row["id"] for row in (await caller.admin("GET", kind))["data"]}


def has_our_error_shape(_context: object, response: Any, _case: object) -> None:
    """Every error is OpenAI's error object, and reveals nothing about the gateway's internals."""
    if response.status_code >= 400:
        error = response.json()
        assert error.keys() == {"error"}, error
        assert {"message", "type", "param", "code"} <= error["error"].keys() <= {
            "message", "type", "param", "code", "treasurer",
        }, error  # fmt: skip
        assert "Traceback" not in response.text


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    has_our_error_shape,
]


def send(asked: Asked, case: Any) -> None:
    """Send a request and check the answer. If it would affect other tests, it names an object that does not exist."""
    given_ = dict(case.path_parameters or {})
    if "breakers" in case.path or case.path.endswith("/pause"):
        given_ |= {name: "nobody" for name in given_ if name == "name"}
    for name, value in given_.items():
        if name.endswith("_id") and str(value).isdecimal() and 0 < int(value) < NOBODYS:
            given_[name] = int(value) + NOBODYS
    case.path_parameters = given_
    response = case.call(headers=asked.headers)
    asked.statuses[response.status_code] += 1
    asked.operations.add((case.method.upper(), case.operation.path))
    case.validate_response(response, checks=CHECKS, headers=asked.headers)


def sender(asked: Asked) -> Callable[[Any], None]:
    """`send` as a function for Hypothesis, for one of the callers."""

    def ask(case: Any) -> None:
        send(asked, case)

    return ask


def ask_everything(url: str, asked: Asked, only: str, examples: int) -> None:
    """Try every operation under this path, with input that the description allows and input that it forbids."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # pyright: ignore[reportAttributeAccessIssue]  # a broken description fails here
        if not operation.path.startswith(only):
            continue
        takes = [*operation.path_parameters, *operation.query, *operation.body]
        for mode in GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if takes else []):
            test = given(case=operation.as_strategy(generation_mode=mode))(sender(asked))
            settings(WITHIN, max_examples=examples if takes else 1)(test)()


async def test_every_answer_to_an_administrator_is_described(caller: Caller) -> None:
    url, asked = caller.stack.gateway_url, Asked("administrator", {"Authorization": f"Bearer {caller.stack.admin_key}"})
    await asyncio.to_thread(ask_everything, url, asked, "/admin", 8)
    await asyncio.to_thread(ask_everything, url, asked, "/reports", 40)
    assert {("POST", "/admin/v1/agents"), ("PUT", "/admin/v1/routes"), ("GET", "/reports/costs")} <= asked.operations
    assert len(asked.operations) >= 29
    assert asked.statuses[200] > 20
    assert asked.statuses[201] > 5
    assert asked.statuses[400] > 100
    assert 403 not in asked.statuses


async def test_every_answer_to_an_agent_is_described(caller: Caller) -> None:
    asked = Asked("agent", {"Authorization": f"Bearer {caller.secret}"})
    await asyncio.to_thread(ask_everything, caller.stack.gateway_url, asked, "/v1", 40)
    assert len(asked.operations) == 4
    # Schemathesis also sends wrong keys (401) and bodies of other types (415).
    assert not asked.statuses.keys() - {200, 400, 401, 404, 415}
    assert await caller.invoice() == []  # no generated request is a valid call that costs money


@pytest.mark.parametrize("key", [None, "sk-tr-" + "x" * 43])
async def test_every_answer_to_a_stranger_is_described(caller: Caller, key: str | None) -> None:
    asked = Asked("stranger", {} if key is None else {"Authorization": f"Bearer {key}"})
    await asyncio.to_thread(ask_everything, caller.stack.gateway_url, asked, "/", 2)
    closed = {each for each in asked.operations if each[1] not in ("/healthz", "/readyz", "/metrics")}
    assert len(closed) >= 33
    assert len(asked.operations) == len(closed) + 3
    assert asked.statuses.keys() == {200, 401}
    assert asked.statuses[200] == 3
