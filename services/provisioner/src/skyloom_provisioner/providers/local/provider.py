"""The local provider: an instance is a directory, its agent a detached process on its own loopback address.

`<home>/local/<id>/`: instance.json (the record: token, tags, address, state), agent.conf.json (0600), agent.log, home/.
The record appears together with its directory (by rename) and goes only after every process of the node is gone.
Nothing here survives in memory: any process with the same home sees the same instances.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from skyloom_common.contracts.agent import AgentConfig
from skyloom_common.contracts.plan import Offer
from skyloom_common.core import wire
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import (
    AgentUnreachable,
    InstanceNotFound,
    InsufficientCapacity,
    ProviderError,
    ProviderInvalidRequest,
)
from skyloom_provisioner.providers.base import (
    DEPLOYMENT_TAG,
    Check,
    Instance,
    InstanceRequest,
    InstanceStatus,
    OfferQuery,
)
from skyloom_provisioner.providers.local import addresses, processes
from skyloom_provisioner.providers.local.machine import Machine, detect
from skyloom_provisioner.providers.local.offers import offers_of
from skyloom_provisioner.providers.registry import ProviderContext

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NEW, _GONE = ".new-", ".gone-"
_KEPT_VARIABLES = re.compile(
    r"PATH|LANG|LC_.*|TZ|TMPDIR|USER|LOGNAME|SHELL|SSL_CERT_\w+|\w+_CA_BUNDLE|(?i:https?_proxy|no_proxy|all_proxy)"
)


def make(context: ProviderContext) -> LocalProvider:
    return LocalProvider(context.home / "local", context.clock, context.agent_bundle)


class LocalProvider:
    name = "local"
    listing_delay_seconds = 0.0
    has_price_list = False
    shares_machine = True

    def __init__(
        self,
        root: Path,
        clock: Clock,
        agent_bundle: Callable[[], Path],
        machine: Callable[[], Machine] = detect,
    ) -> None:
        self._root = root.absolute()
        self._clock = clock
        self._bundle = agent_bundle
        self._machine = machine

    async def check(self) -> Check:
        machine = self._machine()
        gpus = f", {machine.gpu_count}x {machine.gpu_name}" if machine.gpu_count else ""
        return Check(True, f"this machine: {machine.vcpus:g} CPUs, {machine.memory_gib:g} GiB{gpus}")

    async def offers(self, query: OfferQuery) -> Sequence[Offer]:
        return offers_of(self._machine(), query.resources)

    async def create(self, request: InstanceRequest) -> Instance:
        return await asyncio.to_thread(self._create, request)

    async def get(self, id: str) -> Instance:
        try:
            return _instance(self._record(id))
        except InstanceNotFound:
            await asyncio.to_thread(self._end, self._path(id))
            raise

    async def list(self, deployment: str) -> Sequence[Instance]:
        return await asyncio.to_thread(self._list, deployment)

    async def delete(self, id: str) -> None:
        await self.get(id)
        await asyncio.to_thread(self._delete, id)

    async def stop(self, id: str) -> None:
        await asyncio.to_thread(self._stop, id)

    async def start(self, id: str) -> None:
        self._write(self._path(id), {**self._record(id), "status": InstanceStatus.RUNNING.value})

    async def bootstrap(self, instance: Instance, config: AgentConfig) -> None:
        await asyncio.to_thread(self._bootstrap, instance, config)

    async def channel(self, instance: Instance) -> str:
        ready = self._path(instance.id) / "home" / ".sky" / "agent.json"
        try:
            shown = json.loads(ready.read_text())
        except (OSError, ValueError):
            shown = {}
        if not shown.get("url") or not processes.is_running(int(shown.get("pid", 0))):
            raise AgentUnreachable(
                f"{instance.id}: its agent is not running", details={"log": self._last_words(instance.id)}
            )
        return str(shown["url"])

    # --- records ---

    def _path(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise ProviderInvalidRequest(f"instance id: {id!r} is not one of the local provider's")
        return self._root / id

    def _record(self, id: str) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((self._path(id) / "instance.json").read_text())
        except FileNotFoundError:
            raise InstanceNotFound(f"instance {id} does not exist") from None
        return record

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        fresh = path / ".instance.json.new"
        with open(fresh, "w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path / "instance.json")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Between processes: while addresses are handed out and while leftovers are removed."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self._root / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _records(self) -> Sequence[dict[str, Any]]:
        found = []
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if not path.name.startswith("."):
                with contextlib.suppress(InstanceNotFound, ValueError):
                    found.append(self._record(path.name))
        return found

    def _list(self, deployment: str) -> Sequence[Instance]:
        if not self._root.is_dir():
            return []
        with self._locked():
            self._sweep()
        return [
            _instance(record)
            for record in self._records()
            if record["tags"].get(DEPLOYMENT_TAG) == deployment
        ]

    def _sweep(self) -> None:
        """What a crash in the middle of create or delete left: never a whole instance."""
        for path in self._root.iterdir():
            if path.name.startswith((_NEW, _GONE)) and path.is_dir():
                _remove_tree(path)

    # --- life ---

    def _create(self, request: InstanceRequest) -> Instance:
        digest = hashlib.sha256(request.token.encode()).hexdigest()[:8]
        id = f"{re.sub(r'[^A-Za-z0-9._-]', '-', request.name)[:100]}-{digest}"
        path = self._path(id)
        with self._locked():
            if path.exists():
                return _instance(self._record(id))
            record = self._new_record(id, request)
            fresh = self._root / f"{_NEW}{id}"
            shutil.rmtree(fresh, ignore_errors=True)
            (fresh / "home").mkdir(parents=True, mode=0o700)
            self._write(fresh, record)
            fresh.rename(path)
        return _instance(record)

    def _new_record(self, id: str, request: InstanceRequest) -> dict[str, Any]:
        others, offer, machine = self._records(), request.offer, self._machine()
        if (offer.vcpus or 0) > machine.vcpus or (offer.memory_gib or 0) > machine.memory_gib:
            raise ProviderInvalidRequest(f"this machine is smaller than {offer.instance_type}")
        return {
            "id": id,
            "token": request.token,
            "tags": dict(request.tags),
            "status": InstanceStatus.RUNNING.value,
            "created_at": self._clock.now(),
            "address": addresses.allocate(f"{self._root}/{id}", {other["address"] for other in others}),
            "cpus": offer.vcpus,
            "memory_gib": offer.memory_gib,
            "gpu_indices": _free_gpus(int(offer.accelerator_count), machine, others),
        }

    def _stop(self, id: str) -> None:
        record, path = self._record(id), self._path(id)
        self._write(path, {**record, "status": InstanceStatus.STOPPED.value})
        self._end(path)
        (path / "home" / ".sky" / "agent.json").unlink(missing_ok=True)

    def _delete(self, id: str) -> None:
        record, path = self._record(id), self._path(id)
        self._write(path, {**record, "status": InstanceStatus.TERMINATING.value})
        self._end(path)
        gone = self._root / f"{_GONE}{id}"
        with self._locked():
            path.rename(gone)
        _remove_tree(gone)

    def _end(self, path: Path) -> None:
        """Also where somebody removed the directory: an instance is not gone while a process of it lives."""
        if not processes.end_all(path):
            raise ProviderError(
                f"some processes of {path.name} do not end: {processes.node_processes(path)}",
                details={"provider_message": "processes survive SIGKILL"},
            )

    # --- agent ---

    def _bootstrap(self, instance: Instance, config: AgentConfig) -> None:
        """Does nothing where an agent runs or is about to, whoever started it: a process that was killed in here has."""
        path, record = self._path(instance.id), self._record(instance.id)
        if record["status"] != InstanceStatus.RUNNING.value:
            raise ProviderError(f"{instance.id} is {record['status']}; an agent needs it running")
        file = path / "agent.conf.json"
        if processes.runs_with(path, f"--config {file}"):
            return
        full = replace(
            config,
            home=str(path / "home"),
            listen_host=record["address"],
            cpus=record["cpus"],
            memory_gib=record["memory_gib"],
            gpus=len(record["gpu_indices"]),
            confine_to_home=True,
        )
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(wire.dumps(full))
        self._spawn(path, file, record)

    def _spawn(self, path: Path, config: Path, record: dict[str, Any]) -> None:
        """The shell ends at once, so that the agent is nobody's child here and outlives this process."""
        command = [sys.executable, "-I", str(self._bundle()), "--config", str(config)]
        script = '"$@" </dev/null >>agent.log 2>&1 &'
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *command],
            cwd=path,
            env=self._environment(path, record),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )
        if done.returncode != 0:
            raise ProviderError(
                f"{path.name}: the agent did not start: {done.stdout.decode(errors='replace')}"
            )

    def _environment(self, path: Path, record: dict[str, Any]) -> dict[str, str]:
        """Nothing of ours reaches the node: no token, no database address, no setting."""
        kept = {name: value for name, value in os.environ.items() if _KEPT_VARIABLES.fullmatch(name)}
        kept.update({"HOME": str(path / "home"), processes.NODE_VARIABLE: path.name})
        if self._machine().gpu_count:
            kept["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, record["gpu_indices"]))
        return kept

    def _last_words(self, id: str) -> str:
        with contextlib.suppress(OSError):
            return "\n".join((self._path(id) / "agent.log").read_text(errors="replace").splitlines()[-5:])
        return ""


def _instance(record: dict[str, Any]) -> Instance:
    return Instance(
        id=record["id"],
        status=InstanceStatus(record["status"]),
        tags=record["tags"],
        created_at=record["created_at"],
        address=record["address"],
    )


def _free_gpus(count: int, machine: Machine, others: Sequence[dict[str, Any]]) -> list[int]:
    taken = {index for other in others for index in other["gpu_indices"]}
    free = [index for index in machine.gpu_indices if index not in taken]
    if count > len(free):
        raise InsufficientCapacity(
            f"this machine has {len(free)} of {machine.gpu_count} GPUs free, {count} are asked for",
            details={"blocks": "cloud", "provider_message": f"GPUs in use: {sorted(taken)}"},
        )
    return free[:count]


def _remove_tree(path: Path) -> None:
    """Also what a task made unreadable or unwritable for its owner."""

    def open_up(function: Callable[..., Any], name: str, error: Any) -> None:
        parent = os.path.dirname(name)
        for blocked in (parent, name):
            with contextlib.suppress(OSError):
                if not os.path.islink(blocked):
                    os.chmod(blocked, stat.S_IRWXU)
        with contextlib.suppress(FileNotFoundError):
            if function is os.scandir or (os.path.isdir(name) and not os.path.islink(name)):
                shutil.rmtree(name)
            else:
                os.unlink(name)

    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path, onerror=open_up)
