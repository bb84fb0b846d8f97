"""Corrections of the past costs of a model whose price was wrong."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_SCRIPT = Path(llm_service.treasury.__file__).parent / "sql" / "migrations" / "0014_repricings.sql"


def upgrade() -> None:
    """Add the table, and let an attempt be corrected more than once."""
    run_script(op.get_bind(), _SCRIPT.read_text(encoding="utf-8"))
