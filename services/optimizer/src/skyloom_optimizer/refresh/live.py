"""The catalog of now: the bundled one, or the refreshed one where there is one, with the deployment's own list over it.

Swapped as a whole when a file changes, without a restart: who asks for `current` keeps what it got for as long as its
request lasts. A file that cannot be used changes nothing; what is wrong with it is kept in `problems`.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from skyloom_common.core.errors import InvalidTask
from skyloom_optimizer.catalog.columns import Container, CorruptContainer
from skyloom_optimizer.catalog.load import Catalog
from skyloom_optimizer.overlay.apply import overlay
from skyloom_optimizer.overlay.read import OwnList, read_own

_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True)
class Loaded:
    """One state of the catalog. `refreshed`: cloud to when its prices were taken from the cloud itself."""

    catalog: Catalog
    refreshed: dict[str, float]
    own: int = 0
    problems: tuple[str, ...] = ()
    outdated: bool = False
    """The refreshed file was made from another base: it has to be built again from what was accepted."""


class LiveCatalog:
    """`refreshed` and `own` need not exist. `reload_if_changed` may be called from any thread."""

    def __init__(self, base: Path, refreshed: Path | None = None, own: Path | None = None) -> None:
        self._base = base
        self._refreshed = refreshed
        self._own = own
        self._log = logging.getLogger(__name__)
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._own_list = OwnList()
        self.current = self._load()

    def reload_if_changed(self) -> bool:
        """True when the catalog was swapped."""
        with self._lock:
            stamps = self._look()
            if stamps == self._stamps:
                return False
            self._stamps = stamps
            before, loaded = self.current, self._load()
            loaded.catalog.warm()
            self.current = loaded
        self._log.info("catalog version=%s offers=%d", loaded.catalog.version, len(loaded.catalog.snapshot))
        return before.catalog.version != loaded.catalog.version

    def _look(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(path) for path in (self._base, self._refreshed, self._own))

    def _load(self) -> Loaded:
        catalog, refreshed, outdated, problems = self._container()
        own = self._read_own(problems)
        notes: list[str] = []
        if own:
            overlaid = overlay(catalog.snapshot, own)
            notes += overlaid.notes
            catalog = catalog.with_snapshot(overlaid.snapshot)
        for problem in (*problems, *notes):
            self._log.warning("catalog: %s", problem)
        return Loaded(catalog, refreshed, len(own), (*problems, *notes), outdated)

    def _container(self) -> tuple[Catalog, dict[str, float], bool, list[str]]:
        """Raises CorruptContainer or OSError for the base only: without it there is nothing."""
        base = Container(self._base.read_bytes())
        path = self._refreshed
        if path is None or not path.is_file():
            return Catalog(base), {}, False, []
        try:
            container = Container(path.read_bytes())
            container.verify()
            if container.meta.get("base") != base.sha256:
                return Catalog(base), {}, True, []
            found = Catalog(container)
            _ = found.snapshot
        except (OSError, CorruptContainer, KeyError, ValueError) as error:
            words = f"{path} cannot be used: {error}; build it again with: sky catalog refresh"
            return Catalog(base), {}, True, [words]
        return found, dict(container.meta.get("refreshed", {})), False, []

    def _read_own(self, problems: list[str]) -> OwnList:
        """A list with a fault in it leaves the one before in force."""
        if self._own is None or not self._own.is_file():
            self._own_list = OwnList()
        else:
            try:
                self._own_list = read_own(self._own)
            except InvalidTask as error:
                problems.append(error.message)
        return self._own_list


def _stamp(path: Path | None) -> _Stamp:
    if path is None:
        return None
    try:
        about = path.stat()
    except OSError:
        return None
    return (about.st_mtime_ns, about.st_size, about.st_ino)
