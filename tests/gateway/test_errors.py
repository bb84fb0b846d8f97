"""Errors as answers: always in OpenAI's format, and never with values of the request or details of the gateway's
code."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

import httpx2
import pytest
from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway import errors
from gateway.asgi import FAILED
from gateway.errors import error_response
from llm_service.errors import (
    BudgetBusy,
    BudgetExhausted,
    InvalidRequest,
    NotAuthenticated,
    TreasurerError,
    TreasuryUnavailable,
)

SECRET = "sk-tr-very-secret"


class Given(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=3)] = "n"
    number: int = 1
    kind: Literal["a", "b"] = "a"
    inner: list[dict[str, int]] = []

    @field_validator("name")
    @classmethod
    def _not_bad(cls, value: str) -> str:
        if value == "bad":
            raise ValueError("a name may not be bad")
        return value


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    errors.install(app)

    @app.post("/given")
    async def given(given: Given, limit: Annotated[int, Query(ge=1)] = 1) -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        return {"ok": "yes"}

    return app


@pytest.fixture
def client(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app, raise_app_exceptions=False), base_url="http://gateway"
    )


def raising(app: FastAPI, error: Exception) -> None:
    """An app with a route that fails with this error."""

    @app.get("/fails")
    async def fails() -> None:  # pyright: ignore[reportUnusedFunction]
        raise error


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """The error object of an answer, after a check of its format."""
    body = answer.json()
    assert set(body) == {"error"}
    assert (
        {"message", "type", "param", "code"} <= set(body["error"]) <= {"message", "type", "param", "code", "treasurer"}
    )
    assert answer.headers["content-type"] == "application/json"
    return body["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "headers"),
    [
        (InvalidRequest("m", param="n"), 400, "invalid_request_error", "invalid_request", {}),
        (NotAuthenticated("m"), 401, "authentication_error", None, {"www-authenticate": "Bearer"}),
        (BudgetExhausted("m"), 429, None, "insufficient_quota", {"x-should-retry": "false"}),
        (BudgetBusy("m", retry_after=1.2), 429, None, None, {"retry-after": "2", "x-should-retry": "true"}),
        (TreasuryUnavailable("m", retry_after=0.1), 503, None, None, {"retry-after": "1"}),
        (TreasurerError("m", status=418, code="teapot"), 418, "api_error", "teapot", {}),
    ],
)
async def test_an_error_of_ours_says_what_it_is(
    app: FastAPI, client: httpx2.AsyncClient, error: TreasurerError, status: int, kind: str | None, code: str | None,
    headers: dict[str, str],
) -> None:  # fmt: skip
    raising(app, error)
    answer = await client.get("/fails")
    assert answer.status_code == status
    shown = error_of(answer)
    assert (shown["message"], shown["param"]) == ("m", error.param)
    assert kind in (None, shown["type"])
    assert code in (None, shown["code"])
    assert headers.items() <= dict(answer.headers).items()
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert "treasurer" not in shown


async def test_details_are_for_programs(app: FastAPI, client: httpx2.AsyncClient) -> None:
    raising(app, InvalidRequest("m", details={"budget": "b"}))
    assert error_of(await client.get("/fails"))["treasurer"] == {"budget": "b"}


def test_an_errors_own_headers_win() -> None:
    answer = error_response(BudgetBusy("m", retry_after=2), {"retry-after": "99", "x-more": "1"})
    assert (answer.headers["retry-after"], answer.headers["x-more"]) == ("2", "1")


async def test_a_bug_is_logged_and_its_text_is_not_the_answer(
    app: FastAPI, client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    raising(app, KeyError(SECRET))
    with caplog.at_level(logging.ERROR, "gateway.errors"):
        answer = await client.get("/fails?key=in-the-query")
    assert answer.status_code == 500
    assert error_of(answer)["message"] == FAILED
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text
    [record] = [each for each in caplog.records if each.name == "gateway.errors"]
    assert record.getMessage() == "GET /fails failed"  # without the query, which may contain anything
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


@pytest.mark.parametrize("body", [b"{", b"{'a': 1}", SECRET.encode(), b'{"name": "' + SECRET.encode(), b"\xff"])
async def test_a_body_that_is_not_json(client: httpx2.AsyncClient, body: bytes) -> None:
    answer = await client.post("/given", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["type"] == "invalid_request_error"
    assert SECRET not in answer.text
    if body != b"\xff":
        assert error_of(answer)["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"[1]", "application/json"), (b'"text"', "application/json"), (b"null", "application/json"), (b"", "application/json"),
     (b'{"name":"n"}', "text/plain"), (b'{"name":"n"}', "application/x-www-form-urlencoded")],
)  # fmt: skip
async def test_a_body_that_is_not_an_object(client: httpx2.AsyncClient, body: bytes, kind: str) -> None:
    answer = await client.post("/given", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert error_of(answer)["message"] == "Expected a JSON object as body, with content-type: application/json."


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"name": SECRET}, "name", "at most 3"),
        ({"number": SECRET}, "number", "integer"),
        ({"kind": SECRET}, "kind", "'a' or 'b'"),
        ({"inner": [{"x": SECRET}]}, "inner.0.x", "integer"),
        ({"name": "bad"}, "name", "a name may not be bad"),
        ({"other": SECRET}, "other", "there is no such field"),
    ],
)
async def test_a_wrong_field_is_named_and_its_value_is_not_repeated(
    client: httpx2.AsyncClient, given: dict[str, Any], param: str, words: str
) -> None:
    answer = await client.post("/given", json=given)
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert words in error["message"]
    assert "Value error" not in error["message"]
    assert SECRET not in answer.text


async def test_wrong_fields_are_named_together_and_never_without_end(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/given?limit=0", json={"number": "x", **{f"field{n}": 1 for n in range(50)}})
    message = error_of(answer)["message"]
    assert message.startswith("limit: ")
    assert "number: " in message
    assert message.endswith("and 47 more")


async def test_an_address_that_does_not_exist(client: httpx2.AsyncClient) -> None:
    answer = await client.get(f"/{SECRET}")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert SECRET not in answer.text


async def test_a_wrong_method_is_answered_with_the_right_ones(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/given")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [(413, "invalid_request_error", "request_too_large"), (400, "invalid_request_error", "invalid_request"),
     (418, "invalid_request_error", "invalid_request"), (500, "api_error", "internal_error"), (502, "api_error", "internal_error")],
)  # fmt: skip
async def test_what_the_framework_refuses_keeps_its_status_and_headers(
    app: FastAPI, client: httpx2.AsyncClient, status: int, kind: str, code: str
) -> None:
    raising(app, HTTPException(status, "why", headers={"x-more": "1"}))
    answer = await client.get("/fails")
    assert (answer.status_code, answer.headers["x-more"]) == (status, "1")
    error = error_of(answer)
    assert (error["type"], error["code"]) == (kind, code)
