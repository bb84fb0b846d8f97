"""Grants that were used, known to every proxy of a database; pacing that PostgreSQL 15 understands."""

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
    """Grants that were used, known to every proxy of a database; pacing that PostgreSQL 15 understands."""
    run_script(op.get_bind(), _SQL.read_text(encoding="utf-8"))
