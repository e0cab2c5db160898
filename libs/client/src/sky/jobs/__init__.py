"""sky.jobs: managed jobs and pools. Named here so that programs can be written; not supported yet."""

from __future__ import annotations

from sky.jobs.client.sdk import (
    cancel,
    dashboard,
    download_logs,
    download_logs_streaming,
    launch,
    pool_apply,
    pool_down,
    pool_status,
    pool_sync_down_logs,
    pool_tail_logs,
    queue,
    queue_v2,
    spot_cancel,
    spot_launch,
    spot_queue,
    spot_tail_logs,
    tail_logs,
    wait,
)

__all__ = [
    "cancel", "dashboard", "download_logs", "download_logs_streaming", "launch", "pool_apply", "pool_down",
    "pool_status", "pool_sync_down_logs", "pool_tail_logs", "queue", "queue_v2", "spot_cancel", "spot_launch",
    "spot_queue", "spot_tail_logs", "tail_logs", "wait",
]  # fmt: skip
