"""Which differences between two price lists an operator has acknowledged."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_SCRIPT = Path(llm_service.treasury.__file__).parent / "sql" / "migrations" / "0012_price_acknowledgements.sql"


def upgrade() -> None:
    """Add the table."""
    run_script(op.get_bind(), _SCRIPT.read_text(encoding="utf-8"))
