"""Liveness, readiness and metrics. Readiness names the part that is missing, and the clock that is wrong."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from gateway.composition import GatewayRuntime
from llm_service.call.sending import GRANT_LIFETIME_S
from llm_service.errors import DatabaseBusy, ProxyUnavailable, TreasuryUnavailable, UpstreamError
from llm_service.grants import CLOCK_SKEW_S
from llm_service.postgres import NotMigrated, PostgresTooOld, fetch
from llm_service.upstream.clocks import difference, disagrees

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def alive() -> dict[str, str]:
    """Whether this process answers at all."""
    return {"status": "ok"}


_STATE = {"content": {"application/json": {"schema": {"type": "object"}}}}


@router.get("/readyz", responses={200: {**_STATE, "description": "ready"}, 503: {**_STATE, "description": "not ready"}})
async def ready(request: Request) -> Response:
    """Whether calls can be served: 200, or 503 with the part that is missing."""
    runtime: GatewayRuntime = request.app.state.runtime
    (postgres, database_ahead_s), proxy, proxy_ahead_s = await asyncio.gather(
        _postgres(runtime), _proxy(runtime), runtime.proxy.clock_ahead_s()
    )
    parts = {"postgres": postgres, "litellm_proxy": proxy, "redis": _redis(runtime)}
    missing = [name for name in ("postgres", "litellm_proxy") if parts[name] != "ok"]
    status = {
        "status": "ready" if not missing else "not ready",
        "missing": missing,
        "parts": parts,
        "warnings": clock_warnings(proxy_ahead_s, database_ahead_s),
    }
    return JSONResponse(status, 503, headers={"retry-after": "1"}) if missing else JSONResponse(status)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus metrics, over all gateway processes of this machine."""
    runtime: GatewayRuntime = request.app.state.runtime
    return Response(await runtime.telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def clock_warnings(proxy_ahead_s: float | None, database_ahead_s: float | None) -> list[str]:
    """A sentence for the operator about each clock that is wrong. A clock that could not be read is None.

    A gateway with such a warning stays ready, because its answers to callers name the fault too. If no gateway were
    ready, callers would not learn it.
    """
    found: list[str] = []
    if proxy_ahead_s is not None and disagrees(proxy_ahead_s):
        refuses = not -CLOCK_SKEW_S <= proxy_ahead_s <= GRANT_LIFETIME_S + CLOCK_SKEW_S
        left_s = GRANT_LIFETIME_S + CLOCK_SKEW_S - proxy_ahead_s
        follows = "it refuses every call" if refuses else f"it refuses calls that wait in it for over {left_s:.0f} s"
        found.append(f"LiteLLM Proxy's clock is {difference(proxy_ahead_s)}: {follows}. Set both machines' clocks.")
    if database_ahead_s is not None and disagrees(database_ahead_s):
        found.append(
            f"The database's clock is {difference(database_ahead_s)}. By that clock the windows of budgets begin and "
            "end, and keys expire."
        )
    return found


async def _postgres(runtime: GatewayRuntime) -> tuple[str, float | None]:
    """The state of Postgres, and by how many seconds its clock is ahead of ours (None: unknown)."""
    began = time.time()
    try:
        async with asyncio.timeout(3):
            rows = await fetch(runtime.pools.keys, "SELECT clock_timestamp() AS now FROM epoch", timeout_s=2)
    except TimeoutError:
        return "away (no answer within 3 s)", None
    except (PostgresTooOld, NotMigrated) as error:
        return error.message, None
    except TreasuryUnavailable as error:
        word = "busy" if isinstance(error, DatabaseBusy) else "away"
        return f"{word} ({error.details.get('cause')})", None
    now: datetime = rows[0]["now"]
    return "ok", now.timestamp() - (began + time.time()) / 2


async def _proxy(runtime: GatewayRuntime) -> str:
    if runtime.catalog.models:
        return "ok"
    try:
        await runtime.catalog.refresh()
    except (ProxyUnavailable, UpstreamError) as error:
        return f"away ({error.message})"
    return "ok" if runtime.catalog.models else "no models"


def _redis(runtime: GatewayRuntime) -> str:
    return "away: limits are kept in each process, budgets are exact" if runtime.limiter.degraded else "ok"
