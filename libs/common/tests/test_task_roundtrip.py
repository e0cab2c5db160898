"""What is written reads back as the same: for any task, for people's files, and over the wire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyloom_common.contracts.task.expand import alternatives
from skyloom_common.contracts.task.model import (
    AcceleratorSpec,
    AutostopSpec,
    EncryptionSpec,
    GitWorkdir,
    JobRecoverySpec,
    ManagedSecret,
    NetworkingSpec,
    PoolSpec,
    Quantity,
    ReadinessProbe,
    ReplicaPolicy,
    ResourcesSpec,
    ServiceSpec,
    StorageSpec,
    SyncSpec,
    TaskFile,
    TaskSpec,
    VolumeSpec,
    WaitFor,
)
from skyloom_common.contracts.task.parse import parse_task_file, parse_task_mapping
from skyloom_common.contracts.task.places import Place, joined, packed
from skyloom_common.contracts.task.validate import validate_task_file
from skyloom_common.contracts.task.write import task_file_to_yaml, task_to_yaml_config
from skyloom_common.core.wire import dumps, loads

HERE = Path(__file__).parent
FILES = sorted((HERE / "data" / "task").glob("*.yaml"))
SEEDS_DIR = HERE.parents[2] / "examples" / "seeds"
SEEDS = sorted(SEEDS_DIR.glob("*.yaml"))

names = st.from_regex(r"\A[a-zA-Z0-9]{1,6}([._-]{1,2}[a-zA-Z0-9]{1,4}){0,2}\Z")
variables = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,6}\Z")
printable = st.characters(
    codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co"), exclude_characters="\u2028\u2029\ufeff"
)
lines = st.text(printable, max_size=20)
texts = st.text(printable, min_size=1, max_size=12).filter(str.strip)
scripts = st.lists(lines, min_size=1, max_size=4).map("\n".join).filter(bool)
sizes = st.one_of(st.integers(1, 10**6).map(float), st.floats(0.001, 1e6, allow_nan=False))
seconds = st.one_of(
    st.integers(0, 10**6).map(float), st.floats(0, 1e6, allow_nan=False, allow_subnormal=False)
)
paths = st.from_regex(r"\A/[a-z]{1,5}(/[a-z$]{1,5}){0,2}\Z")
buckets = st.from_regex(r"\A[a-z][a-z0-9-]{1,8}[a-z0-9]\Z")
maybe: Callable[[st.SearchStrategy[Any]], st.SearchStrategy[Any]] = lambda inner: st.none() | inner  # noqa: E731
labels = st.dictionaries(texts, texts, max_size=2)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | lines,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)

devices = st.from_regex(r"\A[A-Z][A-Za-z0-9.-]{0,8}\Z").filter(lambda name: name[-1] != ".")
accelerator = st.one_of(
    st.builds(AcceleratorSpec, name=devices, count=sizes),
    st.builds(
        AcceleratorSpec,
        name=st.none(),
        count=sizes,
        memory_gib=st.integers(1, 500).map(float) | st.sampled_from([0.5, 1 / 1024, 1.5]),
        memory_at_least=st.booleans(),
        vendor=maybe(st.sampled_from(["nvidia", "amd"])),
    ),
)
accelerator_sets = st.lists(accelerator, max_size=3, unique=True).map(tuple)
place_names = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z")
places: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(
        dict,
        cloud=maybe(st.sampled_from(["aws", "gcp", "local"])),
        region=maybe(place_names),
        zone=maybe(place_names),
    ),
    st.builds(
        dict, cloud=st.just("kubernetes"), region=maybe(st.from_regex(r"\A[a-z][a-z0-9:/@_.-]{0,12}[a-z]\Z"))
    ),
    st.builds(dict, cloud=st.just("ssh"), region=maybe(place_names)),
)
entry_places: st.SearchStrategy[dict[str, Any]] = places | st.builds(
    dict,
    cloud=st.sampled_from(["aws", "*"]),
    region=place_names | st.just("*"),
    zone=place_names | st.just("*"),
)
name_lists = st.lists(place_names, min_size=1, max_size=3).map(joined)
one_place = st.builds(
    Place, st.sampled_from(["aws", "gcp", "local"]), maybe(place_names | st.just("us-*")), maybe(place_names)
)


def place_lists(frees: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Lists as `infra` gives them, and as the older fields do."""
    older = st.builds(
        dict,
        cloud=maybe(st.sampled_from(["aws", "aws,gcp"])),
        region=maybe(name_lists),
        zone=maybe(name_lists),
    )
    return older | st.lists(one_place, min_size=1, max_size=4).map(lambda found: packed(found, frees=frees))


