"""A gateway in a thread, contract-shaped and faulty on request, for the tests of the client."""

from __future__ import annotations

import fnmatch
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from skyloom_common.contracts.catalog import CatalogInfo, CatalogRefresh, CatalogRefreshRequest
from skyloom_common.contracts.clusters import (
    AutostopRequest,
    Cluster,
    ClusterList,
    ClusterStatus,
    CostReport,
    CostRow,
    ExecRequest,
    InfraList,
    InfraStatus,
    LaunchRequest,
    ServerInfo,
    StartRequest,
    StopRequest,
)
from skyloom_common.contracts.dag import DagPlan, DagPlanRequest, Placement, Transfer
from skyloom_common.contracts.jobs import CancelJobs, CancelledJobs, Job, JobList, JobStatus
from skyloom_common.contracts.operations import (
    ErrorBody,
    Operation,
    OperationEvent,
    OperationList,
    OperationStatus,
)
from skyloom_common.contracts.plan import (
    AcceleratorList,
    AcceleratorOffer,
    AcceleratorSummary,
    Breakdown,
    Candidate,
    Offer,
    Plan,
    PlanRequest,
    Proof,
    Rejection,
)
from skyloom_common.core import errors
from skyloom_common.core.wire import dumps, from_wire

TOKEN = "sky_test_token"
REQUESTS = {
    "launch": LaunchRequest,
    "exec": ExecRequest,
    "start": StartRequest,
    "stop": StopRequest,
    "down": StopRequest,
    "autostop": AutostopRequest,
}


