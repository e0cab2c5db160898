"""Everything of the balancer that talks to Redis: endpoint tables in, load reports out. Redis away costs news, never requests."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from skyloom_common.bus import Bus
from skyloom_common.contracts.endpoints import LOAD_KEY
from skyloom_common.core.wire import dumps
from skyloom_lb.endpoints.redis import RedisSource
from skyloom_lb.observe.reports import Reporter
from skyloom_lb.settings import Settings

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer

_KEEP_REPORTS = 1000
_log = logging.getLogger(__name__)


class RedisSide:
    def __init__(self, settings: Settings, balancer: Balancer) -> None:
        self.client = Redis.from_url(
            settings.redis_url,
            socket_timeout=2.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 1),
        )
        self.bus = Bus(settings.redis_url)
        self.source = RedisSource(self.client, self.bus, settings.redis_services, balancer.set_endpoints)
        name = settings.balancer or socket.gethostname()
        self._reporter = Reporter(balancer, f"{name}-{os.getpid()}")
        self.reports_lost = 0

    @property
    def trouble(self) -> str:
        return self.source.trouble

    @property
    def was_read(self) -> bool:
        return self.source.was_read

    async def first_read(self) -> None:
        """Bounded: without Redis the balancer starts all the same, and says so."""
        await self.source.read()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.source.run())
            tasks.create_task(self._report_forever())

    async def _report_forever(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self._report()

    async def _report(self) -> None:
        reports = self._reporter.reports(time.time(), time.monotonic())
        try:
            for report in reports:
                key = LOAD_KEY.format(service=report.service)
                await self.client.xadd(key, {"report": dumps(report)}, maxlen=_KEEP_REPORTS, approximate=True)
        except (RedisError, OSError, TimeoutError):
            self.reports_lost += len(reports)

    async def close(self) -> None:
        await self._report()  # the last second counts too
        await self.bus.close()
        await self.client.aclose()