autostops = st.just(AutostopSpec(enabled=False)) | st.builds(
    AutostopSpec,
    enabled=st.just(True),
    idle_minutes=st.integers(0, 10**5),
    down=st.booleans(),
    wait_for=st.sampled_from(WaitFor),
    max_lifetime_minutes=maybe(st.integers(0, 10**5)),
    hook=maybe(texts),
    hook_timeout=maybe(st.integers(1, 100)),
)
recoveries = st.builds(
    JobRecoverySpec,
    strategy=maybe(st.sampled_from(["EAGER_NEXT_REGION", "FAILOVER", "NONE"])),
    max_restarts_on_errors=st.integers(0, 9),
    recover_on_exit_codes=st.lists(st.integers(0, 255), max_size=3, unique=True).map(tuple),
)
span = st.integers(1, 60000).flatmap(lambda low: st.integers(low, low + 3).map(lambda high: (low, high)))


@st.composite
def port_lists(draw: st.DrawFn) -> tuple[str, ...]:
    spans = sorted(draw(st.lists(span, max_size=3)))
    apart = [one for index, one in enumerate(spans) if index == 0 or one[0] > spans[index - 1][1] + 10]
    return tuple(str(low) if low == high else f"{low}-{high}" for low, high in apart)


@st.composite
def resource_specs(draw: st.DrawFn, *, entry: bool = False) -> ResourcesSpec:
    found = draw(accelerator_sets)
    return ResourcesSpec(
        **draw((entry_places if entry else places) | place_lists(entry)),
        instance_type=draw(maybe(place_names)),
        cpus=draw(maybe(st.builds(Quantity, sizes, at_least=st.booleans()))),
        memory=draw(
            maybe(
                st.builds(Quantity, sizes, at_least=st.booleans())
                | st.builds(Quantity, sizes, at_least=st.booleans(), per_cpu=st.just(True))
            )
        ),
        accelerators=found,
        accelerators_ordered=False if entry else len(found) > 1 and draw(st.booleans()),
        accelerator_args=draw(st.dictionaries(st.just("tpu_vm"), st.booleans(), max_size=1)),
        use_spot=draw(maybe(st.booleans())),
        disk_size=draw(maybe(st.builds(Quantity, st.integers(1, 10**6).map(float), at_least=st.booleans()))),
        disk_tier=draw(maybe(st.sampled_from(["low", "best"]))),
        network_tier=draw(maybe(st.sampled_from(["standard", "best"]))),
        local_disk=draw(maybe(st.sampled_from(["nvme", "ssd:500+", "7"]))),
        max_hourly_cost=draw(maybe(st.floats(1e-6, 1e6))),
        ports=draw(port_lists()),
        image_id=draw(maybe(texts | st.dictionaries(place_names, texts, min_size=1, max_size=2))),
        labels=draw(labels),
        autostop=draw(maybe(autostops)),
        priority=None if entry else draw(maybe(st.integers(-1000, 1000))),
        job_recovery=None if entry else draw(maybe(recoveries)),
        internal=draw(st.dictionaries(st.just("_x"), json_values, max_size=1)),
    )


@st.composite
def resources_with_alternatives(draw: st.DrawFn) -> ResourcesSpec:
    from dataclasses import replace

    base = draw(resource_specs())
    entries = tuple(draw(st.lists(resource_specs(entry=True), max_size=2)))
    if not entries or base.accelerators_ordered:
        return base
    if draw(st.booleans()) and all(len(one.accelerators) < 2 for one in (base, *entries)):
        return replace(base, ordered=entries)
    return replace(base, any_of=entries)


