"""Where the parts are put together, in three levels, each on top of the former. The only composition root.

    open_catalog   which models there are, and what they cost
    open_service   governed calls, and the end of those that a process has left behind: sweeping, recovery of the spool
    open_gateway   what a server does beside calls: administration, reports, retention, audits

What must hold:
Opening waits for nothing that may be away (Postgres, Redis, LiteLLM Proxy): a gateway that starts during an outage
starts, reports which part is missing, and serves when that part is available again.
A level has no part, and starts no chore, that only a higher level needs.
Every process that makes calls also ends those that another has left behind (I2), as it may be the only process there is.
Parts are closed in the opposite order: calls end before what they use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from gateway.auditing import audit_regularly
from gateway.settings import Settings
from gateway.stack.state import running_state
from llm_service.administration.principals import Principals
from llm_service.call.admission import Admission
from llm_service.call.idempotency import Idempotency
from llm_service.call.sending import Revoke
from llm_service.call.settlement import Settler
from llm_service.errors import TreasurerError
from llm_service.grants import for_service, sign
from llm_service.guards.breaker import BreakerRules
from llm_service.guards.breaker_gate import NO_BREAKERS
from llm_service.guards.breakers import Breakers
from llm_service.guards.rate_limiter import RateLimiter
from llm_service.guards.redis_scripts import connect
from llm_service.postgres import ANY_POSTGRES_ERROR, PostgresTooOld, borrowed, check_version
from llm_service.pricing.catalog import Catalog
from llm_service.service import LLMService
from llm_service.telemetry import Telemetry
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.rate_cards import RateCards
from llm_service.treasury.reports.refusal_log import RefusalLog
from llm_service.treasury.retention import retire_regularly
from llm_service.treasury.spool import SettlementSpool
from llm_service.treasury.sweep import Price, Sweeper
from llm_service.types import CallContext, Principal, Timeouts, Usage
from llm_service.upstream.litellm_proxy import ProxyUpstream
from llm_service.upstream.token_counter import TokenCounter
from llm_service.used_grants import revoke as revoke_grant

log = logging.getLogger(__name__)

Chore = Callable[[], Coroutine[Any, Any, None]]


# -- where everything is


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the parts that are processes are reached, and the secret that grants are signed with."""

    database_url: str
    redis_url: str
    proxy_url: str
    grant_secret: str


def find_addresses(settings: Settings) -> Addresses:
    """The addresses in the settings; those that are left out are the running stack's.

    Raises:
        NotRunning: something is left out and no stack runs.
    """
    secret = settings.grant_secret.get_secret_value() if settings.grant_secret is not None else None
    given = (settings.database_url, settings.redis_url, settings.proxy_url, secret)
    if any(value is None for value in given):
        state = running_state(settings)
        found = (state.database_url, state.redis_url, state.proxy_url, state.grant_secret)
        return Addresses(*(value if value is not None else other for value, other in zip(given, found, strict=True)))
    return Addresses(*(value for value in given if value is not None))


# -- level 1: prices


@dataclass(frozen=True, slots=True)
class CatalogRuntime:
    """The models and their prices, read from LiteLLM Proxy when they are first asked for."""

    settings: Settings
    addresses: Addresses
    proxy: ProxyUpstream
    catalog: Catalog


@asynccontextmanager
async def open_catalog(
    settings: Settings, *, observe: Callable[[set[str]], None] = lambda _names: None
) -> AsyncIterator[CatalogRuntime]:
    """The catalogue. `observe` is called with the names of the models each time it has been read.

    Raises:
        NotRunning: an address is missing and no stack runs.
    """
    addresses = find_addresses(settings)
    upstream = ProxyUpstream(
        addresses.proxy_url,
        connect_s=settings.connect_timeout_s,
        total_s=settings.call_timeout_s,
        silence_s=settings.silence_timeout_s,
    )
    async with upstream as proxy:
        yield CatalogRuntime(settings, addresses, proxy, _catalog(proxy, addresses.grant_secret, observe))


def _catalog(proxy: ProxyUpstream, grant_secret: str, observe: Callable[[set[str]], None]) -> Catalog:
    path = "/model/info"

    async def read() -> list[dict[str, object]]:
        answer = await proxy.get(path, sign(grant_secret, for_service(path)))
        entries: list[dict[str, object]] = answer["data"]
        observe({str(entry["model_name"]) for entry in entries})
        return entries

    return Catalog(read)


# -- level 2: calls


@dataclass(frozen=True, slots=True)
class CallPools:
    """Connections to Postgres that calls need, apart from the two of the treasury: a pool for each kind of work, so that
    none starves another. They open connections when they are needed, and close them when they are idle.

    `keys` finds the owner of a key, for every call. `calls` is for everything else of a call: idempotency keys, the
    sweeper, runs, refusals.
    """

    keys: asyncpg.Pool
    calls: asyncpg.Pool


