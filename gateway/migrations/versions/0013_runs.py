"""Runs of agents and their steps: schema `work`."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import agents.runs
from gateway.migrations.script import run_script

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_SQL = Path(agents.runs.__file__).parent / "sql"
_FILES = ("schema.sql", "functions/10_claim.sql")


def upgrade() -> None:
    """Add the schema."""
    for name in _FILES:
        run_script(op.get_bind(), (_SQL / name).read_text(encoding="utf-8"))
