"""How long to wait before the next try: exponential, capped, with full jitter in its upper half."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Backoff:
    first: float = 0.5
    longest: float = 60.0
    rng: random.Random = field(default_factory=random.Random, compare=False)

    def pause(self, failures: int) -> float:
        """Seconds after the n-th failure in a row (n from 1)."""
        ceiling = min(self.longest, self.first * 2.0 ** min(failures - 1, 30))
        return float(ceiling * self.rng.uniform(0.5, 1.0))
