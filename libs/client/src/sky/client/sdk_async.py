"""The SDK as coroutines: the same names, but they return the final value instead of a request id.

Each call runs the synchronous SDK in a thread; with `stream_logs` (the default) its progress is printed meanwhile,
with `stream_logs=None` it only waits. Reading calls have nothing to stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from sky.client import sdk
from sky.client.sdk import Launched, WaitForLike
from sky.dag import Dag
from sky.enums import JobStatus, OptimizeTarget, StatusRefreshMode
from sky.records import (
    APIHealthResponse,
    ClusterHandle,
    ClusterJobRecord,
    InstanceTypeInfo,
    RequestRecord,
    StatusResponse,
)
from sky.request_id import RequestId
from sky.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class StreamConfig:
    """How to print a request's progress."""

    log_path: str | None = None
    tail: int | None = None
    follow: bool = True
    output_stream: IO[Any] | None = None


DEFAULT_STREAM = StreamConfig()


async def _finish(make: Callable[[], RequestId[T]], stream_logs: StreamConfig | None) -> T:
    def work() -> T:
        request = make()
        if stream_logs is None:
            return sdk.get(request)
        return sdk.stream_and_get(
            request, stream_logs.log_path, stream_logs.tail, stream_logs.follow, stream_logs.output_stream
        )

    return await asyncio.to_thread(work)


