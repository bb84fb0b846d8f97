"""A budget's share for one call."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_FOLDER = Path(llm_service.treasury.__file__).parent / "sql"


def upgrade() -> None:
    """Add the column, and the version of admission that reads it."""
    for name in ("migrations/0009_most_per_call.sql", "functions/24_admit_v4.sql"):
        run_script(op.get_bind(), (_FOLDER / name).read_text(encoding="utf-8"))
