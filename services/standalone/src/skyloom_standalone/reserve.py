"""Room that is set aside on the disk, so that a stack whose disk is full can start again and take clusters down.

Jobs of local nodes write to the same disk as the control plane: without this, what fills it could only be ended by hand.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

_log = logging.getLogger("skyloom.standalone")
BYTES = 4 << 20


def release(home: Path) -> None:
    """At the start, before anything is opened."""
    _file(home).unlink(missing_ok=True)


def take(home: Path) -> None:
    """Once we run. A disk that is short leaves it to the next start: what there is may be needed now."""
    if shutil.disk_usage(home).free < 4 * BYTES:
        _log.warning("the disk of %s is nearly full", home)
        return
    try:
        with open(os.open(_file(home), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(bytes(BYTES))
    except OSError as error:
        _log.warning("no room can be set aside: %s", error.strerror)


def _file(home: Path) -> Path:
    return home / "run" / "reserve"
