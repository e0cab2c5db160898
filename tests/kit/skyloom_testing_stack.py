"""A whole local stack for one test, driven from outside as a person would: by the `sky` command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SKY = str(Path(sys.executable).with_name("sky"))


def wait_until(condition: Callable[[], Any], *, seconds: float = 30.0, what: str) -> Any:
    """The condition's first true value. The bound is an error, not a pace: the look itself is cheap."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@dataclass
class Stack:
    home: Path
    work: Path
    extra_env: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        keep = {
            name: os.environ[name]
            for name in ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE", "LD_LIBRARY_PATH", "PYTHONPATH")
            if name in os.environ
        }
        return {
            **keep,
            "HOME": str(self.work),
            "SKYLOOM_HOME": str(self.home),
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            **self.extra_env,
        }

    def sky(self, *args: str, code: int | None = 0, timeout: float = 90, stdin: str = "") -> str:
        """stdout of `sky ARGS`; the exit code must be `code` (None = any)."""
        done = subprocess.run(
            [SKY, *args],
            check=False,
            env=self.env,
            cwd=self.work,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if code is not None and done.returncode != code:
            raise AssertionError(
                f"sky {' '.join(args)}: exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}\n{self.server_log()}"
            )
        self.last_error = done.stderr
        return done.stdout

    def popen(self, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [SKY, *args],
            env=self.env,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def json(self, *args: str) -> Any:
        return json.loads(self.sky(*args, "-o", "json"))

    def cluster(self, name: str) -> dict[str, Any] | None:
        return next((row for row in self.json("status") if row["name"] == name), None)

    def jobs(self, cluster: str) -> list[dict[str, Any]]:
        """Newest first."""
        return sorted(self.json("queue", cluster)[cluster], key=lambda job: -int(job["job_id"]))

    def server(self) -> dict[str, Any]:
        return dict(json.loads((self.home / "api.json").read_text()))

    def server_log(self) -> str:
        path = self.home / "logs" / "server.log"
        return path.read_text()[-4000:] if path.exists() else ""

    def kill_server(self) -> None:
        """kill -9, and wait until it is gone."""
        process = psutil.Process(self.server()["pid"])
        process.kill()
        process.wait(10)

    def processes(self) -> list[psutil.Process]:
        """Everything alive that belongs to this stack: by its command line, environment or working directory."""
        found = []
        for process in psutil.process_iter():
            if process.pid != os.getpid() and _belongs(process, str(self.home)):
                found.append(process)
        return found

    def agents(self) -> list[psutil.Process]:
        """Those that end while we look do not count."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("--config" in part for part in process.cmdline()):
                    found.append(process)
        return found

    def node_dirs(self) -> list[Path]:
        root = self.home / "local"
        return [path for path in root.iterdir() if path.is_dir()] if root.exists() else []

    def close(self) -> None:
        subprocess.run(
            [SKY, "api", "stop"], env=self.env, cwd=self.work, capture_output=True, timeout=60, check=False
        )
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue


def _belongs(process: psutil.Process, home: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if any(home in part for part in process.cmdline()):
            return True
        return any(home in value for value in process.environ().values()) or process.cwd().startswith(home)
    except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
        return False
