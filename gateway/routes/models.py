"""GET /v1/models: the models that a key may use, and its agent if a person can chat with it, in OpenAI's form, with prices in a
field of Treasurer's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from gateway.auth import secret_of
from gateway.composition import GatewayRuntime
from gateway.routes.openai import AGENT
from llm_service.errors import UnknownModel
from llm_service.pricing.models import Model
from llm_service.types import Principal

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that the key may use."""
    runtime, principal = await _caller(request)
    if not runtime.catalog.models:
        await runtime.catalog.refresh()
    data = [_openai_model(model) for model in runtime.catalog.models.values() if _usable(principal, model)]
    if await runtime.starter.takes_messages(principal.agent):
        data.append(_agent(principal))
    return {"object": "list", "data": data}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """One model."""
    runtime, principal = await _caller(request)
    if name == AGENT + principal.agent and await runtime.starter.takes_messages(principal.agent):
        return _agent(principal)
    if not runtime.catalog.models:
        await runtime.catalog.refresh()
    found = runtime.catalog.models.get(name)
    if found is None or not _usable(principal, found):
        raise UnknownModel(f"The model {name[:200]!r} does not exist, or this key may not use it.", param="model")
    return _openai_model(found)


async def _caller(request: Request) -> tuple[GatewayRuntime, Principal]:
    runtime: GatewayRuntime = request.app.state.runtime
    return runtime, await runtime.principals.by_secret(secret_of(request))


def _usable(principal: Principal, model: Model) -> bool:
    return model.unpriced is None and principal.may_use(model.name)


def _agent(principal: Principal) -> dict[str, Any]:
    return {"id": AGENT + principal.agent, "object": "model", "created": 0, "owned_by": principal.team}


def _openai_model(model: Model) -> dict[str, Any]:
    dearest = max(model.rates.values(), key=lambda rates: rates.default[0].output)
    rates = dearest.default[0]
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": model.provider,
        "treasurer": {
            "mode": model.mode,
            "max_input_tokens": model.max_input_tokens,
            "max_output_tokens": model.max_output_tokens,
            "capabilities": sorted(model.capabilities),
            "nano_dollars_per_million_tokens": {
                "input": rates.input,
                "output": rates.output,
                "cached": rates.cache_read,
            },
        },
    }
