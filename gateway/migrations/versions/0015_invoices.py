"""Invoices of providers, which operators record."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_SCRIPT = Path(llm_service.treasury.__file__).parent / "sql" / "migrations" / "0015_invoices.sql"


def upgrade() -> None:
    """Add the table."""
    run_script(op.get_bind(), _SCRIPT.read_text(encoding="utf-8"))
