"""What runs ask people, and what was decided."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import agents.approvals
from gateway.migrations.script import run_script

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_SCRIPT = Path(agents.approvals.__file__).parent / "sql" / "schema.sql"


def upgrade() -> None:
    """Add the table."""
    run_script(op.get_bind(), _SCRIPT.read_text(encoding="utf-8"))