@st.composite
def storages(draw: st.DrawFn) -> StorageSpec:
    common: dict[str, Any] = {
        "store": draw(maybe(st.sampled_from(["s3", "gcs", "azure"]))),
        "persistent": draw(st.booleans()),
        "encryption": draw(maybe(st.builds(EncryptionSpec, st.just("AES256"), maybe(texts)))),
        "internal": draw(st.dictionaries(st.just("_force_delete"), st.booleans(), max_size=1)),
    }
    if draw(st.booleans()):
        return StorageSpec(
            source=f"s3://{draw(buckets)}", mode=draw(st.sampled_from(["MOUNT", "COPY"])), **common
        )
    if draw(st.booleans()):
        config = draw(st.dictionaries(st.just("mount_cached"), st.just({"transfers": 3}), max_size=1))
        return StorageSpec(
            name=draw(buckets),
            mode="MOUNT_CACHED",
            type=draw(maybe(st.just("DATASET_RO"))),
            config=config,
            **common,
        )
    return StorageSpec(
        name=draw(buckets),
        source=tuple(draw(st.lists(buckets, min_size=1, max_size=2, unique=True))),
        **common,
    )


volume_specs = st.one_of(
    st.builds(VolumeSpec, name=texts, sub_path=maybe(place_names)),
    st.builds(
        VolumeSpec,
        size=st.integers(1, 9).map(lambda gib: f"{gib}Gi"),
        type=maybe(st.just("k8s-pvc")),
        labels=labels,
    ),
    st.builds(VolumeSpec, host_path=paths, mode=maybe(st.sampled_from(["ro", "rw"]))),
)
probes = st.builds(
    ReadinessProbe,
    path=paths,
    initial_delay_seconds=seconds,
    timeout_seconds=seconds,
    post_data=maybe(json_objects | st.just('{"a": 1}')),
    headers=labels,
)


@st.composite
def services(draw: st.DrawFn) -> ServiceSpec:
    policy, replicas = None, draw(maybe(st.integers(0, 9)))
    if replicas is None and draw(st.booleans()):
        low = draw(st.integers(0, 5))
        policy = ReplicaPolicy(
            low,
            low + draw(st.integers(0, 5)),
            target_qps_per_replica=draw(seconds),
            upscale_delay_seconds=draw(seconds),
            dynamic_ondemand_fallback=draw(st.booleans()),
        )
    tls = draw(st.booleans())
    return ServiceSpec(
        readiness_probe=draw(probes),
        replicas=replicas,
        replica_policy=policy,
        load_balancing_policy=draw(maybe(st.just("round_robin"))),
        stream_timeout_seconds=draw(maybe(seconds)),
        ports=draw(maybe(st.integers(1, 65535))),
        tls_keyfile="k" if tls else None,
        tls_certfile="c" if tls else None,
    )


local_sources = st.from_regex(r"\A[a-z.~][a-z$]{0,5}(/[a-z]{1,4})?\Z")
mount_sources = local_sources | buckets.map(lambda name: f"s3://{name}/x") | storages()
env_maps = st.dictionaries(variables, maybe(lines), max_size=3)


