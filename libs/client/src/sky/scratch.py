"""sky.debug: a cluster for as long as a block of code lasts. What runs in the block runs here, not on the cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sky.exceptions import ClusterDoesNotExist
from sky.naming import cluster_name

if TYPE_CHECKING:
    from sky.records import ClusterHandle
    from sky.task import AnyResources


@contextlib.contextmanager
def debug(
    autostop: int = 30,
    *,
    resources: AnyResources | None = None,
    num_nodes: int = 1,
) -> Iterator[ClusterHandle]:
    """A scratch cluster with a new name (`handle.cluster_name`), torn down at the end of the block.

    After `autostop` idle minutes it goes by itself, also when this program has died.
    """
    from sky.client import sdk
    from sky.task import Task

    name = cluster_name(None)
    task = Task(num_nodes=num_nodes, resources=resources)
    request = sdk.launch(task, cluster_name=name, idle_minutes_to_autostop=autostop, down=True)
    try:
        _, handle = sdk.get(request)
        assert handle is not None, "a launch that succeeded has a cluster"
        yield handle
    finally:
        with contextlib.suppress(ClusterDoesNotExist):  # it never came up, or went by itself
            sdk.get(sdk.down(name))
