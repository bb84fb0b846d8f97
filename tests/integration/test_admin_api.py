"""The admin API over HTTP: who may use it, what it answers, and that bad input writes nothing."""

from __future__ import annotations

import asyncpg
import httpx2
import pytest

from llm_service.administration import keys, organisations
from llm_service.administration.principals import Principals
from tests.integration.administering import error_of


async def epoch(pool: asyncpg.Pool) -> int:
    return await pool.fetchval("SELECT value FROM epoch")


async def test_from_nothing_to_a_governed_agent(api: httpx2.AsyncClient, pool: asyncpg.Pool) -> None:
    assert (await api.post("/organisations", json={"name": "acme"})).status_code == 201
    assert (await api.post("/teams", json={"name": "research", "organisation": "acme"})).status_code == 201
    made = await api.post(
        "/agents", json={"name": "news", "team": "research", "budget": {"limit": "0.05", "window": "day"}}
    )
    assert made.status_code == 201
    assert made.json()["budget"]["name"] == "agent news: day"
    assert (made.json()["budget"]["limit_nano"], made.json()["budget"]["limit"]) == (50_000_000, "0.050000000")
    key = await api.post("/keys", json={"agent": "news", "expires": "30d", "models": ["gpt-*"]})
    assert key.status_code == 201
    assert key.headers["cache-control"] == "no-store"
    principal = await Principals(pool).by_secret(key.json()["secret"])
    assert (principal.agent, principal.team, principal.organisation) == ("news", "research", "acme")

    [agent] = (await api.get("/agents", params={"team": "research"})).json()["data"]
    assert (agent["keys"], agent["paused_by"]) == (1, None)
    listing = (await api.get("/keys")).json()
    assert listing["object"] == "list"
    assert "secret" not in listing["data"][0]
    assert len((await api.get("/teams")).json()["data"]) == 2
    assert len((await api.get("/organisations")).json()["data"]) == 2


async def test_budgets(api: httpx2.AsyncClient) -> None:
    await api.post("/agents", json={"name": "news"})
    terms = {"agent": "news", "limit": 5, "window": "month", "time_zone": "Asia/Tokyo", "model": "openai/gpt-*"}
    name = (await api.post("/budgets", json=terms)).json()["name"]
    assert name == "agent news: month, openai/gpt-*"
    changed = await api.patch(f"/budgets/{name}", json={"limit": "7.25"})
    assert (changed.status_code, changed.json()["limit"], changed.json()["left"]) == (200, "7.250000000", "7.250000000")
    assert changed.json()["most_per_call"] is None
    shared = await api.patch(f"/budgets/{name}", json={"most_per_call": "20%"})
    assert (shared.json()["most_per_call"], shared.json()["limit"]) == ("20%", "7.250000000")
    assert (await api.patch(f"/budgets/{name}", json={"most_per_call": 20})).status_code == 400
    top_up = await api.post(f"/budgets/{name}/top-ups", json={"amount": 2, "lasts": "3h"})
    assert (top_up.status_code, top_up.json()["amount_nano"]) == (201, 2 * 10**9)
    shown = (await api.get(f"/budgets/{name}")).json()
    assert (shown["top_up_nano"], shown["left_nano"]) == (2 * 10**9, 9_250_000_000)
    assert shown["most_per_call"] == "20%"
    assert shown["resets_at"].endswith("T15:00:00Z")  # midnight in Tokyo
    assert shown["top_ups"][0]["amount"] == "2.000000000"
    assert len((await api.get("/budgets", params={"agent": "news"})).json()["data"]) == 1
    assert (await api.get("/budgets", params={"team": "default"})).json()["data"] == []
    assert (await api.get("/budgets", params={"team": "a", "agent": "b"})).status_code == 400
    assert (await api.delete(f"/budgets/{name}")).status_code == 200
    assert (await api.get(f"/budgets/{name}")).status_code == 404


async def test_an_acknowledgement_of_another_price(api: httpx2.AsyncClient) -> None:
    wanted = {"model": "gpt-4o", "note": "LiteLLM's list is old", "until": "2027-03-01T00:00:00Z"}
    made = (await api.put("/acknowledgements", json=wanted)).json()
    assert (made["model"], made["note"], made["covers_until"]) == tuple(wanted.values())
    assert made["acknowledged_by"] == "the fixed administrator's key"
    again = (await api.put("/acknowledgements", json={"model": "gpt-4o", "note": "corrected"})).json()
    assert (again["id"], again["note"]) == (made["id"], "corrected")
    assert (await api.get("/acknowledgements")).json()["data"] == [again]
    for field, value in (("model", "a\nb"), ("note", ""), ("until", "soon"), ("until", "0.5h"), ("who", "me")):
        refused = await api.put("/acknowledgements", json={**wanted, field: value})
        assert (refused.status_code, error_of(refused)["param"]) == (400, field)
    assert (await api.get("/acknowledgements")).json()["data"] == [again]


