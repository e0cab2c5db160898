"""Clients of the agents, each through its provider's channel with its cluster's token. Opens connections, holds no state."""

from __future__ import annotations

import httpx

from skyloom_common.clients.agent import AgentClient
from skyloom_common.core.errors import AgentUnreachable
from skyloom_provisioner.clusters.rows import NodeRow
from skyloom_provisioner.deployment import Deployment
from skyloom_provisioner.providers.base import Instance, InstanceStatus
from skyloom_provisioner.providers.registry import Providers


class AgentPool:
    """`transport` is shared by all clients; tests bring one that leads to fake agents."""

    def __init__(
        self, providers: Providers, deployment: Deployment, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._providers = providers
        self._deployment = deployment
        self._transport = transport or httpx.AsyncHTTPTransport(
            verify=False,  # agents speak plain HTTP inside their channel
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=200, keepalive_expiry=30),
        )

    async def client(self, node: NodeRow) -> AgentClient:
        """Raises AgentUnreachable when the channel has no address for it."""
        if not node.instance_id:
            raise AgentUnreachable(f"node {node.rank} has no instance yet")
        url = await self._providers.get(node.provider).channel(instance_of(node))
        return AgentClient(
            httpx.AsyncClient(
                base_url=url,
                headers={"Authorization": f"Bearer {self._deployment.agent_token(node.cluster_id)}"},
                timeout=httpx.Timeout(30, connect=3),
                transport=self._transport,
                trust_env=False,
            )
        )

    async def close(self) -> None:
        await self._transport.aclose()


def instance_of(node: NodeRow) -> Instance:
    """As far as the row knows it; enough for bootstrap and channel."""
    return Instance(
        id=node.instance_id or "",
        status=InstanceStatus.RUNNING,
        tags={},
        created_at=node.created_at,
        address=node.address,
        region=node.offer.region,
        zone=node.offer.zone,
    )
