"""When the catalog was last refreshed by itself, and the lease of who does it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "refresh_turns",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("begun_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("jitter", sa.Float, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_table(
        "optimizer_leases",
        sa.Column("key", sa.String(300), primary_key=True),
        sa.Column("owner", sa.String(26), nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
    )
    op.create_table(
        "optimizer_replicas",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("process", sa.String(300), nullable=False),
        sa.Column("beat", sa.Integer, nullable=False),
    )
