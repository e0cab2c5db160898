"""The SDK. Most functions return a RequestId at once; `get` or `stream_and_get` gives its value.

Reading calls (status, queue, cost_report, check, ...) are answered when they are made; `get` then only hands the answer out.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Literal, TypeVar, overload

from sky import request_id as ids
from sky.api import Gateway
from sky.client.results import result_of, wait_for
from sky.connect import connect
from sky.dag import Dag
from sky.enums import JobStatus, OptimizeTarget, StatusRefreshMode
from sky.exceptions import ClientError, NotSupportedError
from sky.naming import cluster_name as checked_name
from sky.records import (
    APIHealthResponse,
    ClusterHandle,
    ClusterJobRecord,
    InstanceTypeInfo,
    RequestRecord,
    StatusResponse,
    cost_record,
    health_record,
    job_record,
    request_record,
    status_record,
)
from sky.request_id import RequestId
from sky.task import Task
from skyloom_common.contracts.task.model import AutostopSpec, WaitFor

T = TypeVar("T")
Launched = tuple[int | None, ClusterHandle | None]
WaitForLike = WaitFor | str | None


def launch(
    task: Task | Dag,
    cluster_name: str | None = None,
    retry_until_up: bool = False,
    idle_minutes_to_autostop: int | None = None,
    wait_for: WaitForLike = None,
    dryrun: bool = False,
    down: bool = False,
    backend: Any = None,
    optimize_target: OptimizeTarget = OptimizeTarget.COST,
    no_setup: bool = False,
    clone_disk_from: str | None = None,
    fast: bool = False,
    resize: bool = False,
) -> RequestId[Launched]:
    """Runs a task on a cluster, made when it is not there. Value: (job id or None, handle)."""
    from sky import plans, uploads
    from skyloom_common.contracts.clusters import LaunchRequest

    _refuse_backend(backend)
    one = _only_task(task)
    one.validate()
    api = connect()
    if dryrun:
        plans.require_candidates(plans.make_plan(api, one.spec, objective=_objective(optimize_target)))
        return ids.resolved((None, None))
    request = LaunchRequest(
        task=one.spec,
        mounts=uploads.upload_mounts(api.transport, one.spec),
        autostop=_autostop(idle_minutes_to_autostop, down, wait_for),
        retry_until_up=retry_until_up,
        no_setup=no_setup,
        fast=fast,
        resize=resize,
        clone_disk_from=clone_disk_from,
        command=f"sky.launch({one.name or ''})",
    )
    return RequestId(api.launch(checked_name(cluster_name), request).id)


def exec(
    task: Task | Dag | Sequence[Task],
    cluster_name: str | None = None,
    dryrun: bool = False,
    down: bool = False,
    backend: Any = None,
    *,
    stream_logs: bool = False,
) -> RequestId[Any]:
    """Queues a task on a cluster that is up. Value: (job id, handle).

    A list is submitted in order and its value is a list. `stream_logs` follows each job's log to its end first.
    """
    _refuse_backend(backend)
    if down:
        raise NotSupportedError(
            "not supported yet: sky.exec(down=True); use sky.autostop(cluster, 0, down=True)"
        )
    if cluster_name is None:
        raise ValueError("sky.exec needs the name of a cluster that is up: cluster_name='...'.")
    api = connect()
    tasks = [_only_task(one) for one in task] if isinstance(task, (list, tuple)) else [_only_task(task)]  # type: ignore[arg-type]
    for one in tasks:
        one.validate(workdir_only=True)
    if dryrun:
        return ids.resolved((None, None))
    sent = [_exec_one(api, one, cluster_name) for one in tasks]
    if not isinstance(task, (list, tuple)):
        if stream_logs:
            _stream_jobs(api, cluster_name, sent)
        return RequestId(sent[0])
    if stream_logs:
        _stream_jobs(api, cluster_name, sent)
    return ids.resolved([result_of(api, wait_for(api, one)) for one in sent])


def _exec_one(api: Gateway, task: Task, cluster_name: str) -> str:
    from sky import uploads
    from skyloom_common.contracts.clusters import ExecRequest

    mounts = uploads.upload_mounts(api.transport, task.spec, workdir_only=True)
    request = ExecRequest(task=task.spec, mounts=mounts, command=f"sky.exec({task.name or ''})")
    return api.exec(checked_name(cluster_name), request).id


def _stream_jobs(api: Gateway, cluster_name: str, operations: Iterable[str]) -> None:
    for operation in operations:
        job_id, _ = result_of(api, wait_for(api, operation))
        tail_logs(cluster_name, job_id, follow=True)


def status(
    cluster_names: str | Sequence[str] | None = None,
    refresh: StatusRefreshMode | bool = StatusRefreshMode.NONE,
    all_users: bool = False,
) -> RequestId[list[StatusResponse]]:
    """Clusters, by names or globs; all when none is given."""
    names = [cluster_names] if isinstance(cluster_names, str) else list(cluster_names or ())
    force = refresh is True or refresh in (StatusRefreshMode.FORCE, StatusRefreshMode.AUTO)
    rows = connect().clusters(names, all_users=all_users, refresh=force)
    return ids.resolved([status_record(row) for row in rows])


def start(
    cluster_name: str,
    idle_minutes_to_autostop: int | None = None,
    wait_for: WaitForLike = None,
    retry_until_up: bool = False,
    down: bool = False,
    force: bool = False,
) -> RequestId[ClusterHandle]:
    """Starts a stopped cluster. Value: its handle."""
    from skyloom_common.contracts.clusters import StartRequest

    if down and idle_minutes_to_autostop is None:
        raise ValueError("sky.start: down=True needs idle_minutes_to_autostop.")
    request = StartRequest(_autostop(idle_minutes_to_autostop, down, wait_for), retry_until_up, force)
    return RequestId(connect().start(checked_name(cluster_name), request).id)


def stop(
    cluster_name: str, purge: bool = False, graceful: bool = False, graceful_timeout: float | None = None
) -> RequestId[None]:
    from skyloom_common.contracts.clusters import StopRequest

    request = StopRequest(purge, graceful, graceful_timeout)
    return RequestId(connect().stop(checked_name(cluster_name), request).id)


def down(
    cluster_name: str, purge: bool = False, graceful: bool = False, graceful_timeout: float | None = None
) -> RequestId[None]:
    from skyloom_common.contracts.clusters import StopRequest

    request = StopRequest(purge, graceful, graceful_timeout)
    return RequestId(connect().down(checked_name(cluster_name), request).id)


def autostop(
    cluster_name: str,
    idle_minutes: int,
    wait_for: WaitForLike = None,
    down: bool = False,
    hook: str | None = None,
    hook_timeout: int | None = None,
) -> RequestId[None]:
    """Stops (or tears down) after so many idle minutes; a negative number cancels."""
    from skyloom_common.contracts.clusters import AutostopRequest

    spec = None
    if idle_minutes >= 0:
        spec = AutostopSpec(
            idle_minutes=idle_minutes,
            down=down,
            wait_for=_wait_for(wait_for),
            hook=hook,
            hook_timeout=hook_timeout,
        )
    return RequestId(connect().autostop(checked_name(cluster_name), AutostopRequest(spec)).id)


# --- jobs on a cluster ---


def queue(
    cluster_name: str, skip_finished: bool = False, all_users: bool = False
) -> RequestId[list[ClusterJobRecord]]:
    jobs = sorted(connect().jobs(checked_name(cluster_name)), key=lambda job: -job.job_id)
    return ids.resolved([job_record(job) for job in jobs if not (skip_finished and job.status.is_final)])


def cancel(
    cluster_name: str,
    all: bool = False,
    all_users: bool = False,
    job_ids: Sequence[int] | None = None,
) -> RequestId[None]:
    """The given jobs, all of mine, everyone's; None of these: the latest that runs."""
    from skyloom_common.contracts.jobs import CancelJobs

    api = connect()
    user = api.info().user or None if all and not all_users else None
    jobs = None if job_ids is None else tuple(job_ids)
    api.cancel_jobs(checked_name(cluster_name), CancelJobs(jobs, all or all_users, user))
    return ids.resolved(None)


