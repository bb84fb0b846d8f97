"""The pace of a budget, limits as a share of another limit, the requested model, and more columns for witnesses."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TREASURY = Path(llm_service.treasury.__file__).parent


def upgrade() -> None:
    """Add the columns and the second version of the functions; the first version stays for gateways that still use
    it."""
    for name in ("sql/migrations/0002_pacing.sql", "sql/functions/21_admit_v2.sql", "sql/functions/31_settle_v2.sql"):
        run_script(op.get_bind(), (_TREASURY / name).read_text(encoding="utf-8"))
