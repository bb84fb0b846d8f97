"""Where the parts are put together: settings in, a running LLM service out. The only composition root.

What must hold: opening waits for nothing that may be away (Postgres, Redis, LiteLLM Proxy): a gateway
that starts during an outage starts, says which part is missing, and serves when it is back.
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
from gateway.cli.common import running_state
from gateway.settings import Settings
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
from llm_service.treasury.rate_cards import RateCards
from llm_service.treasury.reports.refusal_log import RefusalLog
from llm_service.treasury.retention import retire_regularly
from llm_service.treasury.spool import SettlementSpool
from llm_service.treasury.sweep import Price, Sweeper
from llm_service.treasury.treasury import Treasury
from llm_service.types import CallContext, Principal, Timeouts, Usage
from llm_service.upstream.litellm_proxy import ProxyUpstream
from llm_service.upstream.token_counter import TokenCounter
from llm_service.used_grants import revoke as revoke_grant

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pools:
    """Connections to Postgres, apart from the two of the treasury: a pool for each kind of work, so that none starves
    another. They open connections when they are needed, and close them when they are idle.

    `keys` is for whose key it is, which every call asks. `calls` is for what else calls need (idempotency keys, the
    sweeper, runs, refusals). `changes` is for administrators' changes, which wait for each other. `reading` is for
    reports and lists, as many at a time as it has connections. `watching` is for the audit, for gauges and for retiring windows.
    """

    keys: asyncpg.Pool
    calls: asyncpg.Pool
    changes: asyncpg.Pool
    reading: asyncpg.Pool
    watching: asyncpg.Pool


@dataclass(frozen=True, slots=True)
class Runtime:
    """The parts that routes and commands use."""

    settings: Settings
    service: LLMService
    principals: Principals
    pools: Pools
    telemetry: Telemetry
    limiter: RateLimiter
    catalog: Catalog
    treasury: Treasury
    breakers: Breakers
    proxy: ProxyUpstream


#: So many reports and lists a gateway makes at a time.
READING_AT_A_TIME = 4
#: For each pool: how many connections, and after how many seconds a statement's answer is not waited for any more.
_POOLS = {
    "keys": (2, 30),
    "calls": (6, 30),
    "changes": (2, 30),
    "reading": (READING_AT_A_TIME, 70),
    "watching": (3, 610),
}


async def _open_pools(stack: AsyncExitStack, database_url: str, connect_timeout_s: float) -> Pools:
    opened = {
        name: await stack.enter_async_context(
            asyncpg.create_pool(
                database_url,
                min_size=0,
                max_size=size,
                timeout=connect_timeout_s,
                command_timeout=patience_s,
                init=check_version,
                server_settings={"application_name": f"treasurer {name}"},
            )
        )
        for name, (size, patience_s) in _POOLS.items()
    }
    return Pools(**opened)


@dataclass(frozen=True, slots=True)
class _Addresses:
    database_url: str
    redis_url: str
    proxy_url: str
    grant_secret: str


def _addresses(settings: Settings) -> _Addresses:
    """Where everything is: as the settings say; what they leave out, as the running stack says.

    Raises:
        NotRunning: something is left out and no stack runs.
    """
    secret = settings.grant_secret.get_secret_value() if settings.grant_secret is not None else None
    given = (settings.database_url, settings.redis_url, settings.proxy_url, secret)
    if any(value is None for value in given):
        state = running_state(settings)
        found = (state.database_url, state.redis_url, state.proxy_url, state.grant_secret)
        return _Addresses(*(value if value is not None else other for value, other in zip(given, found, strict=True)))
    return _Addresses(*(value for value in given if value is not None))


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Runtime]:
    """The service and its parts, for the time of the context.

    Raises:
        NotRunning: no addresses are set and no stack runs.
    """
    where = _addresses(settings)
    lifetime_s = settings.call_timeout_s + settings.hold_margin_s
    async with AsyncExitStack() as stack:
        pools = await _open_pools(stack, where.database_url, settings.connect_timeout_s)
        telemetry = _telemetry(settings, pools.watching)
        stack.push_async_callback(telemetry.close)
        redis = connect(where.redis_url)
        stack.push_async_callback(redis.aclose)
        limiter = RateLimiter(redis, on_degraded=lambda away: telemetry.degraded("redis", away))
        stack.push_async_callback(limiter.close)
        breakers = _breakers(settings, redis, telemetry)
        stack.push_async_callback(breakers.close)
        proxy = await stack.enter_async_context(
            ProxyUpstream(
                where.proxy_url,
                connect_s=settings.connect_timeout_s,
                total_s=settings.call_timeout_s,
                silence_s=settings.silence_timeout_s,
            )
        )
        treasury = Treasury(
            where.database_url,
            observe=telemetry.group,
            most_new_subjects=settings.new_subjects_per_minute,
            # A folder of its own: LiteLLM Proxy's witnesses may be spooled beside it, by the same variable's name.
            spool=SettlementSpool((settings.spool_dir or settings.data_dir) / "settlements"),
        )
        stack.push_async_callback(treasury.close)
        catalog = _catalog(proxy, where.grant_secret, telemetry)
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
        counter = TokenCounter(proxy, where.grant_secret)

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
            grant_secret=where.grant_secret,
            parent=lambda: telemetry.parent(None),
            breakers=breakers if settings.breaker_failures else NO_BREAKERS,
            timeouts=Timeouts(first_token_s=settings.first_token_timeout_s),
            revoke=_revoke_by(pools.calls),
            fell_back=lambda call, reason, model: telemetry.fell_back(call.candidate.model, model, reason),
        )
        chores = [sweeper.run, refusals.run, idempotency.run, breakers.run, treasury.run, limiter.run]
        chores.append(partial(retire_regularly, pools.watching, older_than_s=settings.window_retention_s))
        if settings.audit_interval_s:
            chores.append(
                partial(
                    audit_regularly,
                    pools.watching,
                    telemetry,
                    interval_s=settings.audit_interval_s,
                    sweep_interval_s=settings.sweep_interval_s,
                )
            )
        for work in chores:
            task = asyncio.create_task(_keep_running(work))
            stack.push_async_callback(_stop, task)
        stack.push_async_callback(service.close)
        yield Runtime(settings, service, principals, pools, telemetry, limiter, catalog, treasury, breakers, proxy)


def _revoke_by(pool: asyncpg.Pool) -> Revoke:
    async def revoke(call_id: UUID, attempt: int) -> bool:
        try:
            async with borrowed(pool) as connection:
                return await revoke_grant(connection, call_id, attempt)
        except (*ANY_POSTGRES_ERROR, PostgresTooOld) as error:
            # It may have been used: what it may cost stays held until a witness tells.
            log.warning("a grant could not be revoked: %s", type(error).__name__)
            return False

    return revoke


async def _keep_running(work: Callable[[], Coroutine[Any, Any, None]], pause_s: float = 5.0) -> None:
    """Do a chore that has no end. What it did not expect is in the log, and it begins again: no chore ends in silence."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a chore of the gateway failed; it begins again in %g s", pause_s)
        await asyncio.sleep(pause_s)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _telemetry(settings: Settings, pool: asyncpg.Pool) -> Telemetry:
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


def _catalog(proxy: ProxyUpstream, grant_secret: str, telemetry: Telemetry) -> Catalog:
    path = "/model/info"

    async def read() -> list[dict[str, object]]:
        answer = await proxy.get(path, sign(grant_secret, for_service(path)))
        entries: list[dict[str, object]] = answer["data"]
        telemetry.catalogue({str(entry["model_name"]) for entry in entries})
        return entries

    return Catalog(read)


def _price_by(catalog: Catalog) -> Price:
    def price(model: str, deployment: str | None, usage: Usage, service_tier: str | None) -> int | None:
        known = catalog.models.get(model)
        return None if known is None or known.unpriced is not None else known.cost(deployment, usage, service_tier)

    return price
