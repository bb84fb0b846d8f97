"""Money held for a whole run."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_SQL = Path(llm_service.treasury.__file__).parent / "sql"


def upgrade() -> None:
    """Add the table, and the versions of admission and settlement that know it."""
    for script in (
        "migrations/0017_envelopes.sql",
        "functions/50_envelopes.sql",
        "functions/25_admit_v5.sql",
        "functions/34_settle_v4_runs.sql",
    ):
        run_script(op.get_bind(), (_SQL / script).read_text(encoding="utf-8"))
