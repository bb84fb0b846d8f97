"""What a run holds whose parent is over goes back to the nearest run above that is not, and no longer to the windows."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_SCRIPT = Path(llm_service.treasury.__file__).parent / "sql" / "functions" / "50_envelopes.sql"


def upgrade() -> None:
    """Make the functions anew."""
    run_script(op.get_bind(), _SCRIPT.read_text(encoding="utf-8"))
