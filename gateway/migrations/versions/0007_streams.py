"""Whether the proxy read a stream as far as the provider had generated it."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SQL = Path(llm_service.treasury.__file__).parent / "sql" / "migrations" / "0007_streams.sql"


def upgrade() -> None:
    """Add the column."""
    run_script(op.get_bind(), _SQL.read_text(encoding="utf-8"))
