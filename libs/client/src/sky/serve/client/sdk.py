"""The functions of sky.serve; not supported yet."""

from __future__ import annotations

from sky.unsupported import later

up = later("sky.serve.up")
update = later("sky.serve.update")
down = later("sky.serve.down")
status = later("sky.serve.status")
terminate_replica = later("sky.serve.terminate_replica")
tail_logs = later("sky.serve.tail_logs")
sync_down_logs = later("sky.serve.sync_down_logs")
