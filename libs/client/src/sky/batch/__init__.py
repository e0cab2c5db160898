"""sky.batch: named here so that programs can be written; not supported yet."""

from __future__ import annotations

from sky.unsupported import later

Dataset = later("sky.batch.Dataset")
remote_function = later("sky.batch.remote_function")

__all__ = ["Dataset", "remote_function"]
