"""Routes of clusters: the list, and every call that changes one (each answers with an operation)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from skyloom_common.contracts.clusters import (
    AutostopRequest,
    ClusterList,
    ExecRequest,
    LaunchRequest,
    MountRef,
    StartRequest,
    StopRequest,
)
from skyloom_common.contracts.http import IDEMPOTENCY_KEY
from skyloom_common.contracts.operations import Operation
from skyloom_common.contracts.task.model import AutostopSpec, TaskSpec
from skyloom_common.contracts.task.places import clouds_of
from skyloom_common.contracts.task.support import unsupported_at_exec, unsupported_at_launch
from skyloom_common.core.errors import ClusterDoesNotExist, ClusterNotUp, InvalidRequest, NotSupportedYet
from skyloom_common.core.names import check_cluster_name
from skyloom_common.core.wire import to_wire
from skyloom_common.service.auth import CurrentCaller
from skyloom_common.service.responses import JSON, wire_response
from skyloom_provisioner.api.docs import Answers
from skyloom_provisioner.api.service import Service
from skyloom_provisioner.decide.places import misplaced
from skyloom_provisioner.operations.rows import AUTOSTOP, DOWN, EXEC, LAUNCH, START, STOP
from skyloom_provisioner.operations.stopping import check_can_stop
from skyloom_provisioner.operations.store import NewOperation
from skyloom_provisioner.providers.base import features, shares_machine

Key = Annotated[str | None, Header(alias=IDEMPOTENCY_KEY, max_length=200)]


def router(service: Service, answers: Answers) -> APIRouter:
    routes = APIRouter(prefix="/v1/clusters", tags=["clusters"])
    intake = _Intake(service)
    _add_list(routes, service, answers)
    _add_runs(routes, intake, answers)
    _add_lifecycle(routes, intake, answers)
    return routes


def _add_list(routes: APIRouter, service: Service, answers: Answers) -> None:
    @routes.get("", **answers(ClusterList))
    async def clusters(
        caller: CurrentCaller,
        name: Annotated[list[str] | None, Query()] = None,
        all_users: bool = False,
        refresh: bool = False,
    ) -> Response:
        if refresh:
            for key in await service.parts.clusters.names():
                service.runner.wake(key)
        user = None if all_users or not caller.user else caller.user
        return Response(await service.snapshot.body(name or (), user), media_type=JSON)


def _add_runs(routes: APIRouter, intake: _Intake, answers: Answers) -> None:
    @routes.post("/{name}/launch", **answers(Operation, 202))
    async def launch(name: str, body: LaunchRequest, caller: CurrentCaller, key: Key = None) -> Response:
        intake.check_supported(body.task)
        intake.check_autostop(body.task.resources.cloud, body.autostop or body.task.resources.autostop)
        if body.clone_disk_from:
            raise NotSupportedYet(f"not supported yet: clone_disk_from ({body.clone_disk_from})")
        if body.resize:
            raise NotSupportedYet("not supported yet: resize")
        intake.check_places(clouds_of(body.task.resources), body.mounts)
        await intake.check_mounts(body.mounts)
        return await intake.accept(LAUNCH, name, caller.user, body, key, task=body.task)

    @routes.post("/{name}/exec", **answers(Operation, 202))
    async def execute(name: str, body: ExecRequest, caller: CurrentCaller, key: Key = None) -> Response:
        await intake.check_exists(name, needs_up=True)
        await intake.check_supported_here(name, body.task)
        await intake.check_mounts(tuple(mount for mount in body.mounts if mount.kind == "workdir"))
        return await intake.accept(EXEC, name, caller.user, body, key, task=body.task)


def _add_lifecycle(routes: APIRouter, intake: _Intake, answers: Answers) -> None:
    @routes.post("/{name}/start", **answers(Operation, 202))
    async def start(name: str, body: StartRequest, caller: CurrentCaller, key: Key = None) -> Response:
        await intake.check_exists(name)
        return await intake.accept(START, name, caller.user, body, key)

    @routes.post("/{name}/stop", **answers(Operation, 202))
    async def stop(name: str, body: StopRequest, caller: CurrentCaller, key: Key = None) -> Response:
        if body.purge:
            raise InvalidRequest("purge: true is for down only", hint=f"Use `sky down --purge {name}`.")
        await intake.check_exists(name)
        return await intake.accept(STOP, name, caller.user, body, key)

    @routes.post("/{name}/down", **answers(Operation, 202))
    async def down(name: str, body: StopRequest, caller: CurrentCaller, key: Key = None) -> Response:
        await intake.check_exists(name)
        return await intake.accept(DOWN, name, caller.user, body, key, purge=body.purge)

    @routes.post("/{name}/autostop", **answers(Operation, 202))
    async def autostop(name: str, body: AutostopRequest, caller: CurrentCaller, key: Key = None) -> Response:
        await intake.check_exists(name)
        return await intake.accept(AUTOSTOP, name, caller.user, body, key)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise NotSupportedYet("; ".join(problems), details={"problems": list(problems)})


class _Intake:
    """What is checked before intent is written. A mutation is never refused for what a queued operation may change."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._parts = service.parts

    def check_supported(self, task: TaskSpec) -> None:
        wanted = clouds_of(task.resources)
        providers = [one for one in self._parts.providers if wanted is None or one.name in wanted]
        able = {feature for provider in providers for feature in features(provider)}
        _refuse(unsupported_at_launch(task, features=able))

    async def check_supported_here(self, name: str, task: TaskSpec) -> None:
        """By the provider that the cluster is on; by all of them while it is only on its way."""
        state = await self._parts.clusters.find(check_cluster_name(name))
        offer = state.cluster.offer if state is not None else None
        providers = [one for one in self._parts.providers if offer is None or one.name == offer.cloud]
        able = {feature for provider in providers for feature in features(provider)}
        _refuse(unsupported_at_exec(task, features=able))

    def check_autostop(self, cloud: str | None, spec: AutostopSpec | None) -> None:
        if cloud in self._parts.providers.names() and spec is not None and spec.enabled and not spec.down:
            check_can_stop(self._parts.providers, str(cloud))

    def check_places(self, clouds: frozenset[str] | None, mounts: tuple[MountRef, ...]) -> None:
        providers = [one for one in self._parts.providers if clouds is None or one.name in clouds]
        confined = bool(providers) and all(shares_machine(one) for one in providers)
        problems = [
            misplaced(mount.destination, confined=confined) for mount in mounts if mount.kind != "workdir"
        ]
        found = [problem for problem in problems if problem]
        if found:
            raise InvalidRequest("; ".join(found), details={"field": "file_mounts"})

    async def check_mounts(self, mounts: tuple[MountRef, ...]) -> None:
        for mount in mounts:
            await asyncio.to_thread(self._parts.files.require, mount.manifest_id)

    async def check_exists(self, name: str, *, needs_up: bool = False) -> None:
        state = await self._parts.clusters.find(check_cluster_name(name))
        if state is not None and (state.cluster.is_up or not needs_up):
            return
        if await self._parts.operations.next_for(name) is not None:
            return  # the queue may bring it up before our turn comes
        if state is None:
            raise ClusterDoesNotExist(
                f"cluster {name!r} does not exist", hint="Run `sky status` to see which do."
            )
        raise ClusterNotUp(
            f"cluster {name!r} is {state.cluster.status}, exec needs it UP",
            hint=f"Run `sky start {name}`.",
            details={"status": state.cluster.status},
        )

    async def accept(
        self,
        kind: str,
        name: str,
        user: str,
        body: Any,
        key: str | None,
        *,
        task: TaskSpec | None = None,
        purge: bool = False,
    ) -> Response:
        deployment, sealed = self._parts.deployment, None
        fingerprint = deployment.fingerprint([kind, check_cluster_name(name), to_wire(body)])
        if task is not None and task.secrets:
            sealed = deployment.seal(task.secrets)
            body = replace(body, task=replace(task, secrets={}))
        new = NewOperation(
            kind, name, user, to_wire(body), fingerprint, sealed, key, purge, cancels_earlier=kind == DOWN
        )
        row, _ = await self._parts.operations.create(new)
        return wire_response(row.view(), 202)
