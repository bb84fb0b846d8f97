"""Runs that start other runs: what a run waits for, and what follows when one has ended."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import agents.runs
from gateway.migrations.script import run_script

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_SQL = Path(agents.runs.__file__).parent / "sql"
_FILES = ("children.sql", "functions/21_recover_v2.sql", "functions/30_follow.sql")


def upgrade() -> None:
    """Add the column, the table and the functions."""
    for name in _FILES:
        run_script(op.get_bind(), (_SQL / name).read_text(encoding="utf-8"))
