"""The decision for many tasks at once: how many of each go where, so that all of them together cost least within shared limits.

Pure but for the clock of its deadline, which is an argument. Equal tasks are one kind (`fleets.kinds`). Of all offers only the
cheapest of those remain that use the same limits by the same amount (`fleets.find`); the rest is arithmetic on whole numbers
(`solvers.fleet`).
"""

from __future__ import annotations

import time

from skyloom_common.contracts.fleet import FleetPlan, FleetPlanRequest
from skyloom_optimizer.fleets.answer import Answer
from skyloom_optimizer.fleets.check import check_fleet
from skyloom_optimizer.fleets.find import Finder
from skyloom_optimizer.fleets.kinds import kinds_of, limits_of, solver_kind
from skyloom_optimizer.market import Market
from skyloom_optimizer.memory import AvailabilityMemory
from skyloom_optimizer.plan import NO_MARKET, NOTHING_KNOWN, worlds_of
from skyloom_optimizer.snapshot import OfferSnapshot
from skyloom_optimizer.solvers import fleet as solver
from skyloom_optimizer.solvers.deadline import Clock, Deadline

# What it takes to turn numbers of a kind into places, about.
_ANSWER_SECONDS = 0.00012


def plan_fleet(
    request: FleetPlanRequest,
    snapshot: OfferSnapshot,
    memory: AvailabilityMemory = NOTHING_KNOWN,
    market: Market = NO_MARKET,
    clock: Clock = time.monotonic,
) -> FleetPlan:
    """Raises InvalidRequest for what can never work; what only does not fit is `unplaced`, with the reason."""
    check_fleet(request)
    deadline = Deadline(request.time_limit_seconds, clock)
    worlds = worlds_of(request, snapshot)
    finder = Finder(request, worlds)
    kinds, missing = kinds_of(request, finder, memory, market)
    limits, pools = limits_of(request, kinds, finder)
    until = deadline.earlier(_ANSWER_SECONDS * len(kinds))
    found = solver.solve([solver_kind(kind) for kind in kinds], limits, request.max_gap, until)
    return Answer(request, kinds, found, limits, pools).plan(
        missing, sum(len(world) for world in worlds), snapshot.version
    )
