"""What a refresh keeps on disk: parts that were fetched, parts that were accepted, the catalog, the report.

    HOME/catalog/catalog.skycol          the bundled catalog with the accepted parts in it
    HOME/catalog/fetched/CLOUD/PART      fetched by a refresh that has not ended; the next one goes on from here
    HOME/catalog/accepted/CLOUD/PART     in the catalog
    HOME/catalog/observed/*.json.gz      prices seen, until the service has put them into its history
    HOME/catalog/report.json             the last refresh, or the one that runs

Every file is written beside and renamed: a reader sees the old one or the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gzip
import json
import operator
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skyloom_common.contracts.catalog import CatalogRefresh
from skyloom_common.core import wire
from skyloom_optimizer.catalog.build import replace_file
from skyloom_optimizer.refresh.merge import Accepted
from skyloom_optimizer.refresh.model import FeedRow, RefreshRunning

RESUME_SECONDS = 12 * 3600.0
_WHOLE = "_whole"


class RefreshFiles:
    def __init__(self, home: Path, now: Callable[[], float] = time.time) -> None:
        self.folder = home / "catalog"
        self.container = self.folder / "catalog.skycol"
        self._now = now

    @contextlib.contextmanager
    def only_one(self) -> Iterator[None]:
        """One refresh at a time in a home. The lock goes with its process, however that ends."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.folder / "lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RefreshRunning(
                    "another refresh of this catalog is running", hint="See its progress: sky catalog status"
                ) from None
            yield

    def is_running(self) -> bool:
        try:
            with self.only_one():
                return False
        except RefreshRunning:
            return True

    # --- parts of a cloud ---

    def save_fetched(self, cloud: str, part: str, rows: Sequence[FeedRow]) -> None:
        body = {"at": self._now(), "rows": [_values(row) for row in rows]}
        _write(self._part("fetched", cloud, part), body)

    def fetched(self, cloud: str, part: str) -> list[FeedRow] | None:
        """What an interrupted refresh left, unless it is too old to go on with."""
        body = _read(self._part("fetched", cloud, part))
        if body is None or not 0 <= self._now() - body["at"] < RESUME_SECONDS:
            return None
        return [FeedRow(*row) for row in body["rows"]]

    def forget_fetched(self, cloud: str) -> None:
        shutil.rmtree(self.folder / "fetched" / cloud, ignore_errors=True)

    def accept(self, item: Accepted) -> None:
        path = self._part("accepted", item.cloud, item.part)
        _write(path, _body(item))
        os.utime(path, (item.at, item.at))

    def accepted_at(self) -> dict[tuple[str, str], float]:
        """(cloud, file name) to when it was taken: the time of the file."""
        paths = (self.folder / "accepted").glob("*/*.json.gz")
        return {(path.parent.name, path.name): path.stat().st_mtime for path in paths}

    def read_accepted(self, key: tuple[str, str]) -> bytes:
        return (self.folder / "accepted" / key[0] / key[1]).read_bytes()

    def write_accepted(self, key: tuple[str, str], at: float, data: bytes) -> None:
        path = self.folder / "accepted" / key[0] / key[1]
        replace_file(path, data)
        os.utime(path, (at, at))

    def accepted(self) -> list[Accepted]:
        found = []
        for path in sorted((self.folder / "accepted").glob("*/*.json.gz")):
            body = _read(path)
            if body is not None:
                rows = [tuple(row) for row in body["rows"]]
                sources: Any = [tuple(source) for source in body["sources"]]
                about = (body["cloud"], body["part"], body["at"], body["source"])
                found.append(Accepted(*about, rows, sources))
        return found

    def _part(self, kind: str, cloud: str, part: str) -> Path:
        return self.folder / kind / cloud / f"{quote(part, safe='') or _WHOLE}.json.gz"

    # --- what others read ---

    def write_container(self, data: bytes) -> None:
        replace_file(self.container, data)

    def observe(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        _write(self.folder / "observed" / f"{name}.json.gz", {"at": self._now(), "rows": rows})

    def observed(self) -> list[Path]:
        return sorted((self.folder / "observed").glob("*.json.gz"))

    def write_report(self, report: CatalogRefresh) -> None:
        replace_file(self.folder / "report.json", wire.dumps(report))

    def report(self) -> CatalogRefresh | None:
        """None: no refresh yet. A report that cannot be read counts as none."""
        try:
            return wire.loads(CatalogRefresh, (self.folder / "report.json").read_bytes())
        except (OSError, ValueError):
            return None


_values = operator.attrgetter(*(field.name for field in dataclasses.fields(FeedRow)))


def _body(item: Accepted) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


def read_observed(path: Path) -> dict[str, Any] | None:
    return _read(path)


def _write(path: Path, body: Any) -> None:
    replace_file(path, gzip.compress(json.dumps(body, separators=(",", ":")).encode(), 5, mtime=0))


def _read(path: Path) -> dict[str, Any] | None:
    """None where the file is missing or cannot be read: it is fetched again then."""
    try:
        body = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
