"""What holds for every test of the repository, whichever member it lies in.

A test run never reads or writes the developer's own home, settings or servers, and a unit test never
reaches a network beyond loopback.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Whoever wants the suite on a real server says so by SKYLOOM_TEST_*; a DATABASE_URL may be a production one.
SETTINGS = ("SKYLOOM_", "SKYPILOT_", "SKY_")
SERVERS = ("DATABASE_URL", "REDIS_URL")
# A worker of a spread run is started by a process whose HOME is the test home already.
REAL_HOME = Path(os.environ.setdefault("SKYLOOM_TEST_REAL_HOME", str(Path.home())))

settings.register_profile("skyloom", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("skyloom")


def _is_setting(name: str) -> bool:
    return name in SERVERS or (name.startswith(SETTINGS) and not name.startswith("SKYLOOM_TEST_"))


def pytest_configure(config: pytest.Config) -> None:
    """The environment changes before any test module is imported, and for child processes too."""
    home = Path(tempfile.mkdtemp(prefix="skyloom-home-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    for name in [name for name in os.environ if _is_setting(name)]:
        del os.environ[name]
    os.environ["HOME"] = str(home)
    os.environ["SKYLOOM_HOME"] = str(home / ".skyloom")


@pytest.fixture(scope="session")
def developer_home() -> Path:
    """The home of the person who runs the tests, to look for interpreters in; never write there."""
    return REAL_HOME


def _is_local(sock: socket.socket, address: Any) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0])
    return host in ("localhost", "::1", "0.0.0.0", "::", "") or host.startswith("127.")


@pytest.fixture(autouse=True)
def _loopback_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.node.get_closest_marker("integration") is None:
        connect = socket.socket.connect

        def guarded(sock: socket.socket, address: Any) -> None:
            if not _is_local(sock, address):
                raise RuntimeError(f"A unit test tried to reach {address!r}; only loopback is allowed.")
            connect(sock, address)

        monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
