"""The provisioner's tables. A change here needs a migration; a test compares both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

from skyloom_common.contracts.jobs import Job
from skyloom_common.contracts.plan import LaunchOutcome, Offer
from skyloom_common.contracts.task.model import AutostopSpec, ResourcesSpec
from skyloom_common.store import Json, Schema, WireColumn
from skyloom_common.store.lease import LeaseTables

metadata = MetaData()
lease_tables = LeaseTables.define(metadata, prefix="provisioner_")


def _text(name: str, default: str = "") -> Column[Any]:
    return Column(name, Text, nullable=False, default=default)


def _flag(name: str) -> Column[Any]:
    return Column(name, Boolean, nullable=False, default=False)


operations = Table(
    "operations",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(26), nullable=False, unique=True),
    Column("kind", String(30), nullable=False),
    Column("target", String(200), nullable=False),
    Column("user", String(200), nullable=False),
    Column("status", String(20), nullable=False),
    _text("phase"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("finished_at", Float),
    _flag("cancel_requested"),
    _flag("abandoned"),
    Column("error", Json),
    Column("result", Json),
    Column("request", Json),
    Column("sealed_secrets", Text),
    Column("idempotency_key", String(200)),
    Column("fingerprint", String(64), nullable=False),
    Column("saga", Json),
    Column("scratch", Json),
    Column("event_seq", Integer, nullable=False, default=0),
    Index("operations_idempotency", "user", "idempotency_key", unique=True),
    Index("operations_target", "target", "status"),
    Index("operations_status", "status"),
)

operation_events = Table(
    "operation_events",
    metadata,
    Column("operation_id", String(26), ForeignKey("operations.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    _text("phase"),
    _text("message"),
    Column("level", String(10), nullable=False),
    Column("data", Json),
    Column("status", String(20)),
)

clusters = Table(
    "clusters",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("user", String(200), nullable=False),
    Column("status", String(20), nullable=False),
    _text("status_message"),
    _flag("unhealthy"),
    Column("goal", String(10), nullable=False),
    Column("num_nodes", Integer, nullable=False),
    Column("created_by", String(26), nullable=False),
    Column("launched_at", Float, nullable=False),
    Column("up_since", Float),
    Column("status_updated_at", Float, nullable=False),
    Column("resources", WireColumn(ResourcesSpec)),
    Column("offer", WireColumn(Offer)),
    Column("autostop", WireColumn(AutostopSpec)),
    Column("autostop_set_at", Float),
    Column("membership_generation", Integer, nullable=False, default=0),
    _text("last_use"),
    _text("last_event"),
    Column("version", Integer, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("cluster_id", String(26), ForeignKey("clusters.id"), nullable=False, index=True),
    Column("rank", Integer, nullable=False),
    Column("provider", String(50), nullable=False),
    Column("offer", WireColumn(Offer), nullable=False),
    Column("status", String(20), nullable=False),
    _flag("unwanted"),
    Column("instance_id", String(300)),
    _text("address"),
    _text("problem"),
    Column("created_by", String(26), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_seen_at", Float),
    Column("running_since", Float),
    Column("version", Integer, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("cluster_id", String(26), ForeignKey("clusters.id", ondelete="CASCADE"), primary_key=True),
    Column("job_id", Integer, primary_key=True, autoincrement=False),
    Column("status", String(20), nullable=False),
    Column("version", Integer, nullable=False),
    Column("job", WireColumn(Job), nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("cluster_id", String(26), nullable=False, index=True),
    Column("cluster_name", String(200), nullable=False),
    Column("user", String(200), nullable=False),
    Column("num_nodes", Integer, nullable=False),
    _text("resources"),
    Column("price_per_hour", Float),
    Column("from_at", Float, nullable=False),
    Column("to_at", Float),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("outcome", WireColumn(LaunchOutcome), nullable=False),
)

SCHEMA = Schema(
    name="provisioner",
    metadata=metadata,
    migrations=Path(__file__).parent / "migrations",
    head="0002",
)
