"""What all routes of the admin API have in common: the size of bodies, the pool, the pages of lists."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from gateway.routes.admin.common import listing
from llm_service.administration.paging import Page
from llm_service.errors import TreasuryUnavailable

MOST_BYTES = 64 * 1024


class Unusable:
    """A pool that fails with its own name as soon as it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> NoReturn:
        raise TreasuryUnavailable(f"{self._name} was asked for {attribute}", retry_after=1)


@pytest.fixture(autouse=True)
def pools(gateway: Any) -> None:
    gateway.runtime.pools = SimpleNamespace(reading=Unusable("reading"), changes=Unusable("changes"))


async def test_a_body_of_64_kib_is_read_and_one_byte_more_is_not(gateway: Any, admin: dict[str, str]) -> None:
    start = b'{"name": "'
    for size, status in ((MOST_BYTES, 400), (MOST_BYTES + 1, 413)):
        body = start + b"x" * (size - len(start) - 2) + b'"}'
        assert len(body) == size
        answer = await gateway.client.post("/admin/v1/agents", headers=admin, content=body)
        assert answer.status_code == status, answer.text


LISTS = (
    *("organisations", "teams", "agents", "keys", "budgets", "limits", "routes", "changes"),
    "agents/digest/configuration/versions",
)


@pytest.mark.parametrize("noun", LISTS)
async def test_lists_use_the_pool_for_reading(gateway: Any, admin: dict[str, str], noun: str) -> None:
    answer = await gateway.client.get(f"/admin/v1/{noun}", headers=admin)
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["message"].startswith("reading was asked for ")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "agents", {"name": "alice"}),
        ("POST", "teams", {"name": "research"}),
        ("POST", "budgets", {"agent": "alice", "limit": "1", "window": "day"}),
        ("PATCH", "budgets/agent alice: day", {"limit": "2"}),
        ("DELETE", "keys/3", None),
        ("PUT", "agents/digest/configuration", {"budget": "0.5"}),
        ("POST", "agents/digest/configuration/use", {"version": 1}),
    ],
)
async def test_changes_use_the_pool_for_changes(
    gateway: Any, admin: dict[str, str], method: str, path: str, body: dict[str, Any] | None
) -> None:
    answer = await gateway.client.request(method, f"/admin/v1/{path}", headers=admin, json=body)
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["message"].startswith("changes was asked for ")


@pytest.mark.parametrize("more", [False, True])
def test_a_page_names_where_the_next_one_begins(more: bool) -> None:
    rows = Page(["a", "b"])
    rows.more = more
    page = listing(rows, str.upper)
    assert (page.object, page.data, page.has_more) == ("list", ["a", "b"], more)
    assert page.next_after == ("B" if more else None)
