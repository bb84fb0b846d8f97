"""The log of administrative changes."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SQL = Path(llm_service.treasury.__file__).parent / "sql" / "migrations" / "0004_change_log.sql"


def upgrade() -> None:
    """Make the table and the triggers that fill it."""
    run_script(op.get_bind(), _SQL.read_text(encoding="utf-8"))
