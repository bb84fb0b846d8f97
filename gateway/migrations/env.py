"""Alembic's entry point. `migrate` (in the package's `__init__.py`) supplies the connection, its transaction and the
lock."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
