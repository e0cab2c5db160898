"""The agent's clocks: wall time for what people read, monotonic time for everything that is decided by it."""

from __future__ import annotations

import time

from skyloom_agent.procs import kernel_boot


class AgentClock:
    """Monotonic time goes on across agents, not across boots of the machine: `boot` says which one it belongs to."""

    def __init__(self) -> None:
        self.boot = kernel_boot()

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
