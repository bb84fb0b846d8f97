"""Versions of the configuration of agents."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import agents.configuration
from gateway.migrations.script import run_script

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_SCRIPT = Path(agents.configuration.__file__).parent / "sql" / "schema.sql"


def upgrade() -> None:
    """Add the table."""
    run_script(op.get_bind(), _SCRIPT.read_text(encoding="utf-8"))
