"""Verdicts of admission that have names."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SQL = Path(llm_service.treasury.__file__).parent / "sql" / "functions" / "23_admit_v3_verdicts.sql"


def upgrade() -> None:
    """Replace the body of treasury_admit_v3: its decisions are the same."""
    run_script(op.get_bind(), _SQL.read_text(encoding="utf-8"))
