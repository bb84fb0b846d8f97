"""Used grants are known to all proxies that share a database, and pacing works on PostgreSQL 15."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SQL = Path(llm_service.treasury.__file__).parent / "sql" / "migrations" / "0006_used_grants.sql"


def upgrade() -> None:
    """Used grants are known to all proxies that share a database, and pacing works on PostgreSQL 15."""
    run_script(op.get_bind(), _SQL.read_text(encoding="utf-8"))
