"""Prices that were seen, as time series; accepted parts of the catalog, for replicas."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "price_points",
        sa.Column("cloud", sa.String(64), primary_key=True),
        sa.Column("instance_type", sa.String(128), primary_key=True),
        sa.Column("region", sa.String(128), primary_key=True),
        sa.Column("zone", sa.String(128), primary_key=True),
        sa.Column("use_spot", sa.Boolean, primary_key=True),
        sa.Column("seconds", sa.Float, primary_key=True),
        sa.Column("at", sa.Float, primary_key=True),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("price", sa.Float, nullable=False),
        sa.Column("low", sa.Float, nullable=False),
        sa.Column("high", sa.Float, nullable=False),
        sa.Column("samples", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("price_points_seconds_day", "price_points", ["seconds", "day"])
    op.create_table(
        "catalog_parts",
        sa.Column("cloud", sa.String(64), primary_key=True),
        sa.Column("part", sa.String(160), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
