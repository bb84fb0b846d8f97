"""The cache of principals, with a fake database that records what is asked, when, and by how many at once."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest

from llm_service.administration import principals as module
from llm_service.administration.principals import Principals
from llm_service.administration.secrets import hash_secret
from llm_service.errors import NotAuthenticated, NotFound, NotPermitted, TreasuryUnavailable
from llm_service.types import Budget, Dimension, RateLimit, Scope, WindowKind

ADMIN = "an-administrators-key-from-the-settings"


def secret_of(number: int) -> str:
    return f"sk-tr-{number:043d}"


class FakePool:
    """A fake pool, which answers the two statements of `Principals` from memory and counts them."""

    def __init__(self) -> None:
        self.epoch = 1
        self.keys: dict[bytes, dict[str, Any]] = {}
        self.statements: list[tuple[object, ...]] = []
        self.running = 0
        self.most_running = 0
        self.away = False
        self.delay_s = 0.0
        self.gate: asyncio.Event | None = None  # if set, statements are answered only after this gate is opened

    def add_key(self, number: int, **columns: Any) -> str:
        secret = secret_of(number)
        self.keys[hash_secret(secret)] = row(number, hash=hash_secret(secret), **columns)
        self.epoch += 1
        return secret

    @asynccontextmanager
    async def acquire(self, timeout: float) -> AsyncIterator[FakePool]:
        yield self

    async def fetch(self, statement: str, *arguments: object, timeout: float) -> list[dict[str, Any]]:
        self.statements.append(arguments)
        gate, rows = (
            self.gate,
            self._rows(*arguments),
        )  # the rows are read when the statement begins, however late it is answered
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self.delay_s)
        if gate is not None:
            await gate.wait()
        self.running -= 1
        if self.away:
            raise ConnectionRefusedError
        return rows

    def _rows(self, *arguments: object) -> list[dict[str, Any]]:
        if not arguments:
            return [{"value": self.epoch}]
        hashes, _ = arguments
        assert isinstance(hashes, list)
        found = [self.keys[hash_] | {"epoch": self.epoch} for hash_ in hashes if hash_ in self.keys]
        return found or [row(0, hash=None) | {"agent_id": None, "epoch": self.epoch}]

    def looks(self) -> int:
        return sum(not arguments for arguments in self.statements)

    def loads(self) -> int:
        return sum(bool(arguments) for arguments in self.statements)


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "hash": None,
        "agent_name": None,
        "key_id": number,
        "key": "default",
        "models": [],
        "expires_at": None,
        "revoked_at": None,
        "expires_in_s": None,
        "agent_id": 7,
        "agent": "news",
        "default_max_tokens": 4096,
        "floor_tokens": 16,
        "team_id": 3,
        "team": "research",
        "organisation_id": 1,
        "organisation": "default",
        "paused": None,
        "budgets": None,
        "limits": None,
        "routes": None,
        **columns,
    }


@pytest.fixture
def database() -> FakePool:
    return FakePool()


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all principals."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def principals_of(database: FakePool, fresh_s: float = 60.0) -> Principals:
    return Principals(database, fresh_s=fresh_s, admin_key=ADMIN)  # type: ignore[arg-type]


async def test_a_known_key_is_read_once_and_then_comes_from_memory(database: FakePool) -> None:
    secret = database.add_key(12)
    principals = principals_of(database)
    first = await principals.by_secret(secret)
    assert (first.agent, first.team, first.key_id, first.epoch) == ("news", "research", 12, 2)
    assert await principals.by_secret(secret) is first
    assert (database.looks(), database.loads()) == (1, 1)


async def test_budgets_and_limits_are_read_as_they_are(database: FakePool) -> None:
    secret = database.add_key(
        12,
        budgets='[[5, "agent news: total", "agent", 7, "total", "run", null, "gpt-*", "Asia/Tokyo"]]',
        limits='[[1, "agent", 7, 60, null, 4, null], [2, "model", null, null, 1000, null, "gpt-*"], '
        '[3, "key", 9, 1, null, null, null]]',
    )
    principal = await principals_of(database).by_secret(secret)
    assert principal.budgets == (
        Budget(5, "agent news: total", Scope.AGENT, 7, WindowKind.TOTAL, Dimension.RUN, None, "gpt-*", "Asia/Tokyo"),
    )
    assert principal.limits == (
        RateLimit(1, Scope.AGENT, "agent:7", requests_per_minute=60, concurrent=4, name="agent news"),
        RateLimit(2, Scope.MODEL, "model:gpt-*", None, 1000, None, "gpt-*", "model gpt-*"),
        RateLimit(3, Scope.KEY, "key:9", requests_per_minute=1, name="key default"),
    )


async def test_the_epoch_is_looked_at_again_after_fresh_s_by_one_for_all(database: FakePool, clock: Clock) -> None:
    secret = database.add_key(12)
    principals = principals_of(database, fresh_s=0.5)
    await principals.by_secret(secret)
    clock.now_s += 0.6
    database.delay_s = 0.005
    await asyncio.gather(*(principals.by_secret(secret) for _ in range(100)))
    assert (database.looks(), database.loads(), database.most_running) == (2, 1, 1)


async def test_a_revoked_key_stops_when_the_epoch_has_moved(database: FakePool, clock: Clock) -> None:
    from datetime import UTC, datetime

    secret = database.add_key(12)
    principals = principals_of(database, fresh_s=0.5)
    await principals.by_secret(secret)
    database.add_key(12, revoked_at=datetime(2026, 11, 2, tzinfo=UTC))
    clock.now_s += 0.6
    with pytest.raises(NotAuthenticated, match="was revoked at 2026-11-02"):
        await principals.by_secret(secret)


async def test_a_key_expires_without_a_change_of_configuration(database: FakePool, clock: Clock) -> None:
    from datetime import UTC, datetime

    secret = database.add_key(12, expires_in_s=5, expires_at=datetime(2026, 11, 2, tzinfo=UTC))
    principals = principals_of(database)
    await principals.by_secret(secret)
    clock.now_s += 6
    with pytest.raises(NotAuthenticated, match="expired at 2026-11-02"):
        await principals.by_secret(secret)
    assert database.loads() == 1


@pytest.mark.parametrize(
    "secret", ["", "sk-tr-", "sk-tr-short", "sk-" + "x" * 46, secret_of(1) + "x", "sk-tr-" + "é" * 43, "\ud800" * 49]
)
async def test_what_is_no_key_is_refused_without_asking(database: FakePool, secret: str) -> None:
    with pytest.raises(NotAuthenticated, match="unknown"):
        await principals_of(database).by_secret(secret)
    assert database.statements == []


async def test_a_storm_of_guesses_runs_one_statement_at_a_time_and_is_forgotten(
    database: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_service.administration.principals._CACHED", 100)
    principals = principals_of(database)
    database.delay_s = 0.001

    async def guess(number: int) -> None:
        with pytest.raises(NotAuthenticated):
            await principals.by_secret(secret_of(number))

    await asyncio.gather(*(guess(number) for number in range(1000)))
    assert database.most_running == 1
    assert database.loads() <= 6
    assert len(principals._unknown) == 100
    assert principals._waiting == {}
    before = database.loads()
    await guess(999)  # this unknown key is still in the cache
    assert database.loads() == before


async def test_the_cache_of_known_keys_is_bounded_too(database: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_service.administration.principals._CACHED", 3)
    secrets = [database.add_key(number) for number in range(1, 6)]
    principals = principals_of(database)
    for secret in secrets:
        await principals.by_secret(secret)
    assert len(principals._known) == 3


async def test_reload_looks_again_even_when_a_look_is_under_way(database: FakePool) -> None:
    secret = database.add_key(12)
    principals = principals_of(database)
    await principals.by_secret(secret)
    database.delay_s = 0.02
    early = asyncio.create_task(principals.reload())
    await asyncio.sleep(0.005)
    database.add_key(12)  # the key is added after the epoch was read
    await asyncio.gather(*(principals.reload() for _ in range(20)))
    assert (await principals.by_secret(secret)).epoch == database.epoch
    assert database.looks() <= 4
    await early


async def test_an_answer_that_was_overtaken_is_read_again(database: FakePool) -> None:
    principals = principals_of(database)
    await principals.reload()
    secret = database.add_key(12)
    database.gate = gate = asyncio.Event()
    asking = asyncio.create_task(principals.by_secret(secret))
    async with asyncio.timeout(20):
        while not database.loads():  # … has read its epoch
            await asyncio.sleep(0)
    database.add_key(12, paused="team research")
    database.gate = None
    await principals.reload()
    gate.set()
    assert (await asking).paused == "team research"


async def test_a_database_restored_from_a_backup_has_an_older_epoch_and_is_believed(database: FakePool) -> None:
    secret = database.add_key(12)
    database.epoch = 100
    principals = principals_of(database)
    assert (await principals.by_secret(secret)).epoch == 100
    database.epoch = 50
    await principals.reload()
    assert (await principals.by_secret(secret)).epoch == 50


async def test_postgres_away_is_said_to_all_and_it_comes_back(database: FakePool) -> None:
    secret = database.add_key(12)
    principals = principals_of(database, fresh_s=0.0)
    database.away = True
    results = await asyncio.gather(*(principals.by_secret(secret) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, TreasuryUnavailable) and result.retry_after for result in results)
    database.away = False
    assert (await principals.by_secret(secret)).agent == "news"


async def test_a_caller_who_leaves_takes_nothing_from_the_others(database: FakePool) -> None:
    secret = database.add_key(12)
    principals = principals_of(database)
    database.delay_s = 0.02
    leaver = asyncio.create_task(principals.by_secret(secret))
    stayer = asyncio.create_task(principals.by_secret(secret))
    await asyncio.sleep(0.005)
    leaver.cancel()
    assert (await stayer).agent == "news"


async def test_the_fixed_administrators_key_needs_no_database(database: FakePool) -> None:
    principals = principals_of(database)
    await principals.administrator(ADMIN)
    with pytest.raises(NotPermitted, match="cannot call models"):
        await principals.by_secret(ADMIN)
    with pytest.raises(NotAuthenticated):
        await principals.administrator(ADMIN + "x")
    assert database.statements == []


async def test_secrets_are_hashed_before_anything_is_compared(
    database: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So timing reveals nothing: a guess that resembles a key has a different hash."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("llm_service.administration.principals.hmac", SimpleNamespace(compare_digest=compare))
    guess, principals = secret_of(12), principals_of(database)
    with pytest.raises(NotAuthenticated):
        await principals.by_secret(guess)
    assert compared == [(sha256(guess.encode()).digest(), sha256(ADMIN.encode()).digest())]
    assert [arguments[0] for arguments in database.statements if arguments] == [[sha256(guess.encode()).digest()]]


async def test_an_agents_key_is_no_administrators(database: FakePool) -> None:
    secret = database.add_key(12)
    with pytest.raises(NotPermitted, match="belongs to agent 'news'"):
        await principals_of(database).administrator(secret)


@pytest.mark.parametrize("name", ["nobody", "a\x00b", "\ud800", "x" * 1000])
async def test_an_unknown_agent(database: FakePool, name: str) -> None:
    with pytest.raises(NotFound):
        await principals_of(database).by_agent(name)
