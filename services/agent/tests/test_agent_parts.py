"""The small parts: the runner's log, the job store, idle time, readings of the machine, the agent's settings."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from skyloom_agent import detect, environment, procs, runner
from skyloom_agent.archive import tar_stream
from skyloom_agent.idle import IdleMeter
from skyloom_agent.main import main, read_config
from skyloom_agent.model import JobRecord
from skyloom_agent.nvml import Nvml
from skyloom_agent.store import JobStore
from skyloom_common.contracts.jobs import Job, JobStatus, JobSubmit
from skyloom_common.core.errors import InvalidRequest, JobDoesNotExist, Unavailable

# --- the runner's log on a full disk ---


class SmallDisk:
    """os.write that takes so many bytes in all and then says that the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._real = os.write
        monkeypatch.setattr(runner.os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        taken = min(self.room, len(data))
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= taken
        return self._real(fd, bytes(data)[:taken])


def test_a_log_on_a_full_disk_drops_counts_and_says_so_later(tmp_path, monkeypatch):
    disk = SmallDisk(monkeypatch, 5)
    log = runner.Log(str(tmp_path / "log"))
    log.write(b"abcdefgh")
    log.write(b"lost too")
    disk.room = 20  # Not even enough for the note.
    log.write(b"still lost")
    assert (tmp_path / "log").read_bytes() == b"abcde"
    disk.room = 1000
    log.write(b"back\n")
    note = b"\n[skyloom: 21 bytes of output are missing here: No space left on device]\n"
    assert (tmp_path / "log").read_bytes() == b"abcde" + note + b"back\n"
    assert log.lost == 21


def test_another_error_of_the_log_is_not_hidden(tmp_path, monkeypatch):
    log = runner.Log(str(tmp_path / "log"))

    def broken(fd: int, data: bytes) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(runner.os, "write", broken)
    with pytest.raises(OSError, match="Bad file"):
        log.write(b"x")


def test_the_result_needs_no_space_at_the_end(tmp_path, monkeypatch):
    result = runner.Result(str(tmp_path))
    SmallDisk(monkeypatch, 0)
    result.write({"exit_code": 3})
    assert json.loads((tmp_path / "result.json").read_bytes()) == {"exit_code": 3}


# --- the job store ---


def record(job_id: int, key: str, status: JobStatus = JobStatus.PENDING) -> JobRecord:
    job = Job(job_id, "n", "me", status, 1.0, key=key)
    return JobRecord(f"{job_id}-a", job, JobSubmit(key, "n", "me", envs={"A": "é\n"}))


def test_jobs_are_there_again_after_a_restart(tmp_path):
    store = JobStore(tmp_path / "jobs.db")
    store.insert(record(store.next_id(), "one"))
    store.insert(record(store.next_id(), "two"))
    store.update(record(2, "two", JobStatus.RUNNING))
    store.update(record(1, "one", JobStatus.FAILED), soon=True)
    store.close()
    again = JobStore(tmp_path / "jobs.db")
    assert again.all() == [record(1, "one", JobStatus.FAILED), record(2, "two", JobStatus.RUNNING)]
    assert again.active() == [record(2, "two", JobStatus.RUNNING)] and again.next_id() == 3
    assert again.by_key("two") == again.get(2) and again.by_key("three") is None
    with pytest.raises(JobDoesNotExist):
        again.get(3)
    again.close()


def test_a_full_disk_refuses_new_jobs_and_keeps_what_becomes_of_the_old_ones(tmp_path):
    store = JobStore(tmp_path / "jobs.db")
    store.insert(record(1, "one"))
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages}")
    big = record(2, "two")
    big = replace(big, submit=replace(big.submit, run="x" * 100_000))
    with pytest.raises(Unavailable, match="was not accepted"):
        store.insert(big)
    failed = replace(record(1, "one", JobStatus.FAILED), cancel="y" * 100_000)
    store.update(failed)
    assert store.get(1) == failed and not store.written(1) and "cannot be written" in store.problem
    store._db.execute("PRAGMA max_page_count=100000")
    assert store.flush() and store.written(1) and store.problem == ""
    store.close()
    again = JobStore(tmp_path / "jobs.db")
    assert again.all() == [failed]
    again.close()


# --- idle time ---


class FakeClock:
    boot = "boot-1"

    def __init__(self) -> None:
        self.mono = 1000.0
        self.wall = 5.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.mono