async def launch(
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
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> Launched:
    return await _finish(
        lambda: sdk.launch(
            task, cluster_name, retry_until_up, idle_minutes_to_autostop, wait_for, dryrun, down, backend,
            optimize_target, no_setup, clone_disk_from, fast, resize,
        ),
        stream_logs,
    )  # fmt: skip


async def exec(
    task: Task | Dag | Sequence[Task],
    cluster_name: str | None = None,
    dryrun: bool = False,
    down: bool = False,
    backend: Any = None,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> Any:
    return await _finish(lambda: sdk.exec(task, cluster_name, dryrun, down, backend), stream_logs)


async def status(
    cluster_names: str | Sequence[str] | None = None,
    refresh: StatusRefreshMode | bool = StatusRefreshMode.NONE,
    all_users: bool = False,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> list[StatusResponse]:
    return await _finish(lambda: sdk.status(cluster_names, refresh, all_users), stream_logs)


async def start(
    cluster_name: str,
    idle_minutes_to_autostop: int | None = None,
    wait_for: WaitForLike = None,
    retry_until_up: bool = False,
    down: bool = False,
    force: bool = False,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> ClusterHandle:
    return await _finish(
        lambda: sdk.start(cluster_name, idle_minutes_to_autostop, wait_for, retry_until_up, down, force),
        stream_logs,
    )


async def stop(
    cluster_name: str,
    purge: bool = False,
    graceful: bool = False,
    graceful_timeout: float | None = None,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> None:
    await _finish(lambda: sdk.stop(cluster_name, purge, graceful, graceful_timeout), stream_logs)


async def down(
    cluster_name: str,
    purge: bool = False,
    graceful: bool = False,
    graceful_timeout: float | None = None,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> None:
    await _finish(lambda: sdk.down(cluster_name, purge, graceful, graceful_timeout), stream_logs)


async def autostop(
    cluster_name: str,
    idle_minutes: int,
    wait_for: WaitForLike = None,
    down: bool = False,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> None:
    await _finish(lambda: sdk.autostop(cluster_name, idle_minutes, wait_for, down), stream_logs)


async def queue(
    cluster_name: str,
    skip_finished: bool = False,
    all_users: bool = False,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> list[ClusterJobRecord]:
    return await _finish(lambda: sdk.queue(cluster_name, skip_finished, all_users), stream_logs)


async def cancel(
    cluster_name: str,
    all: bool = False,
    all_users: bool = False,
    job_ids: Sequence[int] | None = None,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> None:
    await _finish(lambda: sdk.cancel(cluster_name, all, all_users, job_ids), stream_logs)


async def job_status(
    cluster_name: str, job_ids: Sequence[int] | None = None, stream_logs: StreamConfig | None = DEFAULT_STREAM
) -> dict[int, JobStatus | None]:
    return await _finish(lambda: sdk.job_status(cluster_name, job_ids), stream_logs)


async def endpoints(
    cluster: str, port: int | str | None = None, stream_logs: StreamConfig | None = DEFAULT_STREAM
) -> dict[int, str]:
    return await _finish(lambda: sdk.endpoints(cluster, port), stream_logs)


async def cost_report(
    days: int | None = None, stream_logs: StreamConfig | None = DEFAULT_STREAM
) -> list[dict[str, Any]]:
    return await _finish(lambda: sdk.cost_report(days), stream_logs)


async def optimize(
    dag: Dag,
    minimize: OptimizeTarget = OptimizeTarget.COST,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> Dag:
    return await _finish(lambda: sdk.optimize(dag, minimize), stream_logs)


async def check(
    infra_list: Sequence[str] | None = None,
    verbose: bool = False,
    workspace: str | None = None,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> dict[str, dict[str, list[str]]]:
    return await _finish(lambda: sdk.check(infra_list, verbose, workspace), stream_logs)


async def enabled_clouds(
    workspace: str | None = None, expand: bool = False, stream_logs: StreamConfig | None = DEFAULT_STREAM
) -> list[str]:
    return await _finish(lambda: sdk.enabled_clouds(workspace, expand), stream_logs)


async def list_accelerators(
    gpus_only: bool = True,
    name_filter: str | None = None,
    region_filter: str | None = None,
    quantity_filter: int | None = None,
    clouds: str | Sequence[str] | None = None,
    all_regions: bool = False,
    require_price: bool = True,
    case_sensitive: bool = True,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> dict[str, list[InstanceTypeInfo]]:
    return await _finish(
        lambda: sdk.list_accelerators(
            gpus_only,
            name_filter,
            region_filter,
            quantity_filter,
            clouds,
            all_regions,
            require_price,
            case_sensitive,
        ),
        stream_logs,
    )


async def list_accelerator_counts(
    gpus_only: bool = True,
    name_filter: str | None = None,
    region_filter: str | None = None,
    quantity_filter: int | None = None,
    clouds: str | Sequence[str] | None = None,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> dict[str, list[float]]:
    return await _finish(
        lambda: sdk.list_accelerator_counts(gpus_only, name_filter, region_filter, quantity_filter, clouds),
        stream_logs,
    )


async def tail_logs(
    cluster_name: str,
    job_id: int | None = None,
    follow: bool = True,
    tail: int = 0,
    output_stream: IO[Any] | None = None,
) -> int:
    """The exit code of the job, when its log has ended."""
    return await asyncio.to_thread(sdk.tail_logs, cluster_name, job_id, follow, tail, output_stream)


async def download_logs(cluster_name: str, job_ids: Sequence[int | str] | None = None) -> dict[str, str]:
    return await asyncio.to_thread(sdk.download_logs, cluster_name, job_ids)


async def get(request_id: str) -> Any:
    return await asyncio.to_thread(sdk.get, request_id)


async def stream_and_get(
    request_id: str | None = None,
    log_path: str | None = None,
    tail: int | None = None,
    follow: bool = True,
    output_stream: IO[Any] | None = None,
) -> Any:
    return await asyncio.to_thread(sdk.stream_and_get, request_id, log_path, tail, follow, output_stream)


async def api_status(
    request_ids: Sequence[str] | None = None,
    all_status: bool = False,
    limit: int | None = None,
    fields: Sequence[str] | None = None,
    cluster_name: str | None = None,
) -> list[RequestRecord]:
    return await asyncio.to_thread(sdk.api_status, request_ids, all_status, limit, fields, cluster_name)


async def api_cancel(
    request_ids: str | Sequence[str] | None = None,
    all_users: bool = False,
    silent: bool = False,
    stream_logs: StreamConfig | None = DEFAULT_STREAM,
) -> list[str]:
    return await _finish(lambda: sdk.api_cancel(request_ids, all_users, silent), stream_logs)


async def api_info() -> APIHealthResponse:
    return await asyncio.to_thread(sdk.api_info)


async def api_stop() -> None:
    await asyncio.to_thread(sdk.api_stop)


async def api_login(endpoint: str | None = None) -> None:
    await asyncio.to_thread(sdk.api_login, endpoint)


async def api_server_logs(follow: bool = True, tail: int | None = None) -> None:
    await asyncio.to_thread(sdk.api_server_logs, follow, tail)


async def dashboard(starting_page: str | None = None) -> None:
    from sky.unsupported import later

    later("sky.dashboard")()
