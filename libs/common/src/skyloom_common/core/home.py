"""Where Skyloom keeps its own state on this machine: $SKYLOOM_HOME, default ~/.skyloom."""

from __future__ import annotations

import os
from pathlib import Path


def skyloom_home() -> Path:
    """The state directory; not created here."""
    return Path(os.environ.get("SKYLOOM_HOME") or Path.home() / ".skyloom").expanduser()
