"""Since when a node runs; outcomes on their way to the optimizer."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("running_since", sa.Float(), nullable=True))
    up_since = "SELECT up_since FROM clusters WHERE clusters.id = nodes.cluster_id"
    op.execute(f"UPDATE nodes SET running_since = ({up_since}) WHERE status = 'UP'")
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_outbox_at", "outbox", ["at"])
