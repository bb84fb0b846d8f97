"""Only administrators may use the admin API. A caller without a valid key learns only that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import SEVERAL, administrator, bearer_secret, secret_of
from llm_service.administration.transaction import ACTOR
from llm_service.errors import NotAuthenticated, NotPermitted, TreasuryUnavailable


def request_with(*authorization: bytes, principals: object = None) -> Request:
    """A request with these Authorization headers, to an app that knows these principals."""
    app = SimpleNamespace(state=SimpleNamespace(runtime=SimpleNamespace(principals=principals)))
    headers = [(b"authorization", value) for value in authorization]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers, "app": app})


@pytest.mark.parametrize(
    "header", ["Bearer sk-tr-1", "bearer sk-tr-1", "BEARER sk-tr-1", "  Bearer   sk-tr-1  ", "Bearer sk-tr-1 "]
)
def test_a_secret_is_read_from_a_header(header: str) -> None:
    assert bearer_secret(header) == "sk-tr-1"


@pytest.mark.parametrize(
    "header", [None, "", " ", "Bearer", "Bearer ", "Bearer  \t", "sk-tr-1", "Basic sk-tr-1", "Bearersk-tr-1", "Bearer:sk-tr-1"]
)  # fmt: skip
def test_another_header_is_refused_and_not_repeated(header: str | None) -> None:
    with pytest.raises(NotAuthenticated) as refused:
        bearer_secret(header)
    assert "Authorization: Bearer sk-tr-…" in refused.value.message
    assert "sk-tr-1" not in refused.value.message


@given(st.text(max_size=40))
def test_any_header_is_a_secret_or_refused(header: str) -> None:
    try:
        secret = bearer_secret(header)
    except NotAuthenticated:
        return
    assert secret
    assert secret == secret.strip()
    assert header.strip().lower().startswith("bearer ")


def test_several_keys_are_refused_even_if_they_are_the_same() -> None:
    for values in ([b"Bearer sk-tr-1", b"Bearer sk-tr-2"], [b"Bearer sk-tr-1"] * 2, [b"", b"Bearer sk-tr-1"]):
        with pytest.raises(NotAuthenticated) as refused:
            secret_of(request_with(*values))
        assert refused.value.message == SEVERAL


def test_the_one_key_of_a_request() -> None:
    assert secret_of(request_with(b"Bearer sk-tr-1")) == "sk-tr-1"
    with pytest.raises(NotAuthenticated):
        secret_of(request_with())


async def test_an_administrators_changes_are_logged_under_its_keys_name(principals: Any) -> None:
    await administrator(request_with(b"Bearer sk-tr-admin", principals=principals))
    assert ACTOR.get() == "key ops (7)"


@pytest.mark.parametrize(
    ("secret", "error"),
    [(b"sk-tr-agent", NotPermitted), (b"sk-tr-unknown", NotAuthenticated), (b"sk-tr-away", TreasuryUnavailable)],
)
async def test_nobody_else_passes_or_gets_a_name(principals: Any, secret: bytes, error: type[Exception]) -> None:
    before = ACTOR.set("nobody")
    with pytest.raises(error):
        await administrator(request_with(b"Bearer " + secret, principals=principals))
    assert ACTOR.get() == "nobody"
    ACTOR.reset(before)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("authorization", "Bearer sk-tr-unknown")], 401),
        ([("authorization", "Bearer sk-tr-admin"), ("authorization", "Bearer sk-tr-admin")], 401),
        ([("authorization", "Bearer sk-tr-agent")], 403),
        ([("authorization", "Bearer sk-tr-away")], 503),
    ],
)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/admin/v1/keys", b"{ not JSON"),
        ("POST", "/admin/v1/keys", b"x" * 70_000),
        ("PUT", "/admin/v1/limits", b'{"no such field": 1}'),
        ("GET", "/admin/v1/keys?limit=none", b""),
        ("DELETE", "/admin/v1/routes/first", b""),
        ("POST", "/admin/v1/nothings/x/pause", b""),
        ("GET", "/reports/costs?group_by=nothing&format=pdf", b""),
    ],
)
async def test_without_a_key_nothing_is_learnt_of_what_else_is_wrong(
    gateway: Any, headers: list[tuple[str, str]], status: int, method: str, path: str, body: bytes
) -> None:
    """Even if parameters are wrong, only an administrator learns what is wrong with them."""
    answer = await gateway.client.request(method, path, headers=headers, content=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] is None
    assert ("www-authenticate" in answer.headers) == (status == 401)
    with_key = await gateway.client.request(method, path, headers={"authorization": "Bearer sk-tr-admin"}, content=body)
    assert with_key.status_code in (400, 413)
