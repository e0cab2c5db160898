"""What a request for a fleet must be, before anything is searched. Raises InvalidRequest with the field and the right form."""

from __future__ import annotations

from skyloom_common.contracts.fleet import FleetPlanRequest, FleetTask
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.choices import check_task
from skyloom_optimizer.feasible import check_blocked
from skyloom_optimizer.gate import gate_of

SPREADS = ("cloud", "region", "zone")
MOST_COPIES = 100_000
MOST_KINDS = 5_000


def check_fleet(request: FleetPlanRequest) -> None:
    check_blocked(request.blocked)
    if not request.tasks:
        raise InvalidRequest("tasks: none; a fleet has at least one")
    names = [item.name for item in request.tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"tasks: {twice!r} comes twice; names are unique (use count for equal tasks)")
    if sum(item.count for item in request.tasks) > MOST_COPIES:
        raise InvalidRequest(f"tasks: more than {MOST_COPIES} copies in all")
    for item in request.tasks:
        check_task(item.name, item.task, item.run)
        if item.count < 1:
            raise InvalidRequest(f"{item.name}: count: {item.count} is not at least 1")
        if item.spread is not None:
            _check_spread(item)
    if not 0 <= request.max_gap < 1 or request.time_limit_seconds <= 0:
        raise InvalidRequest("max_gap must be at least 0 and below 1, time_limit_seconds above 0")
    gate_of(request)


def _check_spread(item: FleetTask) -> None:
    spread = item.spread
    assert spread is not None
    if spread.by not in SPREADS:
        raise InvalidRequest(
            f"{item.name}: spread.by: {spread.by!r} is not one of {', '.join(SPREADS)}{did_you_mean(spread.by, SPREADS)}"
        )
    if not 0 < spread.max_share <= 1 or spread.min_places < 1:
        raise InvalidRequest(f"{item.name}: spread.max_share is above 0 and at most 1, min_places at least 1")
    if spread.min_places > item.count:
        raise InvalidRequest(
            f"{item.name}: spread.min_places: {spread.min_places} places for {item.count} copies; use at most {item.count}"
        )
