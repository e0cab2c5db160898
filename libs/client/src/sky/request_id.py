"""RequestId: a str that says of what type the result will be.

For calls that change something it is the id of the server's operation: any process may wait for it, also by a unique prefix.
Reading calls are no operations here: they are answered at once, and their id (`local-...`) is known to this process only.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any, Generic, TypeVar

T = TypeVar("T")
KEPT = 1000
PREFIX = "local-"

_lock = threading.Lock()
_values: OrderedDict[str, Any] = OrderedDict()


class RequestId(str, Generic[T]):
    """A plain string works wherever one of these is expected."""

    __slots__ = ()


def resolved(value: T) -> RequestId[T]:
    """An id whose value is here already; the last thousand are kept."""
    key = PREFIX + os.urandom(12).hex()
    with _lock:
        _values[key] = value
        while len(_values) > KEPT:
            _values.popitem(last=False)
    return RequestId(key)


def is_local(request_id: str) -> bool:
    return request_id.startswith(PREFIX)


def local_value(request_id: str) -> Any:
    """The value behind a local id."""
    with _lock:
        if request_id in _values:
            return _values[request_id]
    from sky.exceptions import ClientError

    raise ClientError(
        f"Request {request_id} is not known in this process: reading calls are answered where they are made."
    )