def test_idle_time_counts_from_the_last_job_whatever_the_wall_clock_does(tmp_path):
    clock, sessions = FakeClock(), [0]
    idle = IdleMeter(tmp_path / "idle.json", clock, lambda: sessions[0])
    clock.mono += 10
    assert idle.jobs_seconds() == 10
    idle.observe(1)
    clock.mono += 100
    clock.wall -= 1e9
    assert idle.jobs_seconds() == 0 == idle.jobs_and_ssh_seconds()
    idle.observe(0)
    clock.mono += 30
    assert idle.jobs_seconds() == 30
    sessions[0] = 1
    idle.look_for_sessions()
    clock.mono += 5
    assert (idle.jobs_seconds(), idle.jobs_and_ssh_seconds()) == (35, 5)
    again = IdleMeter(tmp_path / "idle.json", clock, lambda: 0)
    assert again.jobs_seconds() == 35, "a new agent goes on counting"
    clock.boot, clock.mono = "boot-2", 3.0
    assert IdleMeter(tmp_path / "idle.json", clock, lambda: 0).jobs_seconds() == 0, (
        "another boot has another clock"
    )


# --- the machine ---


@pytest.mark.parametrize(
    ("title", "counts"),
    [
        (b"sshd: ann@pts/3\0", True),
        (b"sshd-session: ann@pts/12\0", True),
        (b"sshd: ann@notty\0", False),
        (b"sshd: ann [priv]\0", False),
        (b"sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups\0", False),
        (b"grep\0sshd: ann@pts/3\0", False),
    ],
)
def test_what_counts_as_an_interactive_session(title, counts):
    assert bool(detect._SSH_TITLE.match(title)) is counts


def test_readings_make_sense_here(tmp_path):
    assert detect.cpu_count() > 0 and detect.memory_gib() > 0
    assert detect.disk_problem(tmp_path / "absent") != ""
    if sys.platform.startswith("linux"):
        used = detect.memory_used_gib()
        assert used is not None and 0 < used < 4096
        meter = detect.CpuMeter()
        while (percent := meter.percent()) is None:
            sum(range(100_000))
        assert 0 <= percent <= 100
        assert procs.start_ticks(os.getpid()) == procs.start_ticks(os.getpid()) is not None
        assert procs.start_ticks(2**22 + 5) is None


def test_no_library_means_no_gpus():
    nvml = Nvml("libnothing-of-that-name.so.1")
    assert nvml.devices() == () == nvml.use()


FAKE_NVML = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } mem_t;
typedef struct { unsigned gpu, memory; } util_t;
static int devices[4] = {0, 1, 2, 3};
static const char *uuids[4] = {"GPU-aa0", "GPU-ab1", "GPU-ac2", "GPU-ad3"};
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 4; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = &devices[i]; return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "Fake H100", n); return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { strncpy(s, uuids[*(int *)h], n); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, mem_t *m) { m->total = 80ULL << 30; m->used = 20ULL << 30; return 0; }
int nvmlDeviceGetUtilizationRates(void *h, util_t *u) { u->gpu = 40 + *(int *)h; return 0; }
"""


@pytest.fixture(scope="module")
def fake_nvml(tmp_path_factory):
    """A driver library with four GPUs."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not on this machine, so the fake driver library cannot be made")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(FAKE_NVML)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([gcc, "-shared", "-fPIC", "-o", library, folder / "nvml.c"], check=True, timeout=60)
    return library


