"""Usage other than text tokens, and who reported the cost."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SQL = Path(llm_service.treasury.__file__).parent / "sql"


def upgrade() -> None:
    """Add the columns, and the version of settlement that fills them."""
    for script in ("migrations/0011_more_usage.sql", "functions/33_settle_v4.sql"):
        run_script(op.get_bind(), (_SQL / script).read_text(encoding="utf-8"))
