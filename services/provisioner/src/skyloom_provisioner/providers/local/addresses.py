"""A loopback address per node: 127.0.x.y on Linux; elsewhere only 127.0.0.1 exists and nodes differ by port."""

from __future__ import annotations

import errno
import hashlib
import itertools
import socket
import sys
from collections.abc import Iterator

from skyloom_common.contracts.agent import AGENT_PORT
from skyloom_common.core.errors import InsufficientCapacity

_RANGE = 253 * 253
_LOOKED_AT = 64


def allocate(seed: str, used: set[str], *, platform: str = sys.platform) -> str:
    """An address that no node in `used` has, and on which the agent's port is free now where that is to be had.

    Somebody may hold the port on every address at once: then any will do, because an agent takes another port when it must.
    The seed spreads installations over the range, so that two of them on one machine hardly ever meet.
    """
    if platform != "linux":
        return "127.0.0.1"
    unused = [one for one in itertools.islice(_candidates(seed), len(used) + _LOOKED_AT) if one not in used]
    for address in unused:
        if is_free(address, AGENT_PORT):
            return address
    if unused:
        return unused[0]
    raise InsufficientCapacity(
        "this machine has no free loopback address left for another node", details={"blocks": "cloud"}
    )


def _candidates(seed: str) -> Iterator[str]:
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    for step in range(_RANGE):
        high, low = divmod((start + step) % _RANGE, 253)
        yield f"127.0.{high + 1}.{low + 2}"


def is_free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                return False
            raise
    return True
