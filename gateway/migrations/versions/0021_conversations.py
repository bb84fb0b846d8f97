"""What the runs of a session said, and what each run has read of it."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import agents.conversations
from gateway.migrations.script import run_script

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_FOLDER = Path(agents.conversations.__file__).parent / "sql"


def upgrade() -> None:
    """Add the tables, and the function that deletes a conversation."""
    for script in ("schema.sql", "functions/10_delete.sql"):
        run_script(op.get_bind(), (_FOLDER / script).read_text(encoding="utf-8"))
