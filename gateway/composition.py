"""The only place where the parts are put together, in three levels, each built on the one before.

    open_catalog   which models there are, and what they cost
    open_service   governed calls, and the settlement of those that a dead process left behind (sweeper, spool)
    open_gateway   what a server does besides calls: administration, reports, retention, audits

What must hold:
Opening waits for no server that may be unavailable (Postgres, Redis, LiteLLM Proxy). A gateway that starts during an
outage reports which part is missing, and serves when that part is available again.
A level contains no part, and starts no chore, that only a higher level needs.
Every process that makes calls also settles those that another process has left behind (I2), because no other process
may be running.
Parts are closed in the opposite order, so that calls end before the parts that they use.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from agents.configuration.versions import AgentConfigurations
from agents.runs.in_postgres import PostgresRuns
from agents.runs.live_text import live_text_at
from agents.runs.starting import RunStarter
from agents.runs.tracing import RunTraces
from agents.runs.watching import Watching
from gateway.addresses import Addresses, find_addresses
from gateway.auditing import audit_regularly
from gateway.chores import Chore, begin
from gateway.pools import READING_AT_A_TIME, CallPools, GatewayPools, open_call_pools, open_pool
from gateway.settings import Settings
from gateway.tracing import open_telemetry
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
from llm_service.postgres import ANY_POSTGRES_ERROR, PostgresTooOld, borrowed
from llm_service.pricing.catalog import Catalog
from llm_service.runs.money import RunMoney
from llm_service.runs.usage import TokenCounts
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
# -- level 1: prices


@dataclass(frozen=True, slots=True)
class CatalogRuntime:
    """The models and their prices, read from LiteLLM Proxy when they are first needed."""

    settings: Settings
    addresses: Addresses
    proxy: ProxyUpstream
    catalog: Catalog


@asynccontextmanager
async def open_catalog(
    settings: Settings, *, observe: Callable[[Mapping[str, int]], None] = lambda _models: None
) -> AsyncIterator[CatalogRuntime]:
    """The catalogue. Each time it has been read, `observe` is called with its models, and for each model with
    the number of prices on which the two price books disagree.

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


def _catalog(proxy: ProxyUpstream, grant_secret: str, observe: Callable[[Mapping[str, int]], None]) -> Catalog:
    path = "/model/info"

    async def read() -> list[dict[str, object]]:
        answer = await proxy.get(path, sign(grant_secret, for_service(path)))
        entries: list[dict[str, object]] = answer["data"]
        return entries

    return Catalog(read, observe=lambda models: observe({name: len(each.differences) for name, each in models.items()}))


# -- level 2: calls


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
    run_money: RunMoney


@asynccontextmanager
async def open_service(settings: Settings, *, gauges: asyncpg.Pool | None = None) -> AsyncIterator[ServiceRuntime]:
    """The service that makes governed calls, and settles those that another process has left behind.

    `gauges` is the pool for metrics that are read from the database, if any.

    Raises:
        NotRunning: an address is missing and no stack runs.
    """
    async with AsyncExitStack() as stack:
        telemetry = open_telemetry(settings, gauges)
        stack.push_async_callback(telemetry.close)
        prices = await stack.enter_async_context(open_catalog(settings, observe=telemetry.catalogue))
        yield await _service(stack, prices, telemetry)


