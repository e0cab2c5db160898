"""Names of clusters: checked, or made up when the user gave none."""

from __future__ import annotations

import os

from skyloom_common.core.names import check_cluster_name


def user_name() -> str:
    """Who types, for made-up names and the user's own eyes; the server decides who it is from the token."""
    return os.environ.get("SKYPILOT_USER") or os.environ.get("USER") or os.environ.get("LOGNAME") or "user"


def cluster_name(given: str | None) -> str:
    """The name itself when it is valid, or a new one like sky-3f2a-ann."""
    if given is not None:
        return check_cluster_name(given)
    who = "".join(char for char in user_name().lower() if char.isascii() and char.isalnum())[:20]
    return f"sky-{os.urandom(2).hex()}-{who or 'user'}"
