"""Remembered hashes of one tree: path -> (stamp, chunk hashes), so that an unchanged file is not read again.

A cache only: any damage means reading the files once more. A hash is remembered only when a later write to its file must
show in the file's times (nothing younger than two seconds when it was hashed).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from skyloom_common.core.chunks import Stamp, is_settled

VERSION = 1
SETTLED_AFTER_NS = 2_000_000_000
KEEP = 64
"""Trees whose hashes are kept; the least recently used go."""


class HashCache:
    def __init__(self, folder: Path, root: str) -> None:
        self._folder = folder
        self._file = folder / (hashlib.sha256(os.fsencode(root)).hexdigest()[:32] + ".json")
        self._old = _load(self._file)
        self._new: dict[str, Any] = {}
        self._changed = False

    def get(self, path: str, stamp: Stamp) -> str | None:
        """The chunk hashes, if the file is still as it was when they were made."""
        row = self._old.get(path)
        if row is None or tuple(row[:5]) != stamp:
            return None
        self._new[path] = row
        return str(row[5])

    def put(self, path: str, stamp: Stamp, hashes: str, hashed_at_ns: int) -> None:
        if is_settled(stamp, hashed_at_ns, SETTLED_AFTER_NS):
            self._new[path] = [*stamp, hashes]
            self._changed = True

    def keep_all(self) -> None:
        """For changing single rows: what was not asked for stays too."""
        self._new.update(self._old)

    def forget(self, path: str) -> None:
        self._new.pop(path, None)
        self._changed = True

    def save(self) -> None:
        """Keeps what this run saw. A full or read-only disk costs the next run time, nothing else."""
        if not self._changed and len(self._new) == len(self._old):
            with contextlib.suppress(OSError):
                os.utime(self._file)
            return
        self._old, self._changed = self._new, False
        temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(json.dumps({"version": VERSION, "files": self._new}, separators=(",", ":")))
            temporary.replace(self._file)
            self._trim()
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _trim(self) -> None:
        files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[KEEP:]:
            file.unlink(missing_ok=True)


def _load(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
        files = data["files"] if data["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    good = isinstance(files, dict) and all(isinstance(row, list) and len(row) == 6 for row in files.values())
    return files if good else {}
