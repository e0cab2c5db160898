"""Events and wake-ups over Redis streams. Losing all of Redis costs latency, never truth.

Words: a *kind* of event is one stream; a *group* shares the events of its kinds among its members, each is acked
once; a *listener* gets every event and no past ones; a *dead letter* is an event that no member could handle.
"""

from skyloom_common.bus.bus import RESYNC, Bus
from skyloom_common.bus.lease import BusLease, BusLeases

__all__ = ["RESYNC", "Bus", "BusLease", "BusLeases"]
