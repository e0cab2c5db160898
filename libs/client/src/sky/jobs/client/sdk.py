"""The functions of sky.jobs; not supported yet."""

from __future__ import annotations

from sky.unsupported import later

launch = later("sky.jobs.launch")
queue = later("sky.jobs.queue")
queue_v2 = later("sky.jobs.queue_v2")
cancel = later("sky.jobs.cancel")
tail_logs = later("sky.jobs.tail_logs")
download_logs = later("sky.jobs.download_logs")
download_logs_streaming = later("sky.jobs.download_logs_streaming")
wait = later("sky.jobs.wait")
dashboard = later("sky.jobs.dashboard")
pool_apply = later("sky.jobs.pool_apply")
pool_down = later("sky.jobs.pool_down")
pool_status = later("sky.jobs.pool_status")
pool_tail_logs = later("sky.jobs.pool_tail_logs")
pool_sync_down_logs = later("sky.jobs.pool_sync_down_logs")
spot_launch, spot_queue, spot_cancel, spot_tail_logs = launch, queue, cancel, tail_logs