@st.composite
def tasks(draw: st.DrawFn) -> TaskSpec:
    from dataclasses import replace

    wanted = draw(resources_with_alternatives())
    kind = draw(st.sampled_from(["none", "service", "pool"]))
    if kind != "none":
        wanted = replace(wanted, job_recovery=None)
    if kind == "pool":
        wanted = replace(
            wanted, ports=(), ordered=(), any_of=tuple(replace(one, ports=()) for one in wanted.any_of)
        )
    return TaskSpec(
        name=draw(maybe(names)),
        workdir=draw(maybe(local_sources | st.builds(GitWorkdir, texts, maybe(texts)))),
        num_nodes=draw(st.integers(1, 100)),
        resources=wanted,
        envs=draw(env_maps),
        secrets=draw(
            env_maps | st.dictionaries(variables.map(lambda name: f"secrets:{name}"), st.none(), max_size=2)
        ),
        managed_secrets=tuple(
            draw(
                st.lists(
                    st.builds(ManagedSecret, names, maybe(paths)),
                    max_size=2,
                    unique_by=lambda secret: secret.name,
                )
            )
        ),
        setup=draw(maybe(scripts)),
        run=draw(maybe(scripts)),
        file_mounts=draw(st.dictionaries(paths, mount_sources, max_size=2)),
        volumes=draw(st.dictionaries(paths, volume_specs, max_size=2)),
        service=draw(services()) if kind == "service" else None,
        pool=PoolSpec(workers=draw(st.integers(0, 5))) if kind == "pool" else None,
        config=draw(
            st.just({})
            | st.just(
                {"kubernetes": {"kueue": None}, "hooks": [{"run": "x", "events": ["stop"], "timeout": 5}]}
            )
            | json_values.map(lambda value: {"docker": {"run_options": value}})
        ),
        event_callback=draw(maybe(scripts)),
        inputs=draw(st.dictionaries(buckets.map(lambda name: f"s3://{name}"), seconds, max_size=1)),
        api_server_access=draw(st.booleans()),
        sync=draw(
            maybe(
                st.builds(
                    SyncSpec,
                    st.lists(texts, max_size=2).map(tuple),
                    mode=st.sampled_from(["incremental", "full"]),
                )
            )
        ),
        networking=draw(
            maybe(
                st.builds(NetworkingSpec, maybe(texts), maybe(texts), st.lists(texts, max_size=2).map(tuple))
            )
        ),
        internal=draw(
            st.dictionaries(st.sampled_from(["_metadata", "file_mounts_mapping"]), json_objects, max_size=1)
        ),
    )


many = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@many
@given(tasks())
def test_any_task_reads_back_from_its_yaml(task: TaskSpec) -> None:
    file = TaskFile(tasks=(task,))
    text = task_file_to_yaml(file)
    assert parse_task_file(text + "\n") == file


@many
@given(tasks())
def test_any_task_reads_back_from_its_mapping_and_from_the_wire(task: TaskSpec) -> None:
    assert parse_task_mapping(task_to_yaml_config(task)) == task
    assert loads(TaskSpec, dumps(task), strict=True) == task


@many
@given(resources_with_alternatives())
def test_alternatives_are_whole(resources: ResourcesSpec) -> None:
    specs, ordered = alternatives(resources)
    assert len(specs) == max(1, len(resources.any_of) + len(resources.ordered))
    assert ordered == bool(resources.ordered)
    for spec in specs:
        assert (spec.any_of, spec.ordered) == ((), ())
        assert "*" not in (spec.cloud, spec.region, spec.zone)


def _reads_back(file: TaskFile) -> None:
    text = task_file_to_yaml(file)
    again = parse_task_file(text)
    assert again == file
    assert task_file_to_yaml(again) == text
    assert loads(TaskFile, dumps(file), strict=True) == file
    task_file_to_yaml(file, redact=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_as_people_write_them(path: Path) -> None:
    _reads_back(parse_task_file(path))


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_published_forms(path: Path, tmp_path: Path) -> None:
    file = parse_task_file(path)
    _reads_back(file)
    validate_task_file(file, tmp_path, require_envs=False)
    assert path.read_text().startswith("# ")


def test_the_published_forms_are_there() -> None:
    assert len(SEEDS) >= 18
    assert len(FILES) >= 20


def test_a_file_of_several_tasks_with_any_header_reads_back() -> None:
    one, two = TaskSpec(name="a", run="x"), TaskSpec(name="b", run="y")
    files = [
        TaskFile((one,), name="p", execution="serial"),
        TaskFile((one, two), name="p"),
        TaskFile((one, two)),
        TaskFile((one, TaskSpec())),
        TaskFile((one, two), "g", "parallel", ("a",), {"default": 0.5, "b": 60}, inter_connection=False),
    ]
    for file in files:
        assert parse_task_file(task_file_to_yaml(file)) == file