async def _service(stack: AsyncExitStack, prices: CatalogRuntime, telemetry: Telemetry) -> ServiceRuntime:
    settings, addresses, catalog = prices.settings, prices.addresses, prices.catalog
    pools = await open_call_pools(stack, settings, addresses.database_url)
    limiter, breakers = _guards(stack, settings, addresses, telemetry)
    treasury, sweeper = _money(stack, prices, pools, telemetry)
    principals = _principals(settings, pools)
    refusals = RefusalLog(pools.calls)
    stack.push_async_callback(refusals.flush)
    idempotency = Idempotency(pools.calls, ttl_s=settings.idempotency_ttl_s, wait_s=settings.call_timeout_s)
    counter = TokenCounter(prices.proxy, addresses.grant_secret)
    lifetime_s = settings.call_timeout_s + settings.hold_margin_s
    service = LLMService(
        admission=Admission(
            catalog=catalog,
            principals=principals,
            limiter=limiter,
            treasury=treasury,
            rate_card=RateCards(pools.calls).id_of,
            count_tokens=counter.request,
            refused=_refused_by(catalog, telemetry, refusals),
            lifetime_s=lifetime_s,
            busy_wait_s=settings.busy_wait_s,
            default_share=settings.default_share_percent * 100,
            find_envelope=treasury.envelopes.find,
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
        upstream=prices.proxy,
        idempotency=idempotency,
        grant_secret=addresses.grant_secret,
        parent=lambda: telemetry.parent(None),
        breakers=breakers if settings.breaker_failures else NO_BREAKERS,
        timeouts=Timeouts(first_token_s=settings.first_token_timeout_s),
        revoke=_revoke_by(pools.calls),
        fell_back=lambda attempt, reason, model: telemetry.fell_back(attempt.candidate.model, model, reason),
    )
    begin(stack, refusals.run, breakers.run, limiter.run, sweeper.run, treasury.run)
    stack.push_async_callback(service.close)
    return ServiceRuntime(
        settings=settings,
        addresses=addresses,
        proxy=prices.proxy,
        catalog=catalog,
        service=service,
        principals=principals,
        pools=pools,
        telemetry=telemetry,
        limiter=limiter,
        breakers=breakers,
        treasury=treasury,
        idempotency=idempotency,
        run_money=RunMoney(treasury.envelopes, principals, freed=treasury.freed, busy_wait_s=settings.busy_wait_s),
    )


def _guards(
    stack: AsyncExitStack, settings: Settings, addresses: Addresses, telemetry: Telemetry
) -> tuple[RateLimiter, Breakers]:
    """Rate limits and circuit breakers, which share one connection to Redis."""
    redis = connect(addresses.redis_url)
    stack.push_async_callback(redis.aclose)
    limiter = RateLimiter(redis, on_degraded=lambda away: telemetry.degraded("redis", away))
    stack.push_async_callback(limiter.close)
    breakers = _breakers(settings, redis, telemetry)
    stack.push_async_callback(breakers.close)
    return limiter, breakers


def _money(
    stack: AsyncExitStack, prices: CatalogRuntime, pools: CallPools, telemetry: Telemetry
) -> tuple[PostgresTreasury, Sweeper]:
    """The treasury, and the sweeper that settles the holds of processes that have died."""
    settings = prices.settings
    treasury = PostgresTreasury(
        prices.addresses.database_url,
        observe=telemetry.group,
        most_new_subjects=settings.new_subjects_per_minute,
        # In a subfolder, because LiteLLM Proxy may spool its witnesses into the same TREASURER_SPOOL_DIR.
        spool=SettlementSpool((settings.spool_dir or settings.data_dir) / "settlements"),
    )
    stack.push_async_callback(treasury.close)
    sweeper = Sweeper(
        pools.calls,
        treasury,
        _price_by(prices.catalog),
        interval_s=settings.sweep_interval_s,
        observe=telemetry.sweep,
        envelopes=treasury.envelopes,
    )
    stack.push_async_callback(sweeper.close)
    return treasury, sweeper


def _principals(settings: Settings, pools: CallPools) -> Principals:
    admin_key = settings.admin_key
    return Principals(pools.keys, admin_key=None if admin_key is None else admin_key.get_secret_value())


def _refused_by(
    catalog: Catalog, telemetry: Telemetry, refusals: RefusalLog
) -> Callable[[Principal, CallContext, str, TreasurerError], None]:
    """Make a function that counts a refused call, and records it for reports."""

    def refused(principal: Principal, context: CallContext, model: str, error: TreasurerError) -> None:
        telemetry.refused(principal, model, error)
        refusals.add(principal, context, model if model in catalog.models else "(unknown)", error.code)

    return refused


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
            # The grant may have been used, so the hold stays until a witness reports the cost or the hold expires.
            log.warning("a grant could not be revoked: %s", type(error).__name__)
            return False

    return revoke


# -- level 3: a server


@dataclass(frozen=True, slots=True)
class GatewayRuntime(ServiceRuntime):
    """The parts that routes use."""

    pools: GatewayPools
    runs: PostgresRuns
    watching: Watching
    starter: RunStarter
    token_counts: TokenCounts


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[GatewayRuntime]:
    """The service, with the chores and the pools of a server.

    Raises:
        NotRunning: an address is missing and no stack runs.
    """
    addresses = find_addresses(settings)
    async with AsyncExitStack() as stack:
        watching = await open_pool(stack, settings, addresses.database_url, "watching", most=3, statement_s=610)
        calls = await stack.enter_async_context(open_service(settings, gauges=watching))
        pools = GatewayPools(
            keys=calls.pools.keys,
            calls=calls.pools.calls,
            changes=await open_pool(stack, settings, addresses.database_url, "changes", most=2, statement_s=30),
            reading=await open_pool(
                stack, settings, addresses.database_url, "reading", most=READING_AT_A_TIME, statement_s=70
            ),
            watching=watching,
            runs=await open_pool(stack, settings, addresses.database_url, "runs", most=4, statement_s=30),
        )
        runs = PostgresRuns(pools.runs, RunTraces(calls.telemetry, settings.trace_content))
        begin(stack, *_chores(calls, watching))
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
            run_money=calls.run_money,
            runs=runs,
            watching=Watching(runs, await stack.enter_async_context(live_text_at(addresses.redis_url))),
            starter=RunStarter(runs, calls.principals, AgentConfigurations(pools.runs)),
            token_counts=TokenCounts(pools.runs),
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
