"""Gathers what the autostop decision looks at."""

from __future__ import annotations

from skyloom_common.core.clock import Clock
from skyloom_provisioner.clusters.rows import ClusterState
from skyloom_provisioner.decide.autostop import AutostopDecision, Idleness, decide_autostop
from skyloom_provisioner.nodes.live import LiveView

STALE_SECONDS = 60.0
"""A head that was not heard for so long may have a job that we do not know of."""


def autostop_now(clock: Clock, live: LiveView, state: ClusterState) -> AutostopDecision:
    cluster, now = state.cluster, clock.now()
    if cluster.autostop is None or cluster.up_since is None or state.head is None:
        return AutostopDecision()
    measured = live.idle(state.head.id, stale_after=STALE_SECONDS)
    since_up = max(0.0, now - cluster.up_since)
    return decide_autostop(
        cluster.autostop,
        Idleness(
            since_set=max(0.0, now - (cluster.autostop_set_at or cluster.up_since)),
            since_up=since_up,
            jobs=measured[0] if measured else None,
            jobs_and_ssh=measured[1] if measured else None,
        ),
    )
