"""How agents are configured: their versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from agents.configuration import versions
from agents.configuration.inputs import NewVersion, UseVersion
from agents.configuration.versions import CheckModel, ConfigurationView
from gateway.composition import GatewayRuntime
from gateway.routes.admin.common import AfterId, Id, Limit, Listing, Pool, admin_router, listing
from llm_service.administration.paging import DEFAULT, Page

router = admin_router()


def _check_model(request: Request) -> CheckModel:
    runtime: GatewayRuntime = request.app.state.runtime

    async def check(model: str) -> None:
        await runtime.catalog.get(model)

    return check


Models = Annotated[CheckModel, Depends(_check_model)]


@router.get("/agents/{name}/configuration")
async def show_configuration(pool: Pool, name: str) -> ConfigurationView:
    """The current version of an agent's configuration; version 0 is the defaults of its code."""
    return ConfigurationView.showing(await versions.for_people(pool).current(name))


@router.put("/agents/{name}/configuration")
async def set_configuration(pool: Pool, name: str, new: NewVersion, models: Models) -> ConfigurationView:
    """Make a new version. Fields that are left out have their defaults."""
    return ConfigurationView.showing(await versions.set_configuration(pool, name, new, models))


@router.patch("/agents/{name}/configuration")
async def change_configuration(pool: Pool, name: str, new: NewVersion, models: Models) -> ConfigurationView:
    """Make a new version that differs from the current one in the fields that are given. Null: the field's default."""
    return ConfigurationView.showing(await versions.change_configuration(pool, name, new, models))


@router.get("/agents/{name}/configuration/versions")
async def list_versions(
    pool: Pool, name: str, limit: Limit = DEFAULT, after: AfterId = None
) -> Listing[ConfigurationView]:
    """The versions that were made, the newest first."""
    found = await versions.for_people(pool).page(name, limit=limit, after=after)
    shown = Page(map(ConfigurationView.showing, found))
    shown.more = found.more
    return listing(shown, lambda row: row.version)


@router.get("/agents/{name}/configuration/versions/{version}")
async def show_version(pool: Pool, name: str, version: Id) -> ConfigurationView:
    """One version."""
    return ConfigurationView.showing(await versions.for_people(pool).at(name, version))


@router.post("/agents/{name}/configuration/use")
async def use_version(pool: Pool, name: str, use: UseVersion, models: Models) -> ConfigurationView:
    """Make a new version with the content of an earlier one."""
    return ConfigurationView.showing(await versions.use_version(pool, name, use, models))
