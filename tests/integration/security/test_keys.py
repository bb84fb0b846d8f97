"""Keys that are guessed, sent as SQL, sent in odd headers, sent twice or used on routes that they do not open; and one
team that asks for another team's books.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from gateway.stack.state import StackState
from llm_service.grants import for_service, sign
from tests.integration.caller import Caller, open_caller, said

CHAT = "/v1/chat/completions"
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
#: A path that an agent's key opens, and one that an administrator's key opens.
AGENTS, ADMINISTRATORS = (
    (("POST", CHAT), ("GET", "/v1/models")),
    (("GET", "/admin/v1/agents"), ("GET", "/reports/costs")),
)

SQL = [
    "' OR 1=1 --",
    "'; DROP TABLE api_keys; --",
    "sk-tr-' OR hash IS NOT NULL --",
    "\\x00' UNION SELECT value FROM epoch --",
    "%27%20OR%201%3D1--",
    "$1",
    "sk-tr-" + "%" * 43,
    "sk-tr-" + "_" * 43,
]


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


async def ask(
    caller: Caller, method: str, path: str, *headers: tuple[str, str], body: object = BODY
) -> tuple[int, Any]:
    """The status and the body of an answer in JSON. Of an error, the error object itself, after a check of its shape."""
    content = {"json": body} if method in ("POST", "PUT", "PATCH") else {}
    address = caller.stack.gateway_url + path
    async with caller.http.request(method, address, headers=headers, **content) as response:  # type: ignore[arg-type]
        answer = await response.json()
        if response.status >= 400:
            assert answer.keys() == {"error"}, answer
            answer = answer["error"]
            assert {"message", "type", "param", "code"} <= answer.keys()
        return response.status, answer


def bearer(secret: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {secret}"


async def operations(caller: Caller) -> list[tuple[str, str]]:
    """Every operation in the API's description, with a value for each parameter."""
    async with caller.http.get(f"{caller.stack.gateway_url}/openapi.json") as response:
        paths: dict[str, dict[str, Any]] = (await response.json())["paths"]
    filled = {
        path: re.sub(r"\{\w+\}", "1", path.replace("{kind}", "agents").replace("{state}", "close")) for path in paths
    }
    return [(method.upper(), filled[path]) for path, methods in paths.items() for method in methods]


async def changes(caller: Caller) -> dict[str, int]:
    """Counts that change whenever any configuration changes."""
    row = await caller.pool.fetchrow("SELECT value, (SELECT count(*) FROM changes) AS changes FROM epoch")
    assert row is not None
    return dict(row)


async def test_only_one_bearer_key_is_a_key(caller: Caller) -> None:
    """The right key in other places, where some servers look for it, is not accepted."""
    for secret, places in ((caller.secret, AGENTS), (caller.stack.admin_key, ADMINISTRATORS)):
        ways: dict[str, list[tuple[str, str]]] = {
            "x-api-key": [("x-api-key", secret)],
            "api-key": [("api-key", secret)],
            "a cookie": [("Cookie", f"Authorization=Bearer {secret}; api_key={secret}; session={secret}")],
            "a proxy's": [("Proxy-Authorization", f"Bearer {secret}")],
            "a forwarded one": [("X-Forwarded-Authorization", f"Bearer {secret}")],
            "another scheme": [("Authorization", f"Basic {secret}")],
            "no scheme": [("Authorization", secret)],
            "no-break space": [("Authorization", f"Bearer\u00a0{secret}")],
            "wide letters": [("Authorization", f"Bearer {secret.replace('sk', 'ｓｋ')}")],
            "twice": [bearer(secret), bearer(secret)],
            "a wrong one first": [bearer("sk-tr-" + "x" * 43), bearer(secret)],
            "a wrong one after it": [bearer(secret), bearer("sk-tr-" + "x" * 43)],
            "two in one": [("Authorization", f"Bearer {secret}, Bearer {secret}")],
        }
        for method, path in places:
            for way, headers in ways.items():
                status, error = await ask(caller, method, path, *headers)
                assert (status, error["code"]) == (401, "invalid_api_key"), (way, path)
                assert secret not in error["message"]
            query = f"{path}?key={secret}&api_key={secret}&access_token={secret}&authorization=Bearer%20{secret}"
            assert (await ask(caller, method, query))[0] == 401
            for scheme in ("Bearer", "bearer", "BEARER"):  # RFC 9110 §11.1: the case does not matter
                assert (await ask(caller, method, path, ("authorization", f"{scheme} {secret}")))[0] == 200


@pytest.mark.parametrize("secret", SQL)
async def test_sql_for_a_key_is_no_key(caller: Caller, secret: str) -> None:
    before = await changes(caller)
    for method, path in (*AGENTS, *ADMINISTRATORS):
        status, error = await ask(caller, method, path, bearer(secret))
        assert (status, error["code"]) == (401, "invalid_api_key"), path
    assert await changes(caller) == before