def job_status(
    cluster_name: str, job_ids: Sequence[int] | None = None
) -> RequestId[dict[int, JobStatus | None]]:
    """Job id to status, None for a job that is not there; of the latest job when no ids are given."""
    known = {job.job_id: job.status for job in connect().jobs(checked_name(cluster_name))}
    wanted = [max(known)] if job_ids is None and known else list(job_ids or ())
    return ids.resolved({job_id: known.get(job_id) for job_id in wanted})


@overload
def tail_logs(
    cluster_name: str,
    job_id: int | None = ...,
    follow: bool = ...,
    tail: int = ...,
    output_stream: IO[Any] | None = ...,
    *,
    preload_content: Literal[True] = True,
) -> int: ...
@overload
def tail_logs(
    cluster_name: str,
    job_id: int | None = ...,
    follow: bool = ...,
    tail: int = ...,
    output_stream: IO[Any] | None = ...,
    *,
    preload_content: Literal[False],
) -> Iterator[str]: ...
def tail_logs(
    cluster_name: str,
    job_id: int | None = None,
    follow: bool = True,
    tail: int = 0,
    output_stream: IO[Any] | None = None,
    *,
    preload_content: bool = True,
) -> int | Iterator[str]:  # fmt: skip
    """The job's log (the latest job's) into `output_stream` or stdout; its exit code: 0, 100, 101, 102 or 103.

    With `preload_content=False` an iterator of its lines instead.
    """
    from sky.client import logs

    return logs.tail(
        connect(), checked_name(cluster_name), job_id, follow, tail, output_stream, preload_content
    )


