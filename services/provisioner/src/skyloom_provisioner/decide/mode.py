"""What a launch does with the cluster that has its name already."""

from __future__ import annotations

import enum


class LaunchMode(enum.StrEnum):
    NEW = "new"
    REUSE = "reuse"
    START = "start"
    REPAIR = "repair"
    REPLACE = "replace"
    """Its teardown was asked for and did not end: finish that, then as new."""


def launch_mode(status: str, goal: str) -> LaunchMode:
    if goal == "gone":
        return LaunchMode.REPLACE
    if goal == "stopped" or status == "STOPPED":
        return LaunchMode.START
    if status in ("UP", "AUTOSTOPPING"):
        return LaunchMode.REUSE
    return LaunchMode.REPAIR
