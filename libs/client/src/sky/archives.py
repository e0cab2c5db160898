"""Saving a job's logs on this machine: the cluster's tar, unpacked where it can do no harm."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

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
                # The "data" filter refuses absolute names, .., links out of the folder and devices.
                archive.extract(member, target, filter="data")
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
