"""The treasury: tables, functions, and the default organisation and team."""

from __future__ import annotations

from pathlib import Path

from alembic import op

import llm_service.treasury
from gateway.migrations.script import run_script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TREASURY = Path(llm_service.treasury.__file__).parent


def upgrade() -> None:
    """Run the treasury's own SQL, which is kept beside the code that calls it."""
    connection = op.get_bind()
    for name in (
        "sql/schema.sql",
        "sql/functions/10_windows.sql",
        "sql/functions/20_admit.sql",
        "sql/functions/30_settle.sql",
    ):
        run_script(connection, (_TREASURY / name).read_text(encoding="utf-8"))
    run_script(
        connection,
        """
        INSERT INTO organisations (name) VALUES ('default');
        INSERT INTO teams (organisation_id, name) SELECT id, 'default' FROM organisations WHERE name = 'default';
        """,
    )
