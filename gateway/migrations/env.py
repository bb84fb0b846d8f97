"""Alembic's entry point. The connection, its transaction and the lock are `migrate`'s (see the package)."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
