"""How long a node ran until it was taken or given back, for the lifetimes of spot machines."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("launch_outcomes", sa.Column("ran_seconds", sa.Float))