async def test_invoices(api: httpx2.AsyncClient) -> None:
    wanted = {"model": "gpt-4o", "starts_at": "2026-01-01", "ends_at": "2026-02-01T00:00:00+01:00", "amount": "12.5"}
    made = (await api.put("/invoices", json=wanted)).json()
    assert (made["amount_nano"], made["amount"], made["bound"]) == (12_500_000_000, "12.500000000", "5%")
    assert (made["posted"], made["estimated"], made["difference"]) == ("0.000000000", "0.000000000", "-12.500000000")
    assert (made["starts_at"], made["ends_at"]) == ("2026-01-01T00:00:00Z", "2026-01-31T23:00:00Z")
    again = (await api.put("/invoices", json={**wanted, "amount": 0, "bound": "1.5%", "note": "no. 7"})).json()
    assert (again["id"], again["amount_nano"], again["bound"], again["note"]) == (made["id"], 0, "1.5%", "no. 7")
    assert (await api.get("/invoices")).json()["data"] == [again]
    for field, value in (
        *(("model", ""), ("starts_at", "2026-01"), ("ends_at", "2199-01-01"), ("amount", "-1"), ("amount", "much")),
        *(("bound", 5), ("bound", "101%"), ("note", " "), ("who", "me")),
    ):
        refused = await api.put("/invoices", json={**wanted, field: value})
        assert (refused.status_code, error_of(refused)["param"]) == (400, field), value
    assert (await api.put("/invoices", json={**wanted, "ends_at": "2026-01-01"})).status_code == 400
    assert (await api.get("/invoices")).json()["data"] == [again]
    assert (await api.delete(f"/invoices/{made['id']}")).json()["amount_nano"] == 0
    assert (await api.delete(f"/invoices/{made['id']}")).status_code == 404
    assert (await api.get("/invoices")).json()["data"] == []