@dataclass(frozen=True, slots=True)
class ServiceRuntime(CatalogRuntime):
    """The service, and the parts that it is made of."""

    service: LLMService
    principals: Principals
    pools: CallPools
    telemetry: Telemetry
    limiter: RateLimiter
    breakers: Breakers
    treasury: PostgresTreasury
    idempotency: Idempotency


@asynccontextmanager
async def open_service(settings: Settings, *, gauges: asyncpg.Pool | None = None) -> AsyncIterator[ServiceRuntime]:
    """The service that makes governed calls, and ends those that another process has left behind.

    `gauges` is the pool for metrics that are read from the database, if any.

    Raises:
        NotRunning: an address is missing and no stack runs.
    """
    async with AsyncExitStack() as stack:
        telemetry = _telemetry(settings, gauges)
        stack.push_async_callback(telemetry.close)
        prices = await stack.enter_async_context(open_catalog(settings, observe=telemetry.catalogue))
        yield await _service(stack, prices, telemetry)


async def _service(stack: AsyncExitStack, prices: CatalogRuntime, telemetry: Telemetry) -> ServiceRuntime:
    settings, addresses, proxy, catalog = prices.settings, prices.addresses, prices.proxy, prices.catalog
    lifetime_s = settings.call_timeout_s + settings.hold_margin_s
    pools = CallPools(
        keys=await _pool(stack, settings, addresses, "keys", most=2, statement_s=30),
        calls=await _pool(stack, settings, addresses, "calls", most=6, statement_s=30),
    )
    redis = connect(addresses.redis_url)
    stack.push_async_callback(redis.aclose)
    limiter = RateLimiter(redis, on_degraded=lambda away: telemetry.degraded("redis", away))
    stack.push_async_callback(limiter.close)
    breakers = _breakers(settings, redis, telemetry)
    stack.push_async_callback(breakers.close)
    treasury = PostgresTreasury(
        addresses.database_url,
        observe=telemetry.group,
        most_new_subjects=settings.new_subjects_per_minute,
        # In a folder below: LiteLLM Proxy's witnesses may be spooled beside it, by the variable of the same name.
        spool=SettlementSpool((settings.spool_dir or settings.data_dir) / "settlements"),
    )
    stack.push_async_callback(treasury.close)
    principals = Principals(
        pools.keys, admin_key=settings.admin_key.get_secret_value() if settings.admin_key is not None else None
    )
    sweeper = Sweeper(
        pools.calls, treasury, _price_by(catalog), interval_s=settings.sweep_interval_s, observe=telemetry.sweep
    )
    stack.push_async_callback(sweeper.close)
    refusals = RefusalLog(pools.calls)
    stack.push_async_callback(refusals.flush)
    idempotency = Idempotency(pools.calls, ttl_s=settings.idempotency_ttl_s, wait_s=settings.call_timeout_s)
    counter = TokenCounter(proxy, addresses.grant_secret)

    def refused(principal: Principal, context: CallContext, model: str, error: TreasurerError) -> None:
        telemetry.refused(principal, model, error)
        refusals.add(principal, context, model if model in catalog.models else "(unknown)", error.code)

    service = LLMService(
        admission=Admission(
            catalog=catalog,
            principals=principals,
            limiter=limiter,
            treasury=treasury,
            rate_card=RateCards(pools.calls).id_of,
            count_tokens=counter.request,
            refused=refused,
            lifetime_s=lifetime_s,
            busy_wait_s=settings.busy_wait_s,
        ),
        settler=Settler(
            treasury=treasury,
            limiter=limiter,
            sweeper=sweeper,
            count_tokens=counter.request,
            count_text=counter.text,
            record=telemetry.record,
            lifetime_s=lifetime_s,
        ),
        upstream=proxy,
        idempotency=idempotency,
        grant_secret=addresses.grant_secret,
        parent=lambda: telemetry.parent(None),
        breakers=breakers if settings.breaker_failures else NO_BREAKERS,
        timeouts=Timeouts(first_token_s=settings.first_token_timeout_s),
        revoke=_revoke_by(pools.calls),
        fell_back=lambda attempt, reason, model: telemetry.fell_back(attempt.candidate.model, model, reason),
    )
    _begin(stack, refusals.run, breakers.run, limiter.run, sweeper.run, treasury.run)
    stack.push_async_callback(service.close)
    return ServiceRuntime(
        settings=settings,
        addresses=addresses,
        proxy=proxy,
        catalog=catalog,
        service=service,
        principals=principals,
        pools=pools,
        telemetry=telemetry,
        limiter=limiter,
        breakers=breakers,
        treasury=treasury,
        idempotency=idempotency,
    )


def _telemetry(settings: Settings, pool: asyncpg.Pool | None) -> Telemetry:
    secret = settings.langfuse_secret_key
    return Telemetry.create(
        pool=pool,
        otlp_endpoint=settings.otlp_endpoint,
        langfuse_host=settings.langfuse_host,
        langfuse_public_key=settings.langfuse_public_key,
        langfuse_secret_key=secret.get_secret_value() if secret is not None else None,
    )