async def test_sql_for_a_name_is_that_name(caller: Caller) -> None:
    """The names that a caller sends are stored unchanged. A text that an administrator searches for is only
    compared."""
    said_so = "'; DROP TABLE ledger; --"
    headers = {f"x-treasurer-{name}": said_so for name in ("run", "user", "session", "tags")}
    await caller.client().chat.completions.create(
        model="gpt-4o-mini", messages=said(), max_tokens=5, extra_headers=headers
    )
    [entry] = await caller.ledger()
    assert (entry["run_id"], entry["user_id"], entry["session_id"]) == (said_so,) * 3
    assert entry["tags"] == [said_so]
    before, admin = await changes(caller), bearer(caller.stack.admin_key)
    everyone = "x' OR 'a'='a"
    for path in (f"agents?team={everyone}", f"keys?agent={everyone}", f"budgets?agent={everyone}"):
        status, listed = await ask(caller, "GET", f"/admin/v1/{path}", admin)
        assert status == 404 or listed["data"] == [], path
    status, error = await ask(caller, "GET", f"/reports/costs?agent={everyone}", admin)
    assert (status, error["param"]) == (400, "agent")
    for path in (f"agents/{everyone}/pause", f"budgets/{everyone}/top-ups"):
        assert (await ask(caller, "POST", f"/admin/v1/{path}", admin, body={"amount": "1"}))[0] == 404, path
    assert await changes(caller) == before


async def test_no_key_but_an_administrators_opens_an_administrators_route(caller: Caller) -> None:
    """All administrators' routes, as the API's own description lists them."""
    before = await changes(caller)
    routes = [each for each in await operations(caller) if not each[1].startswith(("/v1/", "/healthz", "/readyz"))]
    routes.remove(("GET", "/metrics"))
    assert len(routes) >= 25
    stack = caller.stack
    strangers = {
        "nobody": None,
        "a guess": "sk-tr-" + "x" * 43,
        "LiteLLM's master key": stack.proxy_master_key,
        "the grants' secret": stack.grant_secret,
        "a grant": sign(stack.grant_secret, for_service("/model/info")),
    }
    for method, path in routes:
        for who, secret in strangers.items():
            status, error = await ask(caller, method, path, *([bearer(secret)] if secret else []))
            assert (status, error["code"]) == (401, "invalid_api_key"), (who, method, path)
        if not path.startswith("/agents/"):  # an agent's key may use these, for its team's runs and approvals
            status, error = await ask(caller, method, path, bearer(caller.secret))
            assert (status, error["code"]) == (403, "not_permitted"), (method, path)
    assert await changes(caller) == before


async def test_an_administrators_key_calls_no_model(caller: Caller) -> None:
    routes = [each for each in await operations(caller) if each[1].startswith("/v1/")]
    assert len(routes) >= 4
    before = await caller.counts()
    for method, path in routes:
        status, error = await ask(caller, method, path, bearer(caller.stack.admin_key))
        assert (status, error["code"]) == (403, "not_permitted"), (method, path)
    assert await caller.counts() == before


async def test_one_team_reads_nothing_of_another(stack: StackState, caller: Caller) -> None:
    """A team sees no reports, budgets or kept answers of another team, and nothing reveals the other team's name."""
    team, word = f"team-{uuid4().hex[:8]}", uuid4().hex[:12]  # `word` must be short enough for max_tokens
    await caller.admin("POST", "teams", {"name": team})
    agent = f"agent-{uuid4().hex[:8]}"
    await caller.admin("POST", "agents", {"name": agent, "team": team, "budget": {"limit": "1"}})
    theirs = (await caller.admin("POST", "keys", {"agent": agent}))["secret"]
    key = {"Idempotency-Key": f"shared-{word}"}
    asked = said("the same", {"text": word})
    their = await caller.call(secret=theirs, messages=asked, extra_headers=key)
    assert their.choices[0].message.content == word
    mine = bearer(caller.secret)
    for path in (
        f"/reports/costs?team={team}",
        "/reports/costs?group_by=team",
        f"/admin/v1/agents?team={team}",
        f"/admin/v1/budgets?agent={agent}",
        f"/admin/v1/budgets/agent {agent}: total",
        f"/admin/v1/keys?agent={agent}",
        "/admin/v1/changes",
    ):
        status, error = await ask(caller, "GET", path, mine)
        assert status == 403, path
        assert team not in str(error), path
        assert agent not in str(error), path
    ours = await caller.call(messages=asked, extra_headers=key)
    assert ours.id != their.id  # this answer was bought, and is not the other team's kept answer
    told = str([answer.headers for answer in caller.responses[-1:]]) + str(await ask(caller, "GET", "/v1/models", mine))
    assert team not in told
    assert agent not in told


async def test_a_near_guess_is_answered_as_a_far_one(caller: Caller) -> None:
    """No time is measured. Hashes are compared (test_principals.py), and a near guess does not have a near hash."""
    guesses = [caller.secret[:kept] + "x" * (len(caller.secret) - kept) for kept in (6, 14, 30)]
    guesses.append(caller.secret[:-1] + ("x" if caller.secret[-1] != "x" else "y"))
    answers = [await ask(caller, "GET", "/v1/models", bearer(guess)) for guess in guesses]
    assert {status for status, _ in answers} == {401}
    assert len({str(error) for _, error in answers}) == 1
