"""The services' typed client against a real agent: both sides of the contract."""

from __future__ import annotations

import httpx
import pytest

from skyloom_common.clients.agent import AgentClient
from skyloom_common.contracts.agent import ClusterMembership, Peer
from skyloom_common.contracts.jobs import CancelJobs, JobStatus, JobSubmit
from skyloom_common.core.errors import AgentUnreachable, Conflict, JobDoesNotExist, Unauthenticated

pytestmark = pytest.mark.integration


async def test_the_typed_client_and_the_agent_agree(nodes):
    node = nodes.make().start()
    headers = {"authorization": "Bearer token-of-the-cluster"}
    async with httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False) as http:
        agent = AgentClient(http)
        assert await agent.healthy()
        info = await agent.info()
        assert (info.node_id, info.url, info.membership_generation) == (node.node_id, node.url, -1)
        with pytest.raises(Conflict, match="belongs to no cluster"):
            await agent.submit(JobSubmit("k", "n", "me", run="true"))
        peers = (Peer(0, node.node_id, node.host, node.url),)
        await agent.set_cluster(ClusterMembership("c", "c1", 0, 5, peers))
        with pytest.raises(Conflict, match="older"):
            await agent.set_cluster(ClusterMembership("c", "c1", 0, 4, peers))
        job = await agent.submit(JobSubmit("k", "n", "me", run="echo 0123456789"))
        async with agent.logs(job.job_id, follow=True) as log:
            whole = b"".join([piece async for piece in log])
        async with agent.logs(job.job_id, offset=len(whole) - 4) as log:
            assert log.offset == len(whole) - 4
            assert b"".join([piece async for piece in log]) == b"789\n"
        ended = await agent.job(job.job_id)
        assert ended.status is JobStatus.SUCCEEDED and ended in await agent.jobs()
        assert await agent.cancel(CancelJobs(all=True)) == ()
        with pytest.raises(JobDoesNotExist):
            await agent.job(99)
        async for heartbeat in agent.watch():
            assert heartbeat.jobs == (ended,) and heartbeat.node_id == node.node_id
            break
        await agent.shutdown()
    node.process.wait(15)
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False) as http:
        with pytest.raises(AgentUnreachable):
            await AgentClient(http).info()


async def test_a_wrong_token_is_the_same_error_on_both_sides(nodes):
    node = nodes.make().start()
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:
        with pytest.raises(Unauthenticated):
            await AgentClient(http).info()
