"""A cluster's status from what was found at its nodes."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class NodeHealth(enum.StrEnum):
    OK = "ok"
    UNREACHABLE = "unreachable"
    STOPPED = "stopped"
    GONE = "gone"


@dataclass(frozen=True)
class NodeFinding:
    rank: int
    health: NodeHealth
    reason: str = ""


@dataclass(frozen=True)
class ClusterHealth:
    """`vanished`: no node is left, nothing costs any more: the record goes too."""

    healthy: bool
    message: str = ""
    vanished: bool = False


def judge_health(findings: Sequence[NodeFinding]) -> ClusterHealth:
    bad = [finding for finding in findings if finding.health is not NodeHealth.OK]
    if findings and not bad:
        return ClusterHealth(True)
    if all(finding.health is NodeHealth.GONE for finding in findings):
        return ClusterHealth(False, "all its nodes are gone", vanished=True)
    words = "; ".join(f"node {finding.rank}: {finding.reason or finding.health.value}" for finding in bad)
    return ClusterHealth(False, words)
