"""sky.Storage: a bucket-backed mount, as it is written in file_mounts. This version keeps it; the server says what it supports."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any


class StorageMode(enum.Enum):
    MOUNT = "MOUNT"
    COPY = "COPY"
    MOUNT_CACHED = "MOUNT_CACHED"


class StoreType(enum.Enum):
    S3 = "S3"
    GCS = "GCS"
    AZURE = "AZURE"
    R2 = "R2"
    IBM = "IBM"
    OCI = "OCI"
    NEBIUS = "NEBIUS"
    COREWEAVE = "COREWEAVE"
    VASTDATA = "VASTDATA"
    HF = "HF"
    VOLUME = "VOLUME"


class FileMountType(enum.Enum):
    MODEL_CHECKPOINT_RO = "MODEL_CHECKPOINT_RO"
    MODEL_CHECKPOINT_RW = "MODEL_CHECKPOINT_RW"
    DATASET_RO = "DATASET_RO"
    DATASET_RW = "DATASET_RW"


class Storage:
    """The same fields as the storage object of the task YAML."""

    def __init__(
        self,
        name: str | None = None,
        source: str | Sequence[str] | None = None,
        stores: Sequence[StoreType | str] | None = None,
        persistent: bool = True,
        mode: StorageMode = StorageMode.MOUNT,
        sync_on_reconstruction: bool = True,
        mount_cached_config: Mapping[str, Any] | None = None,
        mount_config: Mapping[str, Any] | None = None,
        file_mount_type: FileMountType | None = None,
    ) -> None:
        self.name = name
        self.source = source if isinstance(source, str) or source is None else list(source)
        self.stores = [StoreType[item.upper()] if isinstance(item, str) else item for item in stores or ()]
        self.persistent = persistent
        self.mode = mode
        self.sync_on_reconstruction = sync_on_reconstruction
        self.mount_cached_config = dict(mount_cached_config or {})
        self.mount_config = dict(mount_config or {})
        self.file_mount_type = file_mount_type

    @classmethod
    def from_yaml_config(cls, config: Mapping[str, Any]) -> Storage:
        more = dict(config.get("config") or {})
        kind = config.get("type")
        store = config.get("store")
        return cls(
            name=config.get("name"),
            source=config.get("source"),
            stores=[store] if store else None,
            persistent=bool(config.get("persistent", True)),
            mode=StorageMode[str(config.get("mode", "MOUNT")).upper()],
            mount_cached_config=more.get("mount_cached"),
            mount_config=more.get("mount"),
            file_mount_type=FileMountType[str(kind).upper()] if kind else None,
        )

    def to_yaml_config(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name, "source": self.source}
        if self.stores:
            out["store"] = self.stores[0].value.lower()
        if not self.persistent:
            out["persistent"] = False
        if self.mode is not StorageMode.MOUNT:
            out["mode"] = self.mode.value
        if self.file_mount_type is not None:
            out["type"] = self.file_mount_type.value
        more = {"mount_cached": self.mount_cached_config, "mount": self.mount_config}
        if any(more.values()):
            out["config"] = {key: value for key, value in more.items() if value}
        return {key: value for key, value in out.items() if value is not None}

    def add_store(self, store_type: StoreType | str) -> None:
        self.stores.append(StoreType[store_type.upper()] if isinstance(store_type, str) else store_type)

    def construct(self) -> None:
        """Buckets are made by the server when a task is launched; here there is nothing to do."""

    def delete(self, store_type: StoreType | None = None) -> None:
        raise _not_yet("Storage.delete")

    def sync_all_stores(self) -> None:
        raise _not_yet("Storage.sync_all_stores")


def _not_yet(what: str) -> Exception:
    from sky.exceptions import NotSupportedError

    return NotSupportedError(f"not supported yet: {what}")