def tail_provision_logs(
    cluster_name: str,
    worker: int | None = None,
    follow: bool = True,
    tail: int = 0,
    output_stream: IO[Any] | None = None,
) -> int:
    """What making the cluster said; 0."""
    from sky.client import logs

    return logs.provision(connect(), checked_name(cluster_name), worker, follow, tail, output_stream)


def download_logs(cluster_name: str, job_ids: Sequence[int | str] | None = None) -> dict[str, str]:
    """Saves logs under ~/sky_logs; job id to directory. Without ids, the latest job's."""
    from sky import archives

    api = connect()
    name = checked_name(cluster_name)
    wanted = list(job_ids or ())
    if not wanted:
        jobs = api.jobs(name)
        wanted = [max(job.job_id for job in jobs)] if jobs else []
    return {str(job_id): str(archives.download(api, name, int(job_id))) for job_id in wanted}


def endpoints(cluster: str, port: int | str | None = None) -> RequestId[dict[int, str]]:
    """Port to URL."""
    from sky.exceptions import ClusterDoesNotExist, PortDoesNotExistError

    row = connect().cluster(checked_name(cluster))
    if row is None:
        raise ClusterDoesNotExist(f"Cluster {cluster!r} does not exist.", hint="sky status")
    found = {int(number): url for number, url in row.endpoints.items()}
    if port is not None:
        if int(port) not in found:
            raise PortDoesNotExistError(
                f"Cluster {cluster!r} has no endpoint for port {port}; it has {sorted(found)}."
            )
        found = {int(port): found[int(port)]}
    return ids.resolved(found)


def cost_report(days: int | None = None) -> RequestId[list[dict[str, Any]]]:
    return ids.resolved([cost_record(row) for row in connect().cost_report(days).rows])


# --- planning and infrastructure ---


def optimize(
    dag: Dag, minimize: OptimizeTarget = OptimizeTarget.COST, admin_policy_request_options: Any = None
) -> RequestId[Dag]:
    """Value: the Dag, each of its tasks with `best_resources`."""
    from sky import plans

    api, objective = connect(), _objective(minimize)
    if len(dag.tasks) > 1:
        plans.place_together(api, dag, objective)
    for task in dag.tasks if len(dag.tasks) == 1 else ():
        plan = plans.make_plan(api, task.spec, objective=objective)
        plans.require_candidates(plan)
        task.best_resources = plans.resources_of(plan.candidates[0])
    return ids.resolved(dag)


def validate(dag: Dag | Task, workdir_only: bool = False, admin_policy_request_options: Any = None) -> None:
    """Raises on a wrong Dag."""
    if isinstance(dag, Task):
        dag.validate(workdir_only=workdir_only)
        return
    for task in dag.order():
        task.validate(workdir_only=workdir_only)


