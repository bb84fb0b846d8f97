"""Who had a run and when, and a time limit that stands still while a run waits."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import agents.runs
from gateway.migrations.script import run_script

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_SCRIPT = Path(agents.runs.__file__).parent / "sql" / "attempts.sql"


def upgrade() -> None:
    """Add the table, the columns and the triggers."""
    run_script(op.get_bind(), _SCRIPT.read_text(encoding="utf-8"))