async def test_keys_limits_and_pauses(api: httpx2.AsyncClient) -> None:
    await api.post("/agents", json={"name": "news bot"})
    key = (await api.post("/keys", json={"agent": "news bot"})).json()
    rotated = await api.post(f"/keys/{key['id']}/rotate")
    assert (rotated.status_code, rotated.headers["cache-control"]) == (201, "no-store")
    assert (await api.post(f"/keys/{rotated.json()['id']}/rotate", json={"overlap": "1h"})).status_code == 201
    [revoked] = (await api.delete(f"/keys/{key['id']}")).json()["data"]
    assert revoked["state"] == "revoked"

    limit = (await api.put("/limits", json={"agent": "news bot", "requests_per_minute": 60})).json()
    assert (await api.get("/limits")).json()["data"] == [limit]
    assert (await api.delete(f"/limits/{limit['id']}")).status_code == 200
    assert (await api.delete(f"/limits/{limit['id']}")).status_code == 404

    paused = await api.post("/agents/news%20bot/pause")
    assert paused.json() == {"scope": "agent", "name": "news bot", "paused": True}
    assert (await api.get("/agents")).json()["data"][0]["paused_by"] == "agent news bot"
    assert (await api.post("/agents/news%20bot/resume")).json()["paused"] is False
    changed = await api.patch("/agents/news%20bot", json={"default_max_tokens": 128})
    assert (changed.json()["default_max_tokens"], changed.json()["floor_tokens"]) == (128, 16)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/budgets", {"agent": "news", "limit": "-5"}, 400, "limit"),
        ("POST", "/budgets", {"agent": "news", "limit": 0}, 400, "more than zero"),
        ("POST", "/budgets", {"agent": "news", "limit": 1e30}, 400, "the most that may be named"),
        ("POST", "/budgets", {"agent": "news", "limit": 5, "time_zone": "Mars/Olympus"}, 400, "not a time zone"),
        ("POST", "/budgets", {"agent": "news", "limit": 5, "window": "century"}, 400, "window"),
        ("POST", "/budgets", {"agent": "nobody", "limit": 5}, 404, "no agent 'nobody'"),
        ("POST", "/budgets", {"agent": "news", "limit": 5, "name": "taken"}, 409, "a budget 'taken' already"),
        ("POST", "/budgets", {"agent": "news", "limit": 5, "colour": "red"}, 400, "colour: there is no such field"),
        ("POST", "/budgets", [], 400, "JSON object"),
        ("POST", "/budgets", None, 400, "JSON object"),
        ("POST", "/budgets", b"{", 400, "not valid JSON"),
        ("POST", "/budgets", b'{"agent": "\xff"}', 400, ""),
        ("POST", "/budgets", b'{"agent":"news","limit":NaN}', 400, "not a finite amount"),
        ("POST", "/budgets", b'{"agent":"news","limit":' + b"9" * 5000 + b"}", 400, ""),
        ("POST", "/budgets", b"[" * 30_000, 400, ""),
        ("POST", "/budgets", b'{"agent":"' + b"x" * 100_000 + b'"}', 413, "64 KiB"),
        ("POST", "/agents", {"name": "news"}, 409, "an agent 'news' already"),
        ("POST", "/agents", {"name": "a\x00b"}, 400, "name: a name is"),
        ("POST", "/agents", {"name": "x", "team": "nowhere"}, 404, "no team 'nowhere'"),
        ("POST", "/agents", {"name": "x", "budget": {"limit": 5, "time_zone": "?"}}, 400, "budget.time_zone"),
        ("POST", "/teams", {"name": "default"}, 409, "a team 'default' already"),
        ("POST", "/keys", {"agent": "nobody"}, 404, "no agent"),
        ("POST", "/keys", {}, 400, "name an agent"),
        ("POST", "/keys/99999999999999999999/rotate", {}, 400, "key_id"),
        ("DELETE", "/keys/x", None, 400, "key_id"),
        ("DELETE", "/keys/123", None, 404, "no key '123'"),
        ("PUT", "/limits", {"agent": "news", "concurrent": -1}, 400, "concurrent"),
        ("PATCH", "/budgets/taken", {"limit": "much"}, 400, "limit"),
        ("PATCH", "/budgets/none", {"limit": 5}, 404, "no budget 'none'"),
        ("PATCH", "/budgets/%00", {"limit": 5}, 404, "no budget"),
        ("POST", "/budgets/taken/top-ups", {"amount": 1, "ends": "2020-01-01T00:00:00Z"}, 400, "ends after it starts"),
        ("POST", "/agents/%FF/pause", None, 404, "no agent"),
        ("POST", "/keys/1/pause", None, 400, "kind"),
        ("GET", "/nothing", None, 404, "nothing at this address"),
        ("PUT", "/budgets", None, 405, "Method Not Allowed"),
    ],
)
async def test_bad_input_is_a_clear_4xx_and_writes_nothing(
    api: httpx2.AsyncClient, pool: asyncpg.Pool, method: str, path: str, body: object, status: int, said: str
) -> None:
    await api.post("/agents", json={"name": "news", "budget": {"limit": 1, "name": "taken"}})
    before = await epoch(pool)
    content = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
    headers = {"content-type": "application/json"}
    answer = await api.request(method, path, headers=headers, **content)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    assert said in error_of(answer)["message"]
    assert "Traceback" not in answer.text
    assert await epoch(pool) == before
    assert await pool.fetchval("SELECT count(*) FROM budgets") == 1


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer wrong", "Bearer sk-tr-" + "x" * 43]
)
async def test_without_an_administrators_key_nothing_is_read(
    api: httpx2.AsyncClient, authorization: str | None
) -> None:
    del api.headers["authorization"]
    headers = {} if authorization is None else {"authorization": authorization}
    answer = await api.post("/agents", headers=headers, content=b"{ not json")
    assert answer.status_code == 401
    assert error_of(answer)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_an_agents_key_is_not_permitted(api: httpx2.AsyncClient, pool: asyncpg.Pool) -> None:
    await organisations.create_agent(pool, organisations.NewAgent(name="news"))
    mine = await keys.create_key(pool, keys.NewKey(agent="news"))
    answer = await api.get("/agents", headers={"authorization": f"Bearer {mine.secret}"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "not_permitted")
    assert mine.secret not in answer.text
    theirs = await keys.create_key(pool, keys.NewKey(admin=True))
    assert (await api.get("/agents", headers={"authorization": f"Bearer {theirs.secret}"})).status_code == 200


async def test_a_conflict_is_not_retried_by_sdks(api: httpx2.AsyncClient) -> None:
    answer = await api.post("/teams", json={"name": "default"})
    assert answer.headers["x-should-retry"] == "false"


async def test_postgres_away_is_503_with_retry_after(api: httpx2.AsyncClient, pool: asyncpg.Pool) -> None:
    pool.terminate()
    answer = await api.post("/teams", json={"name": "x"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert error_of(answer)["code"] == "treasury_unavailable"


async def test_what_nobody_foresaw_is_a_500_in_the_same_shape(
    api: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(organisations, "list_teams", broken)
    answer = await api.get("/teams")
    assert answer.status_code == 500
    assert "secret detail" not in error_of(answer)["message"]


async def test_a_list_says_how_to_go_on(api: httpx2.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await api.post("/organisations", json={"name": name})
    first = (await api.get("/organisations", params={"limit": 2})).json()
    assert ([row["name"] for row in first["data"]], first["has_more"], first["next_after"]) == (["a", "b"], True, "b")
    last = (await api.get("/organisations", params={"limit": 2, "after": first["next_after"]})).json()
    assert ([row["name"] for row in last["data"]], last["has_more"], last["next_after"]) == (
        ["c", "default"],
        False,
        None,
    )
    changes = (await api.get("/changes", params={"limit": 1})).json()
    assert changes["next_after"] == changes["data"][0]["id"]
    older = (await api.get("/changes", params={"limit": 1, "after": changes["next_after"]})).json()
    assert older == (await api.get("/changes", params={"limit": 1, "before_id": changes["next_after"]})).json()
    for kind in (
        "organisations",
        "teams",
        "agents",
        "keys",
        "budgets",
        "limits",
        "routes",
        "acknowledgements",
        "repricings",
        "invoices",
        "changes",
    ):
        for query in ({"limit": 0}, {"limit": 1001}, {"after": "x" * 201}):
            answer = await api.get(f"/{kind}", params=query)
            assert (answer.status_code, error_of(answer)["param"]) == (400, next(iter(query))), kind
