"""The file store (chunks and manifests that clients upload), its HTTP routes, and the push of trees to nodes. See docs/files.md."""

from __future__ import annotations

from skyloom_provisioner.files.push import PushResult, push_mounts, push_tree
from skyloom_provisioner.files.routes import router
from skyloom_provisioner.files.store import DEFAULT_MAX_BYTES, FileStore

__all__ = ["DEFAULT_MAX_BYTES", "FileStore", "PushResult", "push_mounts", "push_tree", "router"]
