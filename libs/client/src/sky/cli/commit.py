"""Which commit this client was built from, as far as it can know."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """`sky, commit HASH`; a wheel does not carry one."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "sky, commit unknown"
    return f"sky, commit {done.stdout.strip()}" if done.returncode == 0 else "sky, commit unknown"
