"""The simulated desk of subscriptions: it cancels once for each key, and forgets nothing in a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agents.services.subscriptions import DeskRefused, SubscriptionDesk
from gateway.stack.simulated_provider.desk import Desk
from tests.gateway.stack.simulated_provider.running import Running


def account(provider: Running, customer: str) -> dict[str, Any]:
    return provider.http.get("/_sim/desk", params={"customer": customer}).json()


async def test_a_key_cancels_once(provider: Running) -> None:
    customer, key = f"c{uuid4().hex}", uuid4().hex
    desk = SubscriptionDesk(f"{provider.url}/desk")
    assert [each["state"] for each in await desk.of(customer)] == ["active"] * 3
    first = await desk.cancel(f"{customer}-daily", key)
    assert first == await desk.cancel(f"{customer}-daily", key)
    assert first["state"] == "cancelled"
    assert [each["state"] for each in await desk.of(customer)] == ["cancelled", "active", "active"]
    assert provider.http.post("/_sim/reset").status_code == 200
    done = account(provider, customer)
    assert [(each["key"], each["subscription"]) for each in done["cancellations"]] == [(key, f"{customer}-daily")]
    assert done["repetitions"] == 1
    for subscription, other, said in (
        (f"{customer}-daily", uuid4().hex, "cancelled already"),
        (f"{customer}-weekly", key, f"has cancelled {customer}-daily"),
        ("nobody", uuid4().hex, "no subscription 'nobody'"),
        (f"{customer}-weekly", "", "needs an idempotency-key"),
    ):
        with pytest.raises(DeskRefused, match=said):
            await desk.cancel(subscription, other)
    with pytest.raises(DeskRefused, match="no customer"):
        await desk.of("../etc")
    assert account(provider, customer) == done


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [("POST", "/desk/cancellations", {}, 400), ("POST", "/desk/cancellations", [], 400), ("GET", "/desk/x", None, 404),
     ("GET", "/_sim/desk", None, 200), ("GET", "/desk/subscriptions", None, 404)],
)  # fmt: skip
def test_a_bad_request_is_a_4xx(provider: Running, method: str, path: str, body: object, status: int) -> None:
    assert provider.http.request(method, path, json=body).status_code == status


def test_a_restart_forgets_nothing_and_drops_what_a_kill_has_torn(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    file = tmp_path / "desk.jsonl"
    provider = start("--desk", str(file))
    body, headers = {"subscription": "ann-daily"}, {"idempotency-key": "k"}
    assert provider.http.post("/desk/cancellations", json=body, headers=headers).status_code == 200
    provider.process.kill()
    provider.stop()
    with file.open("ab") as torn:
        torn.write(b'{"key": "other", "subscr')
    again = Desk(file)
    assert again.cancel("ann-daily", "k")["state"] == "cancelled"
    again.cancel("ann-weekly", "other")
    again.close()
    later = Desk(file)
    assert [each["key"] for each in later.account("ann")["cancellations"]] == ["k", "other"]
    later.close()
