"""The functions of sky.serve as coroutines; not supported yet."""

from __future__ import annotations

from sky.unsupported import later_async

up = later_async("sky.serve.up")
update = later_async("sky.serve.update")
down = later_async("sky.serve.down")
status = later_async("sky.serve.status")
terminate_replica = later_async("sky.serve.terminate_replica")
tail_logs = later_async("sky.serve.tail_logs")
sync_down_logs = later_async("sky.serve.sync_down_logs")
