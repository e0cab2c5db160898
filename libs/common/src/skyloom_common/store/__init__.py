"""SQL for services: connections, compare-and-set, schema revisions, leases. Knows no table of any service."""

from skyloom_common.store.columns import Json, WireColumn
from skyloom_common.store.database import Database, Duplicate
from skyloom_common.store.schema import Schema, ensure_schema
from skyloom_common.store.versioned import insert_if_absent, insert_row, update_versioned

__all__ = [
    "Database",
    "Duplicate",
    "Json",
    "Schema",
    "WireColumn",
    "ensure_schema",
    "insert_if_absent",
    "insert_row",
    "update_versioned",
]
