"""Routes: chains, retries, downgrades and timeouts."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SQL = Path(llm_service.treasury.__file__).parent / "sql" / "migrations" / "0003_routes.sql"


def upgrade() -> None:
    """Make the table."""
    run_script(op.get_bind(), _SQL.read_text(encoding="utf-8"))
