"""Between the entries of a stream and our events."""

from __future__ import annotations

import logging

from skyloom_common.bus.resp import pairs
from skyloom_common.contracts.events import Event
from skyloom_common.core.errors import SkyloomError
from skyloom_common.core.wire import loads

_log = logging.getLogger(__name__)


def decode(fields: list[str] | None) -> Event | None:
    """None for what is not an event: it can wake nobody."""
    try:
        return loads(Event, str(pairs(fields or []).get("event", "")))
    except SkyloomError as error:
        _log.warning("an entry that is not an event was skipped: %s", error)
        return None
