"""Alembic's entry; only imported when a stored revision differs from the code's."""

from alembic import context

from skyloom_common.store.schema import run_migrations

run_migrations(context)
