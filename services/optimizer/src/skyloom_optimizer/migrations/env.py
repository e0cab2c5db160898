"""Alembic's entry: everything is in the store."""

from alembic import context

from skyloom_common.store.schema import run_migrations

run_migrations(context)
