"""Liveness, readiness and metrics. Readiness says which part is missing, in words."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from gateway.composition import Runtime
from llm_service.errors import ProxyUnavailable, UpstreamError
from llm_service.treasury.connection import AWAY, PostgresTooOld

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


_STATE = {"content": {"application/json": {"schema": {"type": "object"}}}}


@router.get("/readyz", responses={200: {**_STATE, "description": "ready"}, 503: {**_STATE, "description": "not ready"}})
async def ready(request: Request) -> Response:
    """Whether calls can be served: 200, or 503 with the part that is missing."""
    runtime: Runtime = request.app.state.runtime
    postgres, proxy = await asyncio.gather(_postgres(runtime), _proxy(runtime))
    parts = {"postgres": postgres, "litellm_proxy": proxy, "redis": _redis(runtime)}
    missing = [name for name in ("postgres", "litellm_proxy") if parts[name] != "ok"]
    status = {"status": "ready" if not missing else "not ready", "missing": missing, "parts": parts}
    return JSONResponse(status, 200 if not missing else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus metrics, over all gateway processes of this machine."""
    runtime: Runtime = request.app.state.runtime
    return Response(await runtime.telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _postgres(runtime: Runtime) -> str:
    try:
        await asyncio.wait_for(runtime.pool.fetchval("SELECT value FROM epoch", timeout=2), 3)
    except PostgresTooOld as error:
        return error.message
    except AWAY as error:
        return f"away ({type(error).__name__})"
    return "ok"


async def _proxy(runtime: Runtime) -> str:
    if runtime.catalog.models:
        return "ok"
    try:
        await runtime.catalog.refresh()
    except (ProxyUnavailable, UpstreamError) as error:
        return f"away ({error.message})"
    return "ok" if runtime.catalog.models else "no models"


def _redis(runtime: Runtime) -> str:
    return "away: limits are kept in each process, budgets are exact" if runtime.limiter.degraded else "ok"
