"""The local parts of a task (workdir, file_mounts) into the server's file store, as the references that a launch carries."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sky.net.transport import Transport

if TYPE_CHECKING:
    from sky.sync import UploadResult
    from skyloom_common.contracts.clusters import MountRef
    from skyloom_common.contracts.task.model import TaskSpec

WORKDIR = "~/sky_workdir"

Progress = Callable[[str, int, int], None]
"""(local path, bytes done, bytes to send)"""
Warn = Callable[[str], None]


def local_sources(task: TaskSpec, *, workdir_only: bool = False) -> list[tuple[str, str, str]]:
    """(destination, local path, kind) of everything that has to be uploaded, workdir first."""
    out = []
    if isinstance(task.workdir, str):
        out.append((WORKDIR, task.workdir, "workdir"))
    if workdir_only:
        return out
    for destination, source in task.file_mounts.items():
        if isinstance(source, str):
            from skyloom_common.contracts.task.mounts import is_bucket

            if not is_bucket(source):
                out.append((destination, source, "file_mount"))
    return out


def upload_mounts(
    transport: Transport,
    task: TaskSpec,
    *,
    workdir_only: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> tuple[MountRef, ...]:
    """Uploads what the server lacks; nothing is imported when the task has no local parts."""
    sources = local_sources(task, workdir_only=workdir_only)
    if not sources:
        return ()
    from sky.sync import upload_tree
    from skyloom_common.contracts.clusters import MountRef

    refs = []
    for destination, path, kind in sources:
        shown = path

        def report(done: int, total: int, shown: str = shown) -> None:
            if progress is not None:
                progress(shown, done, total)

        result: UploadResult = upload_tree(
            transport, os.path.expanduser(path), sync=task.sync, progress=report
        )
        for sentence in result.warnings:
            if warn is not None:
                warn(sentence)
        refs.append(MountRef(destination, result.manifest_id, kind, result.is_file))
    return tuple(refs)
