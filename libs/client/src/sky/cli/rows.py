"""A cluster as `sky status` shows it, straight from its wire form.

Building the contract dataclasses costs a third of the command's time; this reads the few fields that are shown.
A test holds it to the contract.
"""

from __future__ import annotations

from typing import Any


class ClusterRow:
    """The same names and defaults as contracts.clusters.Cluster, but for `status` (text) and `autostop` (wire form)."""

    __slots__ = (
        "autostop", "cloud", "endpoints", "head_ip", "heartbeat_age_seconds", "instance_type", "last_event", "last_use",
        "launched_at", "name", "num_nodes", "region", "resources", "ssh", "status", "status_message", "unhealthy",
        "user", "workspace", "zone",
    )  # fmt: skip

    def __init__(self, wire: dict[str, Any]) -> None:
        get = wire.get
        self.name: str = wire["name"]
        self.status: str = wire["status"]
        self.user: str = wire["user"]
        self.num_nodes: int = wire["num_nodes"]
        self.launched_at: float = wire["launched_at"]
        self.resources: str = get("resources", "")
        self.status_message: str = get("status_message", "")
        self.unhealthy: bool = get("unhealthy", False)
        self.cloud: str = get("cloud", "")
        self.region: str = get("region", "")
        self.zone: str = get("zone", "")
        self.instance_type: str = get("instance_type", "")
        self.autostop: dict[str, Any] | None = get("autostop")
        self.last_use: str = get("last_use", "")
        self.head_ip: str = get("head_ip", "")
        self.endpoints: dict[str, str] = get("endpoints", {})
        self.ssh: dict[str, Any] | None = get("ssh")
        self.heartbeat_age_seconds: float | None = get("heartbeat_age_seconds")
        self.last_event: str = get("last_event", "")
        self.workspace: str = get("workspace", "default")

    @property
    def idle_minutes(self) -> int | None:
        """None = no autostop."""
        spec = self.autostop
        return spec.get("idle_minutes", 0) if spec is not None and spec.get("enabled", True) else None

    @property
    def goes_down(self) -> bool:
        return bool(self.autostop and self.autostop.get("down"))
