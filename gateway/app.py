"""The gateway: a bare ASGI layer serves the two busiest routes and hands every other request to FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from gateway import errors
from gateway.asgi import App
from gateway.composition import GatewayRuntime, open_gateway
from gateway.openapi import describe
from gateway.routes import admin, ag_ui, ai_sdk, approvals, conversations, health, models, reports, runs
from gateway.routes.agent_model import answer_by_agent
from gateway.routes.openai import CallStream, OpenAIDoor
from gateway.settings import Settings
from llm_service.types import Answer, CallContext, Principal
from llm_service.wire.requests import ParsedRequest


def create_app(settings: Settings) -> App:
    """The whole gateway as an ASGI app."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_gateway(settings) as runtime:
            app.state.runtime = runtime
            yield

    app = FastAPI(
        title="Treasurer",
        description="The LLM gateway that cannot overspend.",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would lead to the host that a forged Host header names
        docs_url=None,  # FastAPI's pages run scripts of a third party, and ask for an administrator's key
        redoc_url=None,
    )
    errors.install(app)
    for module in (models, health, admin, reports, approvals, conversations, runs, ag_ui, ai_sdk):
        app.include_router(module.router)
    app.openapi = lambda: describe(app)

    def runtime() -> GatewayRuntime:
        return app.state.runtime

    async def agents(request: ParsedRequest, principal: Principal, context: CallContext) -> Answer | CallStream:
        return await answer_by_agent(runtime(), request, principal, context)

    return OpenAIDoor(app, runtime, lambda: runtime().addresses.grant_secret, agents)