def check(
    infra_list: Sequence[str] | None = None, verbose: bool = False, workspace: str | None = None
) -> RequestId[dict[str, dict[str, list[str]]]]:
    """Value: workspace to cloud to what it can be used for."""
    found = connect().infra([name.lower() for name in infra_list or ()])
    enabled = {item.name: list(item.capabilities) for item in found if item.enabled}
    return ids.resolved({workspace or "default": enabled})


def enabled_clouds(workspace: str | None = None, expand: bool = False) -> RequestId[list[str]]:
    return ids.resolved([item.name for item in connect().infra() if item.enabled])


def list_accelerators(
    gpus_only: bool = True,
    name_filter: str | None = None,
    region_filter: str | None = None,
    quantity_filter: int | None = None,
    clouds: str | Sequence[str] | None = None,
    all_regions: bool = False,
    require_price: bool = True,
    case_sensitive: bool = True,
) -> RequestId[dict[str, list[InstanceTypeInfo]]]:
    """Accelerator name to offers. `name_filter` is a regular expression."""
    from sky import catalog

    return ids.resolved(
        catalog.list_accelerators(
            gpus_only,
            name_filter,
            region_filter,
            quantity_filter,
            clouds,
            all_regions,
            require_price,
            case_sensitive,
        )
    )


def list_accelerator_counts(
    gpus_only: bool = True,
    name_filter: str | None = None,
    region_filter: str | None = None,
    quantity_filter: int | None = None,
    clouds: str | Sequence[str] | None = None,
) -> RequestId[dict[str, list[float]]]:
    from sky import catalog

    return ids.resolved(catalog.accelerator_counts(gpus_only, name_filter, quantity_filter, clouds))


# --- requests ---


@overload
def get(request_id: RequestId[T]) -> T: ...
@overload
def get(request_id: str) -> Any: ...
def get(request_id: str) -> Any:
    """Waits for a request (an id, or a unique prefix of one) and returns its value, or raises its error."""
    if ids.is_local(request_id):
        return ids.local_value(request_id)
    api = connect()
    return result_of(api, wait_for(api, request_id))


@overload
def stream_and_get(
    request_id: RequestId[T],
    log_path: str | None = ...,
    tail: int | None = ...,
    follow: bool = ...,
    output_stream: IO[Any] | None = ...,
    relay_rich_status: bool = ...,
) -> T: ...
@overload
def stream_and_get(
    request_id: str | None = ...,
    log_path: str | None = ...,
    tail: int | None = ...,
    follow: bool = ...,
    output_stream: IO[Any] | None = ...,
    relay_rich_status: bool = ...,
) -> Any: ...
def stream_and_get(
    request_id: str | None = None,
    log_path: str | None = None,
    tail: int | None = None,
    follow: bool = True,
    output_stream: IO[Any] | None = None,
    relay_rich_status: bool = False,
) -> Any:  # fmt: skip
    """As `get`, printing the request's progress meanwhile. Without an id, the newest request.

    With `follow=False`: None when it has not ended.
    """
    if log_path is not None:
        raise NotSupportedError("not supported yet: sky.stream_and_get(log_path=...)")
    if request_id is not None and ids.is_local(request_id):
        return ids.local_value(request_id)
    api = connect()
    if request_id is None:
        newest = api.operations(all_status=True, limit=1)
        if not newest:
            raise ClientError("There is no request to stream.")
        request_id = newest[0].id
    operation = api.operation(request_id)
    if not follow and not operation.status.is_final:
        return None
    stream = output_stream or sys.stdout
    return result_of(
        api, wait_for(api, operation.id, on_line=lambda line: print(line, file=stream), tail=tail)
    )


def api_status(
    request_ids: Sequence[str] | None = None,
    all_status: bool = False,
    limit: int | None = None,
    fields: Sequence[str] | None = None,
    cluster_name: str | None = None,
) -> list[RequestRecord]:
    api = connect()
    if request_ids is not None:
        rows = [api.operation(one) for one in request_ids]
    else:
        rows = list(api.operations(all_status=all_status, limit=limit, cluster=cluster_name))
    found = [request_record(row) for row in rows]
    return [RequestRecord({name: row.get(name) for name in fields}) for row in found] if fields else found