@dataclass
class Call:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FakeGateway:
    """Knobs are plain attributes; `calls` is everything that was asked."""

    token: str = TOKEN
    clusters: dict[str, Cluster] = field(default_factory=dict)
    jobs: dict[str, list[Job]] = field(default_factory=dict)
    logs: dict[tuple[str, int], bytes] = field(default_factory=dict)
    archives: dict[tuple[str, int], bytes] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    events: dict[str, list[OperationEvent]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    by_key: dict[str, str] = field(default_factory=dict)
    infra: tuple[InfraStatus, ...] = (
        InfraStatus("local", True, capabilities=("compute",)),
        InfraStatus("aws", False, reason="no credentials were found", hint="aws configure"),
    )
    plan: Plan = field(default_factory=Plan)
    catalog: list[CatalogInfo] = field(default_factory=lambda: [CatalogInfo("v1", 0, 0, 0)])
    """Answered one after the other; the last one stays."""
    refresh_asked: list[CatalogRefreshRequest] = field(default_factory=list)
    job_status: JobStatus = JobStatus.SUCCEEDED
    job_output: bytes = b"hello\n"
    fail_kind: dict[str, errors.SkyloomError] = field(default_factory=dict)
    fail_next: list[tuple[int, bytes]] = field(default_factory=list)
    drop_next: int = 0
    cut_log_after: list[int] = field(default_factory=list)
    cut_events_after: list[int] = field(default_factory=list)
    endpoint: str = ""
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # --- state ---

    def add_cluster(self, name: str, status: ClusterStatus = ClusterStatus.UP, **more: Any) -> Cluster:
        values: dict[str, Any] = {
            "id": f"c-{name}", "name": name, "status": status, "user": "ann", "num_nodes": 1, "cloud": "local",
            "region": "local", "instance_type": "local-small", "resources": "1x(cpus=2, mem=4GB)",
            "launched_at": time.time() - 300, "head_ip": "127.0.9.1",
        }  # fmt: skip
        self.clusters[name] = Cluster(**{**values, **more})
        self.jobs.setdefault(name, [])
        return self.clusters[name]

    def add_job(
        self, cluster: str, status: JobStatus = JobStatus.SUCCEEDED, output: bytes = b"", **more: Any
    ) -> Job:
        job_id = len(self.jobs.setdefault(cluster, [])) + 1
        values: dict[str, Any] = {
            "job_id": job_id, "name": "train", "user": "ann", "status": status, "submitted_at": time.time() - 90,
            "started_at": time.time() - 80, "duration_seconds": 75.0, "resources": "1x[CPU:0.5]",
            "log_path": f"~/sky_logs/{job_id}-train",
        }  # fmt: skip
        job = Job(**{**values, **more})
        self.jobs[cluster].append(job)
        self.logs[cluster, job_id] = output
        return job

    def count(self, method: str, suffix: str) -> int:
        return sum(1 for call in self.calls if call.method == method and call.path.endswith(suffix))

    def last(self, suffix: str) -> Call:
        return next(call for call in reversed(self.calls) if call.path.endswith(suffix))

    # --- what is answered ---

    def act(self, kind: str, name: str, body: bytes, key: str) -> Operation:
        request = from_wire(REQUESTS[kind], json.loads(body), strict=True)
        if key in self.by_key:
            return self.operations[self.by_key[key]]
        if kind != "launch" and name not in self.clusters:
            raise errors.ClusterDoesNotExist(f"Cluster {name!r} does not exist.", hint="sky status")
        operation = Operation(
            id=f"{next(self.ids):04d}op", kind=kind, target=name, user="ann", status=OperationStatus.RUNNING,
            created_at=time.time(),
        )  # fmt: skip
        self.by_key[key] = operation.id
        error = self.fail_kind.get(kind)
        result: dict[str, Any] = {}
        if error is None:
            result = self._apply(kind, name, request)
        final = OperationStatus.SUCCEEDED if error is None else OperationStatus.FAILED
        self._record(operation, kind, name, final, error, result)
        return operation

    def _record(
        self, operation: Operation, kind: str, name: str, final: OperationStatus, error: errors.SkyloomError | None,
        result: dict[str, Any],
    ) -> None:  # fmt: skip
        steps = [
            ("queued", f"{kind} of {name} is queued"),
            ("provisioning", "starting 1 node"),
            ("done", "done"),
        ]
        self.events[operation.id] = [
            OperationEvent(
                operation.id, seq, time.time(), phase, message, status=final if phase == "done" else None
            )
            for seq, (phase, message) in enumerate(steps, 1)
        ]
        body = None if error is None else from_wire(ErrorBody, error.to_wire())
        self.operations[operation.id] = replace(
            operation, status=final, error=body, result=result, phase="done"
        )

    def _apply(self, kind: str, name: str, request: Any) -> dict[str, Any]:
        if kind in ("launch", "exec"):
            if name not in self.clusters:
                self.add_cluster(name, num_nodes=request.task.num_nodes)
            if request.task.run is None:
                return {"cluster": name}
            job = self.add_job(name, self.job_status, self.job_output, name=request.task.name or "sky-cmd")
            return {"cluster": name, "job_id": job.job_id}
        if kind == "down":
            del self.clusters[name]
        elif kind == "autostop":
            self.clusters[name] = replace(self.clusters[name], autostop=request.autostop)
        else:
            status = ClusterStatus.UP if kind == "start" else ClusterStatus.STOPPED
            self.clusters[name] = replace(self.clusters[name], status=status)
        return {"cluster": name} if kind == "start" else {}

    def find_operation(self, prefix: str) -> Operation:
        found = [item for key, item in self.operations.items() if key.startswith(prefix)]
        if len(found) != 1:
            raise errors.OperationDoesNotExist(f"There is no request {prefix!r}.")
        return found[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway: FakeGateway

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _handle(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(self.command, unquote(url.path).removeprefix("/api/v1"), parse_qs(url.query), headers)
        call.body = self.rfile.read(length)
        self.gateway.calls.append(call)
        if self.gateway.drop_next > 0:
            self.gateway.drop_next -= 1
            self.close_connection = True
            return
        if self.gateway.fail_next:
            self._send(*self.gateway.fail_next.pop(0))
            return
        try:
            if headers.get("authorization") != f"Bearer {self.gateway.token}":
                raise errors.Unauthenticated("The token is missing or wrong.", hint="sky api login")
            self._route(call)
        except errors.SkyloomError as error:
            self._send(error.http_status, json.dumps(error.to_wire()).encode())

    do_GET = do_POST = do_PUT = _handle  # noqa: N815

    def _send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, dumps(value))

    def _route(self, call: Call) -> None:
        gateway, parts = self.gateway, call.path.strip("/").split("/")
        simple: dict[str, Callable[[], Any]] = {
            "info": lambda: ServerInfo(
                "0.1.0", 1, "ok", user="ann", store="sqlite", bus="valkey 9", services={"gateway": "ok"}
            ),
            "clusters": lambda: self._clusters(call),
            "infra": lambda: InfraList(gateway.infra),
            "plans": lambda: self._plan(call),
            "accelerators": lambda: accelerators(call),
            "cost-report": lambda: CostReport(
                (CostRow("dev", time.time() - 3600, 3600, 1, "1x(A100:1)", "TERMINATED", 2.5, 2.5),), 2.5, 30
            ),
            "catalog": lambda: gateway.catalog.pop(0) if len(gateway.catalog) > 1 else gateway.catalog[0],
            "operations": lambda: OperationList(tuple(reversed(list(gateway.operations.values())))),
        }
        if len(parts) == 1 and parts[0] in simple:
            self._json(simple[parts[0]]())
        elif parts == ["plans", "dag"]:
            self._json(a_dag_plan(from_wire(DagPlanRequest, call.json(), strict=True), gateway.plan))
        elif parts == ["catalog", "refresh"]:
            gateway.refresh_asked.append(from_wire(CatalogRefreshRequest, call.json(), strict=True))
            self._json(CatalogRefresh("r1", "running", time.time()), 202)
        elif parts[0] == "operations":
            self._operation(call, parts)
        elif parts[0] == "clusters" and len(parts) == 3 and parts[2] in REQUESTS:
            operation = gateway.act(parts[2], parts[1], call.body, call.headers.get("idempotency-key", ""))
            self._json(operation, 202)
        elif parts[0] == "clusters" and len(parts) >= 3:
            self._of_cluster(call, parts)
        elif parts[0] == "server-logs":
            self._send(200, b"server log\n", "text/plain")
        else:
            raise errors.NotFound(f"{call.path}: no such path")

    def _clusters(self, call: Call) -> ClusterList:
        globs = call.query.get("name", ["*"])
        rows = self.gateway.clusters.values()
        return ClusterList(tuple(row for row in rows if any(fnmatch.fnmatchcase(row.name, g) for g in globs)))

    def _plan(self, call: Call) -> Plan:
        from_wire(PlanRequest, call.json(), strict=True)
        return self.gateway.plan

    def _of_cluster(self, call: Call, parts: list[str]) -> None:
        gateway, name = self.gateway, parts[1]
        if name not in gateway.clusters:
            raise errors.ClusterDoesNotExist(f"Cluster {name!r} does not exist.", hint="sky status")
        if parts[2:] == ["jobs"]:
            self._json(JobList(tuple(gateway.jobs[name])))
        elif parts[2:] == ["jobs", "cancel"]:
            self._json(self._cancel(name, from_wire(CancelJobs, call.json(), strict=True)))
        elif parts[2:] == ["provision-logs"]:
            self._send(200, b"[provisioning] starting 1 node\n", "text/plain")
        elif parts[2] == "jobs" and parts[4:] == ["logs"]:
            self._log(call, name, int(parts[3]))
        elif parts[2] == "jobs" and parts[4:] == ["archive"]:
            self._send(200, gateway.archives[name, int(parts[3])], "application/x-tar")
        else:
            raise errors.NotFound(f"{call.path}: no such path")

    def _cancel(self, name: str, request: CancelJobs) -> CancelledJobs:
        done = []
        for index, job in enumerate(self.gateway.jobs[name]):
            if not job.status.is_final and (
                request.all or request.job_ids is None or job.job_id in request.job_ids
            ):
                self.gateway.jobs[name][index] = replace(job, status=JobStatus.CANCELLED)
                done.append(job.job_id)
        return CancelledJobs(tuple(done))

    def _log(self, call: Call, name: str, job_id: int) -> None:
        log = self.gateway.logs[name, job_id]
        offset = int(call.query.get("offset", ["0"])[0])
        tail = int(call.query.get("tail", ["0"])[0])
        if tail:
            lines = log.splitlines(keepends=True)
            offset = len(log) - sum(map(len, lines[-tail:]))
        self._stream(
            [log[offset:]], self.gateway.cut_log_after, "application/octet-stream", X_Log_Offset=str(offset)
        )

    def _operation(self, call: Call, parts: list[str]) -> None:
        operation = self.gateway.find_operation(parts[1])
        if parts[2:] == ["events"]:
            after = int(call.headers.get("last-event-id", "0"))
            rows = [event for event in self.gateway.events[operation.id] if event.seq > after]
            pieces = [b": keep-alive\n\n"]
            pieces += [b"id: %d\nevent: progress\ndata: %b\n\n" % (event.seq, dumps(event)) for event in rows]
            cut = self.gateway.cut_events_after
            limits = [sum(map(len, pieces[: cut.pop(0) + 1])) + 5] if cut else []
            self._stream(pieces, limits, "text/event-stream")
        elif parts[2:] == ["cancel"]:
            operation = replace(operation, status=OperationStatus.CANCELLED, cancel_requested=True)
            self.gateway.operations[operation.id] = operation
            self._json(operation)
        else:
            self._json(operation)

    def _stream(self, pieces: list[bytes], cuts: list[int], kind: str, **headers: str) -> None:
        """Chunked; the first number in `cuts` is after how many bytes the connection breaks."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        limit = cuts.pop(0) if cuts else None
        data = b"".join(pieces)
        for start in range(0, len(data if limit is None else data[:limit]), 1000):
            piece = (data if limit is None else data[:limit])[start : start + 1000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if limit is None:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True


def accelerators(call: Call) -> AcceleratorList:
    if "name" in call.query:
        offer = AcceleratorOffer(
            "A100", 8, "aws", "p4d.24xlarge", "us-east-1", 96, 1152, 40, 32.77, 9.83, "2026-01-01"
        )
        return AcceleratorList(offers=(offer,))
    return AcceleratorList(
        summaries=(
            AcceleratorSummary("A100", "common", (1, 2, 8)),
            AcceleratorSummary("tpu-v5e-8", "google_tpu", (1,)),
            AcceleratorSummary("Gaudi HL-205", "other", (8,)),
        )
    )


def a_dag_plan(request: DagPlanRequest, plan: Plan) -> DagPlan:
    """Every task on the first candidate, the last one on the second; nowhere where there is no candidate."""
    if not plan.candidates:
        return DagPlan(hints=("train: nothing offers A100:64",), rejected={"train": plan.rejected})
    last = len(request.tasks) - 1
    placements = tuple(
        Placement(
            task.name,
            plan.candidates[number == last],
            Breakdown(compute=1.5),
            number,
            number + 1.0,
            "near its data",
        )
        for number, task in enumerate(request.tasks)
    )
    transfers = tuple(Transfer(edge.source, edge.target, 10.0, 0.9, 0.5) for edge in request.edges)
    hints = ("the region of s3://raw is not known; name it in buckets",)
    return DagPlan(
        placements, transfers, "cost", 3.9, 2.0, Breakdown(3.0, egress=0.9), Proof(3.9, 3.9), hints=hints
    )


def a_plan() -> Plan:
    """Three clouds, the cheapest first."""
    rows = [
        ("kubernetes", "2CPU--8GB--1T4", "", 2, 8, 0.0),
        ("azure", "Standard_NC4as_T4_v3", "eastus", 4, 28, 0.53),
        ("gcp", "n1-highmem-4", "us-central1-a", 4, 26, 0.59),
    ]
    candidates = tuple(
        Candidate(
            Offer(cloud, kind, region=place or "kubernetes", vcpus=cpus, memory_gib=memory, accelerator="T4",
                  accelerator_count=1, price_per_hour=price),
            1, price,
        )
        for cloud, kind, place, cpus, memory, price in rows
    )  # fmt: skip
    return Plan(
        candidates, (Rejection("aws", "not_enabled", "AWS is not enabled"),), 4, total_cost_per_hour=0.0
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGateway]:
    """A running gateway that the client is pointed at, and a home of its own."""
    gateway = FakeGateway(plan=a_plan())
    handler = type("BoundHandler", (Handler,), {"gateway": gateway})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    gateway.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("SKYLOOM_API_SERVER_ENDPOINT", gateway.endpoint)
    monkeypatch.setenv("SKYLOOM_TOKEN", gateway.token)
    monkeypatch.setenv("SKYLOOM_HOME", str(tmp_path / "skyloom"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "ann")
    monkeypatch.chdir(tmp_path)
    yield gateway
    server.shutdown()
    server.server_close()
    thread.join(5)


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture
def sky() -> Callable[..., Ran]:
    """Runs a command line in this process."""
    from click.testing import CliRunner

    from sky.cli.app import cli

    def run(*words: str, stdin: str | None = None) -> Ran:
        result = CliRunner().invoke(cli, list(words), input=stdin)
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run
