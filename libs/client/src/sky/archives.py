"""Saving a job's logs on this machine: the cluster's tar, unpacked where it can do no harm."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from sky.api import Gateway
from sky.exceptions import ClientError
from sky.net.http1 import Response
from sky.net.transport import quote

LOG_HOME = "~/sky_logs"


class _Body(io.RawIOBase):
    """A response as a file, so that an archive of any size is never held in memory."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._response.read1(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def download(api: Gateway, cluster: str, job_id: int, *, into: str | Path = LOG_HOME) -> Path:
    """Unpacks the job's logs under `into`/CLUSTER/; the directory of the job."""
    target = Path(into).expanduser() / cluster
    target.mkdir(parents=True, exist_ok=True)
    response = api.transport.open("GET", f"/clusters/{quote(cluster)}/jobs/{job_id}/archive")
    names: list[str] = []
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Body(response), 1 << 20), mode="r|*") as archive:
            for member in archive:
                _unpack(archive, member, target)
                names.append(member.name)
    except (tarfile.TarError, OSError) as error:
        raise ClientError(
            f"The logs of job {job_id} on {cluster!r} could not be unpacked: {error}"
        ) from error
    finally:
        response.close()
    tops = sorted({name.lstrip("./").split("/")[0] for name in names} - {""})
    if not tops:
        raise ClientError(f"Job {job_id} on {cluster!r} has no logs.")
    return target / tops[0] if len(tops) == 1 else Path(os.fspath(target))


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Files and folders below `target`, nothing else. (tarfile's own filters came only with Python 3.11.4.)"""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise tarfile.TarError(f"{member.name!r} would lie outside of {target}")
    path = target / name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    source = archive.extractfile(member) if member.isreg() else None
    if source is None:
        raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