def test_gpus_are_read_through_the_driver_library(fake_nvml):
    nvml = Nvml(str(fake_nvml))
    assert [(gpu.index, gpu.name, gpu.memory_gib, gpu.uuid, gpu.visible_as) for gpu in nvml.devices()] == [
        (number, "Fake H100", 80.0, uuid, str(number))
        for number, uuid in enumerate(("GPU-aa0", "GPU-ab1", "GPU-ac2", "GPU-ad3"))
    ]
    assert [(use.utilization_percent, use.memory_used_gib) for use in nvml.use()] == [
        (40.0 + number, 20.0) for number in range(4)
    ]


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [(0, "0"), (1, "1"), (2, "2"), (3, "3")]),
        ("2,3", [(2, "2"), (3, "3")]),
        (" 3 , 1 ", [(3, "3"), (1, "1")]),
        ("GPU-ac,0", [(2, "GPU-ac"), (0, "0")]),
        ("1,9,2", [(1, "1")]),
        ("0,-1,2", [(0, "0")]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_only_the_gpus_that_are_ours_count(fake_nvml, visible, seen):
    nvml = Nvml(str(fake_nvml), visible)
    assert [(gpu.index, gpu.visible_as) for gpu in nvml.devices()] == seen
    assert [use.index for use in nvml.use()] == [index for index, _ in seen]


@pytest.mark.integration
def test_nodes_that_share_a_machine_give_their_jobs_the_right_gpus(nodes, fake_nvml):
    """The second rank's node has the machine's GPUs 2 and 3: its job's one GPU is not the machine's first."""
    made = []
    for own in ("0,1", "2,3"):
        env = {**os.environ, "LD_LIBRARY_PATH": str(fake_nvml.parent), "CUDA_VISIBLE_DEVICES": own}
        made.append(nodes.make(gpus=2).start(env))
    nodes.introduce(made)
    script = 'echo "rank $SKYPILOT_NODE_RANK has $CUDA_VISIBLE_DEVICES."'
    hold = made[0].submit(
        "while [ ! -e ~/go ]; do sleep 0.05; done", num_nodes=2, demand={"cpus": 1, "gpus": 1}
    )
    made[0].wait(hold, "RUNNING")
    log = made[0].logs(
        made[0].submit(script, setup="echo sees $CUDA_VISIBLE_DEVICES.", num_nodes=2,
                       demand={"cpus": 1, "gpus": 1}), follow=True,
    )  # fmt: skip
    for node in made:
        (node.home / "go").touch()
    assert b"rank 0 has 1." in log
    assert b"rank 1 has 3." in log
    info = made[1].request("GET", "/v1/info")
    assert [(gpu["index"], gpu["visible_as"]) for gpu in info["gpus"]] == [(2, "2"), (3, "3")]
    setup = made[0].logs(2, phase="setup")
    assert b"sees 0,1." in setup
    assert b"sees 2,3." in setup


# --- environment ---


def test_nothing_of_the_agent_gets_into_a_job():
    inherited = {
        "PATH": "/bin",
        "HOME": "/root",
        "SKYLOOM_TOKEN": "t",
        "AWS_X": "y",
        "LC_ALL": "C",
        "TZ": "UTC",
    }
    env = environment.process_env(Path("/node"), inherited, {"A": "1", "PYTHONUNBUFFERED": "0"}, "m")
    assert (
        env["HOME"] == "/node" and env["A"] == "1" and env["PYTHONUNBUFFERED"] == "0" and env["LC_ALL"] == "C"
    )
    assert env["SKYLOOM_KEEP"] == "A PYTHONUNBUFFERED" and env["SKYLOOM_JOB"] == "m" and env["TZ"] == "UTC"
    assert not {"SKYLOOM_TOKEN", "AWS_X", "CUDA_VISIBLE_DEVICES"} & set(env)
    for own in ("", "2,3"):
        assert environment.base_env(Path("/n"), {"CUDA_VISIBLE_DEVICES": own})["CUDA_VISIBLE_DEVICES"] == own


@pytest.mark.parametrize(
    ("asked", "own", "shown"), [(0.5, ("1",), "1"), (2.0, ("0", "GPU-3"), "2"), (0.0, (), "0")]
)
def test_what_a_rank_knows_of_its_place(asked, own, shown):
    env = environment.run_env(
        {"SKYPILOT_TASK_ID": "mine"},
        job_id=4,
        rank=1,
        ips=["a", "b"],
        head_ip="h",
        gpus_asked=asked,
        gpus=own,
    )
    assert env["SKYPILOT_NUM_GPUS_PER_NODE"] == str(math.ceil(asked)) == shown
    assert env["CUDA_VISIBLE_DEVICES"] == ",".join(own)
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (env["SKYPILOT_NODE_IPS"], env["SKYPILOT_NODE_RANK"], env["SKYPILOT_NUM_NODES"]) == (
        "a\nb",
        "1",
        "2",
    )
    assert (env["SKYPILOT_HEAD_IP"], env["SKYPILOT_INTERNAL_JOB_ID"], env["SKYPILOT_TASK_ID"]) == (
        "h",
        "4",
        "mine",
    )
    bare = environment.run_env({}, job_id=4, rank=0, ips=["a"], head_ip="a", gpus_asked=0, gpus=None)
    assert "CUDA_VISIBLE_DEVICES" not in bare


# --- settings ---


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ('{"node_id":"n","token":"t","home":"/x"}', 0o640, "chmod 600"),
        ('{"node_id":"n","token":"","home":"/x"}', 0o600, "token"),
        ('{"node_id":"n","home":"/x"}', 0o600, "token: missing"),
        ("[", 0o600, "not JSON"),
    ],
)
def test_settings_that_are_refused(tmp_path, content, mode, words, caplog):
    path = tmp_path / "config.json"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(InvalidRequest, match=words):
        read_config(path)
    assert main(["--config", str(path)]) == 2


async def test_an_archive_of_a_strange_directory(tmp_path):
    import io
    import tarfile

    folder = tmp_path / "1-job"
    (folder / "tasks").mkdir(parents=True)
    (folder / "run.log").write_bytes(b"x" * 1000)
    (folder / "tasks" / ("long" * 40)).write_bytes(b"")
    (folder / "link").symlink_to("/etc/passwd")
    data = b"".join([part async for part in tar_stream(folder)])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert sorted(archive.getnames()) == [
            "1-job",
            "1-job/run.log",
            "1-job/tasks",
            "1-job/tasks/" + "long" * 40,
        ]
        member = archive.extractfile("1-job/run.log")
        assert member is not None and member.read() == b"x" * 1000
