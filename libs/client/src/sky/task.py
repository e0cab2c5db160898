"""sky.Task: what to run, with what, on what. A mutable front of the frozen TaskSpec that is sent; setters return self."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sky.dag import Dag, current_dag
from sky.resources import Resources
from sky.specs import check_task, parse_file, parse_task
from sky.storage import Storage
from skyloom_common.contracts.task.model import ResourcesSpec, StorageSpec, TaskSpec

Script = str | Sequence[str]
AnyResources = Resources | Iterable[Resources] | Mapping[str, Any]


class Task:
    """Keywords take what the YAML takes; `env_vars` is another name of `envs`."""

    def __init__(
        self,
        name: str | None = None,
        *,
        setup: Script | None = None,
        run: Script | None = None,
        envs: Mapping[str, str | None] | None = None,
        secrets: Mapping[str, str | None] | None = None,
        workdir: str | Mapping[str, str] | None = None,
        num_nodes: int | None = None,
        file_mounts: Mapping[str, Any] | None = None,
        storage_mounts: Mapping[str, Any] | None = None,
        volumes: Mapping[str, Any] | None = None,
        resources: AnyResources | None = None,
        docker_image: str | None = None,
        event_callback: str | None = None,
        blocked_resources: Iterable[Resources] | None = None,
        api_server_access: bool = True,
        env_vars: Mapping[str, str | None] | None = None,
    ) -> None:
        if envs is not None and env_vars is not None:
            raise ValueError("envs and env_vars are the same thing; give envs only.")
        config = {
            "name": name, "setup": _script(setup, "setup"), "run": _script(run, "run"), "envs": envs or env_vars,
            "secrets": secrets, "workdir": workdir, "num_nodes": num_nodes, "event_callback": event_callback,
            "file_mounts": {**_mounts(file_mounts), **_mounts(storage_mounts)} or None, "volumes": volumes,
            "api_server_access": None if api_server_access else False,
        }  # fmt: skip
        self._init(parse_task({key: value for key, value in config.items() if value is not None}))
        self.blocked_resources += blocked_resources or ()
        if resources is not None:
            self.set_resources(resources)
        if docker_image is not None:
            self.set_resources_override({"image_id": f"docker:{docker_image.removeprefix('docker:')}"})

    def _init(self, spec: TaskSpec) -> None:
        self._spec = spec
        self.best_resources: Resources | None = None
        self.blocked_resources: list[Resources] = []
        self.metadata: dict[str, Any] = {}
        self._estimator: Callable[[Resources], float] | None = None
        dag = current_dag()
        if dag is not None:
            dag.add(self)

    # --- in and out ---

    @classmethod
    def of(cls, spec: TaskSpec) -> Task:
        """A task around a contract."""
        task = cls.__new__(cls)
        task._init(spec)
        return task

    @classmethod
    def from_yaml(cls, yaml_path: str) -> Task:
        """The one task of a file."""
        return cls._only(parse_file(Path(yaml_path).expanduser()).tasks, yaml_path)

    @classmethod
    def from_yaml_str(cls, yaml_str: str, **overrides: Any) -> Task:
        return cls._only(parse_file(yaml_str.encode(), **overrides).tasks, "the text")

    @classmethod
    def from_yaml_config(
        cls,
        config: Mapping[str, Any],
        env_overrides: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        secrets_overrides: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    ) -> Task:
        return cls.of(
            parse_task(
                config,
                env_overrides=dict(env_overrides or {}),
                secret_overrides=dict(secrets_overrides or {}),
            )
        )

    @classmethod
    def _only(cls, tasks: Sequence[TaskSpec], where: str) -> Task:
        if len(tasks) != 1:
            raise ValueError(f"{where} holds {len(tasks)} tasks; sky.Task is one of them.")
        return cls.of(tasks[0])

    def to_yaml_config(self, redact_secrets: bool = False) -> dict[str, Any]:
        from skyloom_common.contracts.task.write import task_to_yaml_config

        return task_to_yaml_config(self._spec, redact=redact_secrets)

    @property
    def spec(self) -> TaskSpec:
        """The contract that is sent."""
        return self._spec

    def validate(self, workdir_only: bool = False) -> None:
        """Paths, name, variables and resources; raises InvalidSkyPilotConfigError with every problem."""
        check_task(self._spec, workdir_only=workdir_only)

    # --- resources ---

    @property
    def resources(self) -> set[Resources] | list[Resources]:
        """The alternatives: a list in order of preference, else a set."""
        spec = self._spec.resources
        if spec.ordered:
            return [Resources._of(one) for one in spec.ordered]
        if spec.any_of:
            return {Resources._of(one) for one in spec.any_of}
        return {Resources._of(spec)}

    def set_resources(self, resources: AnyResources) -> Task:
        """One Resources; a list or tuple (tried in order); a set (the cheapest wins); a mapping as in YAML."""
        if isinstance(resources, Resources):
            spec = resources.spec
        elif isinstance(resources, Mapping):
            spec = parse_task({"resources": dict(resources)}).resources
        else:
            spec = _alternatives(resources)
        self._spec = replace(self._spec, resources=spec)
        self._take_hooks(resources)
        return self

    def _take_hooks(self, resources: AnyResources) -> None:
        every = (
            [resources]
            if isinstance(resources, Resources)
            else []
            if isinstance(resources, Mapping)
            else resources
        )
        hooks = [hook for one in every for hook in one.hooks]
        if hooks:
            self._update({"config": {**self._spec.config, "hooks": hooks}})

    def set_resources_override(self, override_params: Mapping[str, Any]) -> Task:
        """Patches every alternative."""
        patched = [one.copy(**override_params) for one in self.resources]
        if len(patched) == 1:
            return self.set_resources(patched[0])
        return self.set_resources(patched if isinstance(self.resources, list) else set(patched))

    @property
    def use_spot(self) -> bool:
        return any(one.use_spot for one in self.resources)

    # --- the other fields ---

    @property
    def name(self) -> str | None:
        return self._spec.name

    @name.setter
    def name(self, value: str | None) -> None:
        self._update({"name": value})

    @property
    def setup(self) -> str | None:
        return self._spec.setup

    @setup.setter
    def setup(self, value: Script | None) -> None:
        self._update({"setup": _script(value, "setup")})

    @property
    def run(self) -> str | None:
        return self._spec.run

    @run.setter
    def run(self, value: Script | None) -> None:
        self._update({"run": _script(value, "run")})

    @property
    def num_nodes(self) -> int:
        return self._spec.num_nodes

    @num_nodes.setter
    def num_nodes(self, value: int | None) -> None:
        self._update({"num_nodes": 1 if value is None else value})

    @property
    def workdir(self) -> Any:
        return self.to_yaml_config().get("workdir")

    @property
    def envs(self) -> dict[str, str]:
        return {name: value for name, value in self._spec.envs.items() if value is not None}

    @property
    def secrets(self) -> dict[str, str]:
        """Masked: what is secret cannot be printed from here."""
        return dict.fromkeys(self._spec.secrets, "<redacted>")

    @property
    def envs_and_secrets(self) -> dict[str, str]:
        return {
            **self.envs,
            **{name: value for name, value in self._spec.secrets.items() if value is not None},
        }

    @property
    def volumes(self) -> dict[str, Any]:
        return dict(self.to_yaml_config().get("volumes") or {})

    @property
    def file_mounts(self) -> dict[str, str] | None:
        return {path: one for path, one in self._spec.file_mounts.items() if isinstance(one, str)} or None

    @property
    def storage_mounts(self) -> dict[str, Storage]:
        config = self.to_yaml_config().get("file_mounts") or {}
        found = {path for path, one in self._spec.file_mounts.items() if isinstance(one, StorageSpec)}
        return {path: Storage.from_yaml_config(config[path]) for path in found}

    @property
    def service(self) -> Any:
        return self._spec.service

    @property
    def event_callback(self) -> str | None:
        return self._spec.event_callback

    def set_service(self, service: Any) -> Task:
        """A service block as a mapping, or an object with `to_yaml_config`."""
        config = service.to_yaml_config() if hasattr(service, "to_yaml_config") else service
        return self._update({"service": config})

    def update_envs(self, envs: Mapping[str, str] | Iterable[tuple[str, str]] | None) -> Task:
        return self._update({"envs": {**self._spec.envs, **dict(envs or {})}})

    def update_secrets(self, secrets: Mapping[str, str] | Iterable[tuple[str, str]] | None) -> Task:
        return self._update({"secrets": {**self._spec.secrets, **dict(secrets or {})}})

    def update_workdir(
        self, workdir: str | None = None, git_url: str | None = None, git_ref: str | None = None
    ) -> Task:
        if git_url is not None:
            if workdir is not None:
                raise ValueError("workdir and git_url are two places for one thing; give one of them.")
            return self._update({"workdir": {"url": git_url, **({"ref": git_ref} if git_ref else {})}})
        return self if workdir is None else self._update({"workdir": workdir})

    def set_file_mounts(self, file_mounts: Mapping[str, str] | None) -> Task:
        kept = {path: storage.to_yaml_config() for path, storage in self.storage_mounts.items()}
        return self._update({"file_mounts": {**kept, **_mounts(file_mounts)}})

    def update_file_mounts(self, file_mounts: Mapping[str, str]) -> Task:
        return self.set_file_mounts({**(self.file_mounts or {}), **file_mounts})

    def set_storage_mounts(self, storage_mounts: Mapping[str, Storage | str] | None) -> Task:
        """Storage objects; a plain URI is the storage of that bucket."""
        return self._update(
            {"file_mounts": {**(self.file_mounts or {}), **_mounts(storage_mounts, wrap=True)}}
        )

    def update_storage_mounts(self, storage_mounts: Mapping[str, Storage | str]) -> Task:
        return self.set_storage_mounts({**self.storage_mounts, **storage_mounts})

    def set_volumes(self, volumes: Mapping[str, Any] | None) -> Task:
        return self._update({"volumes": dict(volumes or {})})

    def update_volumes(self, volumes: Mapping[str, Any]) -> Task:
        return self.set_volumes({**self.volumes, **volumes})

    # --- hints for planning ---

    def set_inputs(self, inputs: str, estimated_size_gigabytes: float) -> Task:
        return self._update({"inputs": {inputs: estimated_size_gigabytes}})

    def set_outputs(self, outputs: str, estimated_size_gigabytes: float) -> Task:
        return self._update({"outputs": {outputs: estimated_size_gigabytes}})

    def set_time_estimator(self, func: Callable[[Resources], float]) -> Task:
        """`func` takes Resources and returns seconds."""
        self._estimator = func
        return self

    def estimate_runtime(self, resources: Resources) -> float:
        if self._estimator is None:
            raise NotImplementedError(f"{self!r} has no time estimator; set one with set_time_estimator.")
        return self._estimator(resources)

    # --- order ---

    def __rshift__(self, after: Task) -> Task:
        """`a >> b`: b comes after a. Only inside `with sky.Dag()`."""
        dag = current_dag()
        if dag is None:
            raise RuntimeError("`a >> b` stands inside `with sky.Dag() as dag:`.")
        dag.add_edge(self, after)
        return after

    def __repr__(self) -> str:
        run = (self.run or "").strip().splitlines()
        return f"Task({self.name or ''}: run={(run[0][:20] if run else None)!r})"

    def _update(self, changes: Mapping[str, Any]) -> Task:
        """Fields as YAML over what is there; the parser checks them. Only the changed fields are parsed again."""
        parsed = parse_task({key: value for key, value in changes.items() if value is not None})
        self._spec = replace(self._spec, **{key: getattr(parsed, key) for key in changes})
        return self


def _alternatives(resources: Iterable[Resources]) -> ResourcesSpec:
    every = list(resources)
    wrong = next((one for one in every if not isinstance(one, Resources)), None)
    if wrong is not None:
        raise TypeError(f"resources: {wrong!r} is not a sky.Resources")
    if len(every) == 1:
        return every[0].spec
    specs = tuple(one.spec for one in every)
    if isinstance(resources, (list, tuple)):
        return ResourcesSpec(ordered=specs)
    return ResourcesSpec(any_of=tuple(sorted(specs, key=repr)))


def _script(script: Script | None, field: str) -> str | None:
    if script is None or isinstance(script, str):
        return script
    if callable(script):
        raise TypeError(f"{field}: a function cannot be sent to a node; give shell text.")
    return "\n".join(script)


def _mounts(mounts: Mapping[str, Any] | None, *, wrap: bool = False) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, source in (mounts or {}).items():
        if isinstance(source, Storage):
            out[path] = source.to_yaml_config()
        else:
            out[path] = {"source": source} if wrap and isinstance(source, str) else source
    return out


__all__ = ["Dag", "Task"]
