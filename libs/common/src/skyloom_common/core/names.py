"""Names that become paths, host names and cloud tags: checked once, here."""

from __future__ import annotations

import re

from skyloom_common.core.errors import InvalidRequest

_CLUSTER = re.compile(r"[a-zA-Z]([-_.a-zA-Z0-9]{0,198}[a-zA-Z0-9])?")


def check_cluster_name(name: str) -> str:
    """The name itself, or InvalidRequest: a letter, then letters, digits, - _ . and a letter or digit at the end."""
    if not isinstance(name, str) or not _CLUSTER.fullmatch(name) or ".." in name:
        shown = repr(name)[:80]
        raise InvalidRequest(
            f"cluster name: {shown} is not valid; use a letter, then letters, digits, '-', '_' or '.', "
            "ending in a letter or digit (for example: my-cluster-1)",
            details={"field": "cluster_name"},
        )
    return name
