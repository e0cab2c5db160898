"""`file_mounts`, storage objects and `volumes`. Checks form; whether a local path exists is for `validate`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Callable, Optional, Union

from skyloom_common.contracts.task import scalars
from skyloom_common.contracts.task.model import EncryptionSpec, StorageSpec, VolumeSpec
from skyloom_common.contracts.task.problems import Field
from skyloom_common.contracts.task.resources import disk

STORES = ("s3", "gcs", "azure", "r2", "ibm", "oci", "nebius", "coreweave", "vastdata", "hf", "volume")
MODES = ("MOUNT", "COPY", "MOUNT_CACHED")
TYPES = ("MODEL_CHECKPOINT_RO", "MODEL_CHECKPOINT_RW", "DATASET_RO", "DATASET_RW")
SCHEMES = ("s3", "gs", "r2", "cos", "oci", "nebius", "cw", "vastdata", "hf", "azblob")
ACCESS_MODES = ("ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany", "ReadOnlyMany")

_AZURE = re.compile(r"https://[a-z0-9-]+\.blob\.core\.windows\.net/.+", re.IGNORECASE)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BUCKET_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,220}[a-zA-Z0-9]")
_STORAGE_KEYS = ("name", "source", "store", "persistent", "mode", "type", "config", "encryption")
_DISK_CONFIG = ("disk_size", "disk_tier", "storage_type", "attach_mode")
_CACHE_CONFIG = (
    "transfers", "buffer_size", "vfs_cache_max_size", "vfs_cache_max_age", "vfs_read_ahead", "vfs_read_chunk_size",
    "vfs_read_chunk_streams", "vfs_write_back", "read_only",
)  # fmt: skip
_WORKDIR = "~/sky_workdir"
_URI_RIGHT = (
    f"one of {', '.join(f'{name}://' for name in SCHEMES)} or https://ACCOUNT.blob.core.windows.net/CONTAINER"
)


@dataclass
class Mounts:
    """The section taken apart: mounts, and disks that the old `store: volume` form asks for."""

    mounts: dict[str, Union[str, StorageSpec]] = dataclass_field(default_factory=dict)
    disks: list[dict[str, Any]] = dataclass_field(default_factory=list)


def is_bucket(source: str) -> bool:
    """A URI of object storage, as against a local path."""
    scheme, separator, _ = source.partition("://")
    return bool(separator) and (scheme.lower() in SCHEMES or bool(_AZURE.fullmatch(source)))


def file_mounts(field: Field, *, has_workdir: bool) -> Mounts:
    found = Mounts()
    if not field.is_mapping("REMOTE_PATH: SOURCE, for example {/data: ./data}"):
        return found
    for destination, item in field.items():
        if not _destination(item, destination, has_workdir=has_workdir):
            continue
        if isinstance(item.value, Mapping):
            _add_storage(found, destination, item)
        else:
            source = _source(item)
            if source is not None:
                found.mounts[destination] = source
    return found


def volumes(field: Field) -> dict[str, VolumeSpec]:
    if not field.is_mapping("REMOTE_PATH: VOLUME, for example {/mnt/data: my-volume}"):
        return {}
    found: dict[str, VolumeSpec] = {}
    for destination, item in field.items():
        if not destination.startswith(("/", "~")) or ".." in destination.split("/"):
            item.refuse(f"{destination!r} is not a mount path", "an absolute path or one that begins with ~")
            continue
        volume = VolumeSpec(name=item.value) if isinstance(item.value, str) else _volume(item)
        if volume is not None:
            found[destination] = volume
    _check_one_mount_each(field, found)
    return found


def _destination(field: Field, path: str, *, has_workdir: bool) -> bool:
    if not path or _URI.match(path):
        field.refuse(f"{path!r} is not a path on the node", "a path such as /data or ~/data as the key")
    elif path.endswith("/") and path != "/":
        field.refuse(f"the destination {path!r} ends with /", repr(path.rstrip("/") or "/data"))
    elif ".." in path.split("/"):
        field.refuse(f"the destination {path!r} leads out of its directory", "a path without ..")
    elif has_workdir and path in (_WORKDIR, "."):
        field.refuse(f"the destination {path!r} is where workdir goes", "another path, or no workdir")
    else:
        return True
    return False


def _source(field: Field) -> Optional[str]:
    """A local path or a bucket; a `/` at the end says nothing more and is dropped."""
    if not isinstance(field.value, str) or not field.value.strip():
        field.refuse_value(
            "a source", "a local path, a bucket such as s3://BUCKET/DIR, or a mapping with source"
        )
        return None
    value = field.value.strip()
    if _URI.match(value) and not is_bucket(value):
        field.refuse_value("object storage that is known here", _URI_RIGHT)
        return None
    trimmed = value.rstrip("/")
    if _URI.match(value) and not trimmed.partition("://")[2]:
        field.refuse("the bucket is missing", f"{value.partition('://')[0]}://BUCKET")
        return None
    return trimmed or "/"


def _add_storage(found: Mounts, destination: str, field: Field) -> None:
    if str(field.value.get("store", "")).lower() == "volume":
        found.disks.append(_disk(destination, field))
        return
    storage = storage_object(field)
    if storage is not None:
        found.mounts[destination] = storage


def storage_object(field: Field) -> Optional[StorageSpec]:
    field.only(_STORAGE_KEYS)
    values: dict[str, Any] = {}
    for key, parse in _STORAGE_PARSERS.items():
        item = field.get(key)
        value = None if item is None else parse(item)
        if value is not None:
            values[key] = value
    mode = values.get("mode", "MOUNT")
    config = field.get("config")
    if config is not None:
        values["config"] = _storage_config(config, mode)
    _check_storage(field, values, mode)
    kept = {key: value for key, value in field.value.items() if str(key).startswith("_")}
    return StorageSpec(**values, internal=kept)


def _check_storage(field: Field, values: Mapping[str, Any], mode: str) -> None:
    source, name = values.get("source"), values.get("name")
    is_uri = isinstance(source, str) and is_bucket(source)
    failed = "source" not in values and field.get("source") is not None
    if is_uri and name is not None:
        field.child("name", name).refuse(
            f"name together with the bucket {source!r}", "no name; the bucket has one"
        )
    if not is_uri and name is None and field.get("name") is None and not failed:
        field.refuse("name is missing", "name: BUCKET, or source: s3://BUCKET")
    if mode == "COPY" and source is None and not failed:
        field.child("mode", mode).refuse("mode COPY without a source", "a source, or mode MOUNT")
    if is_uri and mode != "COPY" and isinstance(source, str) and _has_sub_path(source):
        field.child("source", source).refuse(
            f"{source!r} is a directory of a bucket, and mode {mode} needs a whole one",
            "mode: COPY, or the bucket alone",
        )
    if values.get("type") is not None and mode != "MOUNT_CACHED":
        field.child("type", values["type"]).refuse(f"type with mode {mode}", "mode: MOUNT_CACHED")


def _has_sub_path(source: str) -> bool:
    scheme, _, rest = source.partition("://")
    return scheme.lower() not in ("hf", "https", "azblob") and "/" in rest


def _storage_source(field: Field) -> Optional[Union[str, tuple[str, ...]]]:
    if not isinstance(field.value, (list, tuple)):
        return _source(field)
    found = [_source(item) for item in field.elements()]
    paths = tuple(path for path in found if path is not None)
    for item, path in zip(field.elements(), found):
        if path is not None and is_bucket(path):
            item.refuse_value("a local path", "local paths in a list; a bucket stands alone")
    names = [path.rpartition("/")[2] for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        field.refuse(f"two sources are named {twice[0]!r}", "sources with different last names")
    if not field.value:
        field.refuse_value("a source", "at least one local path")
    return paths or None


def _bucket_name(field: Field) -> Optional[str]:
    if isinstance(field.value, str) and _BUCKET_NAME.fullmatch(field.value):
        return field.value
    right = (
        "a bucket name without s3:// or the like" if "://" in str(field.value) else "a name such as my-bucket"
    )
    field.refuse_value("the name of a bucket", right)
    return None


def _encryption(field: Field) -> Optional[EncryptionSpec]:
    if not field.is_mapping("{type: AES256, key_id: KEY}"):
        return None
    field.only(("type", "key_id"))
    kind, key = field.get("type"), field.get("key_id")
    return EncryptionSpec(
        type=(scalars.choice(kind, ("AES256", "AWS:KMS", "KMS"), upper=True) if kind else None) or "AES256",
        key_id=scalars.label_text(key, "the id of a key") if key else None,
    )


def _storage_config(field: Field, mode: str) -> dict[str, Any]:
    if not field.is_mapping("{mount_cached: {...}} or {mount: {...}}"):
        return {}
    field.only(("mount_cached", "mount"))
    found: dict[str, Any] = {}
    for name, keys, needed in (
        ("mount_cached", _CACHE_CONFIG, "MOUNT_CACHED"),
        ("mount", _MOUNT_CONFIG, "MOUNT"),
    ):
        item = field.get(name)
        if item is None or not item.is_mapping("options"):
            continue
        if mode != needed:
            item.refuse(f"config.{name} with mode {mode}", f"mode: {needed}")
        item.only(keys)
        found[name] = {key: _mount_option(value) for key, value in item.items() if value.value is not None}
    return found


def _mount_option(field: Field) -> Any:
    key = field.path[-1]
    if key in ("read_only",):
        return scalars.boolean(field)
    if key in ("transfers", "vfs_read_chunk_streams"):
        return scalars.integer(field, "a whole number", low=1 if key == "transfers" else 0)
    if key == "hf_mount_args":
        return list(scalars.texts(field, "a list of arguments"))
    return scalars.label_text(field, "a size or a time such as 10G or 5s")


def _disk(destination: str, field: Field) -> dict[str, Any]:
    """The older way to ask for an attached disk: a mount with `store: volume`."""
    field.only((*_STORAGE_KEYS, "source"))
    wanted: dict[str, Any] = {"path": destination}
    for key in ("name", "source"):
        if field.get(key) is not None:
            wanted.setdefault("name", field.value[key])
    config = field.get("config")
    if config is not None and config.is_mapping("disk options such as {disk_size: 100}"):
        config.only(_DISK_CONFIG)
        wanted.update({key: config.value[key] for key in _DISK_CONFIG if config.value.get(key) is not None})
    if field.value.get("persistent") is False:
        wanted["auto_delete"] = True
    return disk(Field(wanted, field.path, field.report))


def _volume(field: Field) -> Optional[VolumeSpec]:
    if not field.is_mapping("the name of a volume, or a mapping with name, size or host_path"):
        return None
    kinds = [key for key in _VOLUME_KEYS if field.get(key) is not None]
    if len(kinds) != 1:
        field.refuse("one of name, size and host_path is needed", "exactly one of them")
        return None
    known = _VOLUME_KEYS[kinds[0]]
    field.only(known)
    values: dict[str, Any] = {}
    for key in known:
        item = field.get(key)
        value = None if item is None else _VOLUME_PARSERS[key](item)
        if value is not None:
            values[key] = value
    return VolumeSpec(**values)


def _sub_path(field: Field) -> Optional[str]:
    value = scalars.text(field, "a relative path such as a/b")
    if value is not None and (value.startswith(("/", "~")) or ".." in value.split("/")):
        field.refuse_value("a path inside the volume", "a relative path without ..")
        return None
    return value


def _host_path(field: Field) -> Optional[str]:
    value = scalars.text(field, "an absolute path")
    if value is not None and not value.startswith("/"):
        field.refuse_value("an absolute path", "a path that begins with /")
        return None
    return value


def _volume_size(field: Field) -> Optional[str]:
    size = scalars.gib(field, "a size such as 100Gi")
    return None if size is None else f"{scalars.tidy(size)}Gi"


def _volume_config(field: Field) -> dict[str, Any]:
    if not field.is_mapping("{access_mode: ReadWriteMany}"):
        return {}
    field.only(("access_mode", "storage_class_name", "namespace"))
    found: dict[str, Any] = {}
    for key, item in field.items():
        if key == "access_mode" and item.value not in ACCESS_MODES:
            item.refuse_value("known here", "one of " + ", ".join(ACCESS_MODES))
        elif item.value is not None and not key.startswith("_"):
            found[key] = scalars.text(item, "a name")
    return {key: value for key, value in found.items() if value is not None}


def _check_one_mount_each(field: Field, found: Mapping[str, VolumeSpec]) -> None:
    plain = [path.rstrip("/") for path in found]
    for path, item in field.items():
        if plain.count(path.rstrip("/")) > 1:
            item.refuse(f"{path!r} is mounted twice", "one volume for each path")


_MOUNT_CONFIG = ("read_only", "hf_mount_args")
_VOLUME_KEYS: dict[str, tuple[str, ...]] = {
    "name": ("name", "sub_path"),
    "size": ("size", "type", "labels", "config"),
    "host_path": ("host_path", "mode"),
}
_VOLUME_PARSERS: dict[str, Callable[[Field], Any]] = {
    "name": lambda item: scalars.text(item, "the name of a volume"),
    "sub_path": _sub_path,
    "size": _volume_size,
    "type": lambda item: scalars.choice(item, ("k8s-pvc",)),
    "labels": lambda item: scalars.text_map(item, "text to text"),
    "config": _volume_config,
    "host_path": _host_path,
    "mode": lambda item: scalars.choice(item, ("ro", "rw")),
}
_STORAGE_PARSERS: dict[str, Callable[[Field], Any]] = {
    "name": _bucket_name,
    "source": _storage_source,
    "store": lambda item: scalars.choice(item, STORES),
    "persistent": scalars.boolean,
    "mode": lambda item: scalars.choice(item, MODES, upper=True),
    "type": lambda item: scalars.choice(item, TYPES, upper=True),
    "encryption": _encryption,
}
