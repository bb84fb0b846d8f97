"""`treasurer migrate`: bring the database's schema up to date."""

from __future__ import annotations

from rich.console import Console

from gateway.cli.common import ExitCode, fail, run_async


def migrate() -> None:
    """Bring the database's schema up to date (`up` does it automatically)."""
    from gateway.settings import load_settings
    from gateway.stack.state import running_state

    settings = load_settings()
    url = settings.database_url or running_state(settings).database_url
    run_async(_migrate(url))
    Console().print("The database is up to date.")


async def _migrate(url: str) -> None:
    from gateway.migrations import MigrationFailed
    from gateway.migrations import migrate as upgrade
    from gateway.settings import without_password
    from llm_service.postgres import PostgresTooOld

    try:
        await upgrade(url)
    except PostgresTooOld as error:
        fail(error.at(without_password(url)), ExitCode.FAILED)
    except MigrationFailed as error:
        fail(f"The database cannot be migrated: {error}", ExitCode.FAILED)
