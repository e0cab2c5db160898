"""The functions of sky.jobs as coroutines; not supported yet."""

from __future__ import annotations

from sky.unsupported import later_async

launch = later_async("sky.jobs.launch")
queue = later_async("sky.jobs.queue")
queue_v2 = later_async("sky.jobs.queue_v2")
cancel = later_async("sky.jobs.cancel")
tail_logs = later_async("sky.jobs.tail_logs")
download_logs = later_async("sky.jobs.download_logs")
wait = later_async("sky.jobs.wait")
dashboard = later_async("sky.jobs.dashboard")
