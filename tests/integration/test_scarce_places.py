"""What one launch learns helps the next one, from outside: `sky` against a local server whose cloud sells out and takes back.

The cloud is a provider of its own distribution (an entry point): this machine, sold as spot capacity in two zones.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skyloom_testing_stack import Stack, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PLUGIN = """
import json
from dataclasses import replace

from skyloom_common.core.errors import InsufficientCapacity, QuotaExceeded
from skyloom_provisioner.providers.local.provider import LocalProvider

ERRORS = {"sold out": InsufficientCapacity, "quota": QuotaExceeded}


def make(context):
    return Bazaar(context.home / "local", context.clock, context.agent_bundle)


class Bazaar(LocalProvider):
    name = "bazaar"

    async def offers(self, query):
        whole = (await super().offers(query))[0]
        places = {"near-a": 0.10, "near-b": 0.11, "far-a": 0.12}
        return tuple(
            replace(whole, cloud=self.name, region=zone[:-2], zone=zone, instance_type="stall", use_spot=True,
                    price_per_hour=price)
            for zone, price in places.items()
        )

    async def create(self, request):
        zone = request.offer.zone
        with open(self._root.parent / "asked", "a") as asked:
            print(zone, file=asked)
        try:
            state = json.loads((self._root.parent / "bazaar.json").read_text()).get(zone)
        except FileNotFoundError:
            state = None
        if state:
            raise ERRORS[state](f"{zone}: {state}", details={"provider_message": f"{state} in {zone}"})
        return await super().create(request)
"""


@pytest.fixture
def bazaar(tmp_path: Path) -> Iterator[Stack]:
    plugin = tmp_path / "plugin"
    info = plugin / "bazaar-1.dist-info"
    info.mkdir(parents=True)
    (plugin / "bazaar.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bazaar\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[skyloom.providers]\nbazaar = bazaar:make\n")
    (tmp_path / "w").mkdir()
    stack = Stack(tmp_path / "h", tmp_path / "w", {"PYTHONPATH": str(plugin), "SKYLOOM_PROVIDERS": "bazaar"})
    stack.sky("api", "start")
    yield stack
    stack.close()


def asked(stack: Stack) -> list[str]:
    """The zones that the cloud was asked for since the last look."""
    path = stack.home / "asked"
    words = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return words


def outcomes(stack: Stack) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{stack.home}/db/optimizer.db?mode=ro", uri=True) as database:
        return database.execute(
            "SELECT zone, result, ran_seconds FROM launch_outcomes ORDER BY at, id"
        ).fetchall()


def test_the_next_user_does_not_begin_where_it_just_failed(bazaar: Stack) -> None:
    state = bazaar.home / "bazaar.json"
    state.write_text(json.dumps({"near-a": "sold out"}))
    bazaar.sky("launch", "-y", "-d", "--use-spot", "-c", "one", "echo one")
    assert asked(bazaar) == ["near-a", "near-b"]

    state.write_text("{}")  # there is room again, but nobody knows
    bazaar.sky("launch", "-y", "-d", "--use-spot", "-c", "two", "echo two")
    assert asked(bazaar) == ["near-b"]
    shown = bazaar.sky("launch", "--infra", "bazaar", "--use-spot", "--dryrun", "--explain", "echo three")
    assert "near-a" in shown and "fail" in shown and shown.index("near-b") < shown.index("near-a"), shown

    bazaar.sky("api", "stop")
    bazaar.sky("api", "start")
    bazaar.sky("launch", "-y", "-d", "--use-spot", "-c", "three", "echo three")
    assert asked(bazaar) == ["near-b"], "the memory did not outlive the server"
    bazaar.sky("down", "-y", "two")
    wait_until(
        lambda: (
            [row[:2] for row in outcomes(bazaar)]
            == [("near-a", "insufficient_capacity"), *[("near-b", "ok")] * 3, ("near-b", "ended")]
        ),
        what="every outcome is known",
    )


def test_a_machine_that_vanishes_is_an_interruption_there(bazaar: Stack) -> None:
    bazaar.sky("launch", "-y", "-d", "--use-spot", "-c", "one", "sleep 1000")
    assert asked(bazaar) == ["near-a"]
    (record,) = (bazaar.home / "local").glob("*/instance.json")
    pid = json.loads((record.parent / "home" / ".sky" / "agent.json").read_text())["pid"]
    shutil.move(record, record.with_suffix(".gone"))
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: [row[:2] for row in outcomes(bazaar)] == [("near-a", "ok"), ("near-a", "interrupted")],
        what="the interruption is known",
    )
    assert outcomes(bazaar)[1][2] > 0
    bazaar.sky("launch", "-y", "-d", "--use-spot", "-c", "two", "echo two")
    assert asked(bazaar) == ["near-b"]