def api_cancel(
    request_ids: str | Sequence[str] | None = None, all_users: bool = False, silent: bool = False
) -> RequestId[list[str]]:
    """Cancels requests (prefixes will do), by default all of mine. Value: the ids that were cancelled."""
    api = connect()
    if request_ids is None:
        me = api.info().user
        wanted = [row.id for row in api.operations() if all_users or not me or row.user == me]
    else:
        wanted = [request_ids] if isinstance(request_ids, str) else list(request_ids)
    done = [api.cancel_operation(one) for one in wanted if not ids.is_local(one)]
    return ids.resolved([row.id for row in done if row.cancel_requested or row.status.value == "CANCELLED"])


def api_info() -> APIHealthResponse:
    return health_record(connect().info())


def api_login(
    endpoint: str | None = None,
    relogin: bool = False,
    service_account_token: str | None = None,
    no_browser: bool = False,
) -> None:
    """Uses this server from now on; its address and token are kept in the user's configuration."""
    from sky import login

    if endpoint is None:
        raise ValueError("sky.api_login needs the server's endpoint: http(s)://host[:port].")
    login.login(endpoint, service_account_token)


def api_logout() -> None:
    from sky import login

    login.logout()


def api_start(
    *,
    deploy: bool = False,
    host: str = "127.0.0.1",
    foreground: bool = False,
    metrics: bool = False,
    metrics_port: int | None = None,
    enable_basic_auth: bool = False,
    port: int | None = None,
) -> None:
    """Starts the local server; returns when it answers (with `foreground`: when it has ended)."""
    from sky import stack

    if host not in ("127.0.0.1", "localhost", "::1") and not deploy:
        raise ValueError(f"sky.api_start: host {host!r} is reached from other machines; say deploy=True too.")
    arguments = ["--host", "0.0.0.0" if deploy and host == "127.0.0.1" else host] if deploy else []
    arguments += ["--port", str(port)] if port is not None else []
    if foreground:
        stack.require_installed()
        stack.run_in_foreground(arguments)
    else:
        stack.start(arguments)


def api_stop() -> None:
    from sky import stack

    stack.stop()


def api_server_logs(follow: bool = True, tail: int | None = None) -> None:
    from sky.client import logs

    logs.server(connect(), follow, tail)


def reload_config() -> None:
    """Configuration is read at every call: there is nothing to reload."""


# --- inside ---


def _only_task(task: Task | Dag) -> Task:
    if isinstance(task, Dag):
        if len(task.tasks) != 1:
            raise ValueError(
                f"A Dag with {len(task.tasks)} tasks is for sky.jobs.launch; here it is exactly one."
            )
        return task.tasks[0]
    if not isinstance(task, Task):
        raise TypeError(f"{task!r} is neither a sky.Task nor a sky.Dag.")
    return task


def _refuse_backend(backend: Any) -> None:
    if backend is not None:
        raise NotSupportedError("not supported yet: backend")


def _objective(target: OptimizeTarget) -> str:
    return "time" if target is OptimizeTarget.TIME else "cost"


def _wait_for(value: WaitForLike) -> WaitFor:
    return WaitFor.JOBS_AND_SSH if value is None else WaitFor(str(getattr(value, "value", value)).lower())


def _autostop(minutes: int | None, down: bool, wait_for: WaitForLike) -> AutostopSpec | None:
    if minutes is None and not down:
        if wait_for is not None:
            raise ValueError("wait_for says what idle means; it needs idle_minutes_to_autostop or down=True.")
        return None
    count = 0 if minutes is None else minutes
    return AutostopSpec(
        enabled=count >= 0, idle_minutes=builtins.max(0, count), down=down, wait_for=_wait_for(wait_for)
    )


__all__ = [
    "api_cancel", "api_info", "api_login", "api_logout", "api_server_logs", "api_start", "api_status", "api_stop",
    "autostop", "cancel", "check", "cost_report", "down", "download_logs", "enabled_clouds", "endpoints", "exec",
    "get", "job_status", "launch", "list_accelerator_counts", "list_accelerators", "optimize", "queue",
    "reload_config", "start", "status", "stop", "stream_and_get",
    "tail_logs", "tail_provision_logs", "validate",
]  # fmt: skip