def _breakers(settings: Settings, redis: Redis, telemetry: Telemetry) -> Breakers:
    rules = BreakerRules(
        failures=max(1, settings.breaker_failures),
        window_s=settings.breaker_window_s,
        rate_percent=settings.breaker_rate_percent,
        min_calls=settings.breaker_min_calls,
        open_s=settings.breaker_open_s,
        probe_s=min(60.0, settings.call_timeout_s),
    )
    return Breakers(
        redis,
        rules,
        on_change=telemetry.breaker,
        on_refused=telemetry.breaker_refused,
        on_degraded=lambda away: telemetry.degraded("breakers", away),
    )


def _price_by(catalog: Catalog) -> Price:
    def price(model: str, deployment: str | None, usage: Usage, service_tier: str | None) -> int | None:
        known = catalog.models.get(model)
        return None if known is None or known.unpriced is not None else known.cost(deployment, usage, service_tier)

    return price


def _revoke_by(pool: asyncpg.Pool) -> Revoke:
    async def revoke(call_id: UUID, attempt: int) -> bool:
        try:
            async with borrowed(pool) as connection:
                return await revoke_grant(connection, call_id, attempt)
        except (*ANY_POSTGRES_ERROR, PostgresTooOld) as error:
            # The grant may have been used: what the call may cost stays held until a witness reports its cost.
            log.warning("a grant could not be revoked: %s", type(error).__name__)
            return False

    return revoke


# -- level 3: a server


@dataclass(frozen=True, slots=True)
class GatewayPools(CallPools):
    """The pools of a server.

    `changes` is for administrators' changes, which wait for each other. `reading` is for reports and lists, as many at a
    time as it has connections. `watching` is for the audit, for gauges and for retiring windows.
    """

    changes: asyncpg.Pool
    reading: asyncpg.Pool
    watching: asyncpg.Pool


@dataclass(frozen=True, slots=True)
class GatewayRuntime(ServiceRuntime):
    """The parts that routes use."""

    pools: GatewayPools


#: So many reports and lists a gateway makes at a time.
READING_AT_A_TIME = 4


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[GatewayRuntime]:
    """The service, with the chores and the pools of a server.

    Raises:
        NotRunning: an address is missing and no stack runs.
    """
    addresses = find_addresses(settings)
    async with AsyncExitStack() as stack:
        watching = await _pool(stack, settings, addresses, "watching", most=3, statement_s=610)
        calls = await stack.enter_async_context(open_service(settings, gauges=watching))
        pools = GatewayPools(
            keys=calls.pools.keys,
            calls=calls.pools.calls,
            changes=await _pool(stack, settings, addresses, "changes", most=2, statement_s=30),
            reading=await _pool(stack, settings, addresses, "reading", most=READING_AT_A_TIME, statement_s=70),
            watching=watching,
        )
        _begin(stack, *_chores(calls, watching))
        yield GatewayRuntime(
            settings=settings,
            addresses=calls.addresses,
            proxy=calls.proxy,
            catalog=calls.catalog,
            service=calls.service,
            principals=calls.principals,
            pools=pools,
            telemetry=calls.telemetry,
            limiter=calls.limiter,
            breakers=calls.breakers,
            treasury=calls.treasury,
            idempotency=calls.idempotency,
        )


def _chores(calls: ServiceRuntime, watching: asyncpg.Pool) -> list[Chore]:
    settings = calls.settings
    chores: list[Chore] = [
        calls.idempotency.run,
        partial(retire_regularly, watching, older_than_s=settings.window_retention_s),
    ]
    if settings.audit_interval_s:
        chores.append(
            partial(
                audit_regularly,
                watching,
                calls.telemetry,
                interval_s=settings.audit_interval_s,
                sweep_interval_s=settings.sweep_interval_s,
            )
        )
    return chores


# -- what the levels have in common


async def _pool(
    stack: AsyncExitStack, settings: Settings, addresses: Addresses, name: str, *, most: int, statement_s: float
) -> asyncpg.Pool:
    """A pool of at most so many connections, whose statements are given up after so many seconds."""
    return await stack.enter_async_context(
        asyncpg.create_pool(
            addresses.database_url,
            min_size=0,
            max_size=most,
            timeout=settings.connect_timeout_s,
            command_timeout=statement_s,
            init=check_version,
            server_settings={"application_name": f"treasurer {name}"},
        )
    )


def _begin(stack: AsyncExitStack, *chores: Chore) -> None:
    """Run the chores until the stack is closed."""
    for chore in chores:
        stack.push_async_callback(_stop, asyncio.create_task(_keep_running(chore)))


async def _keep_running(work: Chore, pause_s: float = 5.0) -> None:
    """Do a chore that has no end. An error that it did not expect is logged, and the chore begins again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a chore of the gateway failed; it begins again in %g s", pause_s)
        await asyncio.sleep(pause_s)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
