"""The most that a run of an agent may spend."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_SCRIPT = Path(llm_service.treasury.__file__).parent / "sql" / "migrations" / "0018_most_per_run.sql"


def upgrade() -> None:
    """Add the column."""
    run_script(op.get_bind(), _SCRIPT.read_text(encoding="utf-8"))
