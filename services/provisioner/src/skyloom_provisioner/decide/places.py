"""May a mount go where the user wants it? What can be told from the words alone is told before anything is made.

The agent, which sees links and real paths, has the last word.
"""

from __future__ import annotations

import posixpath

WORKDIR = "sky_workdir"


def misplaced(destination: str, *, confined: bool) -> str | None:
    """Why it may not, as a sentence; None when it may. `confined`: nodes share their machine, only their homes may be written."""
    if "\0" in destination or not destination:
        return f"file_mounts: destination {destination!r} is not a path; use one such as ~/data"
    if destination.startswith("/"):
        if not confined:
            return None
        right = "~/" + posixpath.normpath(destination).lstrip("/")
        return (
            f"file_mounts: destination {destination!r} is outside of the node's home, "
            f"and this node shares its machine with others; use {right!r}"
        )
    inside = destination[2:] if destination.startswith("~/") else f"{WORKDIR}/{destination}"
    normal = posixpath.normpath(inside)
    if destination == "~" or (normal != ".." and not normal.startswith("../")):
        return None
    return f"file_mounts: destination {destination!r} climbs out of the node's home; use a path below it such as ~/data"
