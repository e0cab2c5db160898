"""The agent's HTTP API (contracts/agent.py): thin, every handler says what to ask of whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Callable, Optional, TypeVar

from skyloom_agent import framing
from skyloom_agent.archive import tar_stream
from skyloom_agent.cluster import Cluster
from skyloom_agent.head import Head
from skyloom_agent.joblogs import read_log, tail_offset
from skyloom_agent.model import RUN, RankId, RankSpec, RankState
from skyloom_agent.ranks import RankTable
from skyloom_agent.router import Request, Response, Router
from skyloom_agent.watch import Watch
from skyloom_common.contracts.agent import ClusterMembership, NodeInfo
from skyloom_common.contracts.jobs import CancelJobs, CancelledJobs, JobList, JobSubmit
from skyloom_common.core import wire
from skyloom_common.core.errors import JobDoesNotExist

T = TypeVar("T")
BYTES = "application/octet-stream"


class Api:
    def __init__(
        self,
        info: Callable[[], NodeInfo],
        cluster: Cluster,
        head: Head,
        ranks: RankTable,
        watch: Watch,
        shut_down: Callable[[], None],
    ) -> None:
        self._info = info
        self._cluster = cluster
        self._head = head
        self._ranks = ranks
        self._watch = watch
        self._shut_down = shut_down

    def register(self, router: Router) -> None:
        router.add("GET", "/healthz", self.healthz)
        router.add("GET", "/v1/info", self.info)
        router.add("PUT", "/v1/cluster", self.join)
        router.add("GET", "/v1/watch", self.watch)
        router.add("POST", "/v1/shutdown", self.shutdown)
        router.add("POST", "/v1/jobs", self.submit)
        router.add("GET", "/v1/jobs", self.jobs)
        router.add("POST", "/v1/jobs/cancel", self.cancel)
        router.add("GET", "/v1/jobs/{job_id}", self.job)
        router.add("GET", "/v1/jobs/{job_id}/logs", self.logs)
        router.add("GET", "/v1/jobs/{job_id}/archive", self.archive)
        router.add("POST", "/v1/ranks/prepare", self.prepare_rank)
        router.add("POST", "/v1/ranks/start", self.start_rank)
        router.add("POST", "/v1/ranks/stop", self.stop_rank)
        router.add("POST", "/v1/ranks/release", self.release_rank)
        router.add("GET", "/v1/ranks/{uid}/follow", self.follow_rank)

    # --- every node ---

    async def healthz(self, request: Request) -> Response:
        return Response.of({"ok": True})

    async def info(self, request: Request) -> Response:
        return Response.of(self._info())

    async def join(self, request: Request) -> Response:
        return Response.of(self._cluster.join(await request.json(ClusterMembership)))

    async def watch(self, request: Request) -> Response:
        return Response(body=self._watch.stream(), content_type="application/x-ndjson")

    async def shutdown(self, request: Request) -> Response:
        self._shut_down()
        return Response.of({"ok": True})

    # --- the head ---

    async def submit(self, request: Request) -> Response:
        return Response.of(self._head.submit(await request.json(JobSubmit)))

    async def jobs(self, request: Request) -> Response:
        return Response.of(JobList(tuple(self._head.jobs())))

    async def job(self, request: Request) -> Response:
        return Response.of(self._head.job(_job_id(request)))

    async def cancel(self, request: Request) -> Response:
        return Response.of(CancelledJobs(tuple(self._head.cancel(await request.json(CancelJobs)))))

    async def logs(self, request: Request) -> Response:
        job_id, follow = _job_id(request), request.flag_query("follow")
        phase, rank = request.query.get("phase", RUN), request.int_query("rank")
        offset, tail = request.int_query("offset"), request.int_query("tail")
        view = self._head.log_view(job_id, phase, rank)
        size = view.size()
        if offset is None:
            offset = tail_offset(view.path, size, tail or 0)
        start = min(offset, size) if self._head.job(job_id).status.is_final else offset
        return Response(
            body=self._log_body(job_id, phase, rank, start, follow),
            content_type=BYTES,
            headers={"x-log-offset": str(start)},
        )

    async def _log_body(
        self, job_id: int, phase: str, rank: Optional[int], start: int, follow: bool
    ) -> AsyncIterator[bytes]:
        if follow:
            await self._head.begun(job_id)
        async for part in read_log(self._head.log_view(job_id, phase, rank), start, follow):
            yield part

    async def archive(self, request: Request) -> Response:
        directory = self._head.log_dir(_job_id(request))
        return Response(body=tar_stream(directory), content_type="application/x-tar")

    # --- the head's calls to this node ---

    async def prepare_rank(self, request: Request) -> Response:
        return Response.of(self._ranks.prepare(await _lenient(request, RankSpec)))

    async def start_rank(self, request: Request) -> Response:
        return Response.of(self._ranks.start((await _lenient(request, RankId)).uid))

    async def stop_rank(self, request: Request) -> Response:
        return Response.of(self._ranks.stop((await _lenient(request, RankId)).uid))

    async def release_rank(self, request: Request) -> Response:
        self._ranks.release((await _lenient(request, RankId)).uid)
        return Response.of({"ok": True})

    async def follow_rank(self, request: Request) -> Response:
        uid = request.params["uid"]
        self._ranks.rank(uid)
        return Response(body=self._frames(uid, request.int_query("offset") or 0), content_type=BYTES)

    async def _frames(self, uid: str, offset: int) -> AsyncIterator[bytes]:
        async for item in self._ranks.follow(uid, offset):
            if isinstance(item, RankState):
                yield framing.encode(framing.STATE, wire.dumps(item))
            else:
                yield framing.encode(framing.DATA if item else framing.ALIVE, item)


def _job_id(request: Request) -> int:
    text = request.params["job_id"]
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise JobDoesNotExist(f"job {text[:40]!r} does not exist; job ids are whole numbers")
    return int(text)


async def _lenient(request: Request, kind: type[T]) -> T:
    """Between agents, which may differ in version: unknown fields are ignored."""
    return wire.loads(kind, await request.read())
