"""Builds the agent out of its parts and runs it until it is told to end. The only place that knows all parts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import platform
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from skyloom_agent import detect, environment
from skyloom_agent.api import Api
from skyloom_agent.clock import AgentClock
from skyloom_agent.cluster import Cluster
from skyloom_agent.file_trees import FileTrees
from skyloom_agent.files import add_file_routes
from skyloom_agent.head import Head
from skyloom_agent.http_server import HttpServer
from skyloom_agent.idle import IdleMeter
from skyloom_agent.nodes import LocalNode
from skyloom_agent.nvml import Nvml, visible_names
from skyloom_agent.paths import Paths, write_atomic
from skyloom_agent.ranks import RankTable
from skyloom_agent.router import Router
from skyloom_agent.store import JobStore
from skyloom_agent.version import VERSION
from skyloom_agent.watch import Sampler, Watch
from skyloom_common.contracts.agent import AgentConfig, GpuInfo, NodeInfo
from skyloom_common.contracts.jobs import CancelJobs
from skyloom_common.core.errors import Conflict
from skyloom_common.core.ids import new_id

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


class Agent:
    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._paths = Paths(Path(config.home))
        self._clock = AgentClock()
        self._nvml = Nvml(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._ending = asyncio.Event()
        self._jobs_too = False
        self._url = ""
        self._idle = IdleMeter(self._paths.idle, self._clock, self._ssh_sessions())
        self._ranks = RankTable(self._paths, config.node_id, os.environ)
        self._info = self._describe()
        local = LocalNode(self._ranks, self._info)
        self._cluster = Cluster(self._paths, config.token, local, self._membership_changed)
        self._head = Head(
            self._paths,
            JobStore(self._paths.database),
            self._cluster,
            self._clock,
            self._idle,
            config.grace_seconds,
            config.unreachable_seconds,
        )
        self._watch = self._make_watch()
        self._router = Router()
        self._server = HttpServer(self._router, config.token)

    async def run(self) -> None:
        """Serves until SIGTERM (jobs go on) or POST /v1/shutdown (jobs end first)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        self._register()
        with self._listening_to_runners():
            self._ranks.load()
            self._cluster.load()
            if self._cluster.is_head:
                self._head.resume()
            port = await self._server.listen(self._config.listen_host, self._config.port)
            self._announce(port)
            self._paths.make_reserve()
            looking = loop.create_task(self._look_now_and_then())
            await self._ending.wait()
            looking.cancel()
            if self._jobs_too:
                await self._end_jobs()
            await self._close()

    def _register(self) -> None:
        api = Api(self._node_info, self._cluster, self._head, self._ranks, self._watch, self._shut_down)
        api.register(self._router)
        trees = FileTrees(self._paths.home, confine_to_home=self._config.confine_to_home)
        add_file_routes(self._router, trees)

    # --- describing the node ---

    def _describe(self) -> NodeInfo:
        config = self._config
        gpus = self._nvml.devices()
        if config.gpus is not None:
            gpus = gpus[: config.gpus] + _unseen_gpus(len(gpus), config.gpus)
        return NodeInfo(
            node_id=config.node_id,
            boot_id=new_id(),
            agent_version=VERSION,
            url="",
            hostname=platform.node(),
            cpus=config.cpus if config.cpus is not None else detect.cpu_count(),
            memory_gib=config.memory_gib if config.memory_gib is not None else detect.memory_gib(),
            gpus=gpus,
            python=platform.python_version(),
            pid=os.getpid(),
        )

    def _node_info(self) -> NodeInfo:
        membership = self._cluster.membership
        return replace(
            self._info, url=self._url, membership_generation=membership.generation if membership else -1
        )

    def _ssh_sessions(self) -> Callable[[], int]:
        """Sessions on a machine that several nodes share are nobody's."""
        return detect.ssh_sessions if environment.owns_machine(self._paths.home) else (lambda: 0)

    def _make_watch(self) -> Watch:
        return Watch(
            self._config.node_id,
            self._info.boot_id,
            self._config.heartbeat_seconds,
            self._clock,
            self._head,
            self._ranks,
            self._idle,
            Sampler(self._paths.home, self._nvml, self._clock),
            lambda: self._cluster.is_head,
            self._problem,
        )

    def _problem(self) -> str:
        return detect.disk_problem(self._paths.home) or self._head.problem

    def _announce(self, port: int) -> None:
        host = self._config.listen_host
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        ready = {
            "pid": os.getpid(),
            "port": port,
            "url": self._url,
            "boot_id": self._info.boot_id,
            "started_at": self._clock.now(),
        }
        write_atomic(self._paths.ready, json.dumps(ready).encode())
        log.info("listening on %s", self._url)

    # --- working ---

    def _membership_changed(self) -> None:
        if self._cluster.is_head:
            self._head.resume()
            self._head.reschedule()
        self._head.changed.fire()

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._ranks.reconcile()
            self._head.tick()
            self._paths.make_reserve()
            self._idle.look_for_sessions()

    @contextlib.contextmanager
    def _listening_to_runners(self) -> Iterator[None]:
        """A unix socket has a short path limit: it is bound by its name, from inside its directory."""
        self._paths.socket.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setblocking(False)
        here = os.getcwd()
        os.chdir(self._paths.state)
        try:
            sock.bind(self._paths.socket.name)
        finally:
            os.chdir(here)
        os.chmod(self._paths.socket, 0o600)
        loop = asyncio.get_running_loop()
        loop.add_reader(sock.fileno(), self._hear, sock)
        try:
            yield
        finally:
            loop.remove_reader(sock.fileno())
            sock.close()

    def _hear(self, sock: socket.socket) -> None:
        """Everything that waits in the socket; the same news of one rank counts once."""
        news: dict[tuple[str, str], None] = {}
        with contextlib.suppress(BlockingIOError):
            while len(news) < 1000:
                uid, _, what = sock.recv(512).decode("utf-8", "replace").partition(" ")
                news[uid, what] = None
        for uid, what in news:
            self._ranks.refresh(uid, what)

    # --- ending ---

    def _shut_down(self) -> None:
        """The answer goes out first."""
        self._jobs_too = True
        asyncio.get_running_loop().call_later(0.05, self._ending.set)

    async def _end_jobs(self) -> None:
        if self._cluster.is_head:
            self._head.cancel(CancelJobs(all=True), "the cluster was shut down")
            await self._head.wait_until_quiet(self._config.grace_seconds + 5.0)
        await self._ranks.end_all()

    async def _close(self) -> None:
        await self._server.close()
        self._cluster.close()
        await self._head.close()
        self._ranks.close()
        self._paths.ready.unlink(missing_ok=True)


def _unseen_gpus(first: int, count: int) -> tuple[GpuInfo, ...]:
    """GPUs that the node is said to have and the driver does not show."""
    names = visible_names(os.environ.get("CUDA_VISIBLE_DEVICES")) or ()
    return tuple(
        GpuInfo(number, "GPU", 0.0, visible_as=names[number] if number < len(names) else str(number))
        for number in range(first, count)
    )


@contextlib.contextmanager
def only_one(paths: Paths) -> Iterator[None]:
    """Two agents of one home would run everything twice."""
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(f"another agent runs for {paths.home}") from None
    try:
        yield
    finally:
        os.close(fd)
