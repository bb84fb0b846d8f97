"""Limits are kept in budgets only, manual changes raise the epoch too, holds keep their rates, old windows are
retired."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TREASURY = Path(llm_service.treasury.__file__).parent
_SQL = (
    "sql/migrations/0005_limits_that_hold.sql",
    "sql/functions/11_windows_v2.sql",
    "sql/functions/22_admit_v3.sql",
    "sql/functions/32_settle_v3.sql",
    "sql/functions/40_retire_windows.sql",
)


def upgrade() -> None:
    """Add the columns and version 3 of the functions. Version 2 now calls version 3, and version 1 is dropped."""
    for name in _SQL:
        run_script(op.get_bind(), (_TREASURY / name).read_text(encoding="utf-8"))
