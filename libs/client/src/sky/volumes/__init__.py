"""sky.volumes: named here so that programs can be written; not supported yet."""

from __future__ import annotations

from sky.unsupported import later

apply = later("sky.volumes.apply")
delete = later("sky.volumes.delete")
ls = later("sky.volumes.ls")
validate = later("sky.volumes.validate")

__all__ = ["apply", "delete", "ls", "validate"]
