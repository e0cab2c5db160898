"""Launch outcomes: what became of each attempt, for the availability memory."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "launch_outcomes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("cloud", sa.String(64), nullable=False),
        sa.Column("region", sa.String(128), nullable=False),
        sa.Column("zone", sa.String(128), nullable=False),
        sa.Column("instance_type", sa.String(128), nullable=False),
        sa.Column("use_spot", sa.Boolean, nullable=False),
        sa.Column("result", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("seconds_to_running", sa.Float),
    )
    op.create_index("launch_outcomes_at", "launch_outcomes", ["at"])
