"""What a job's processes find in their environment, and how their script is started.

The environment is built from nothing: a short list of what the machine itself sets, the node's home, then the job's own
variables. Nothing of the agent or of whoever started it gets in by accident. Pure, apart from looking up the user.
"""

from __future__ import annotations

import math
import os
import pwd
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

FROM_MACHINE = (
    "PATH", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "LD_LIBRARY_PATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The login files may fail, print or overwrite: their output is dropped and the job's own variables are put back.
WRAPPER = r"""
__sky_script=$1; __sky_machine=$2; __sky_workdir=$3; set --
__sky_kept=()
for __sky_it in $SKYLOOM_KEEP; do __sky_kept+=("$__sky_it=${!__sky_it}"); done
if [ "$__sky_machine" = 1 ] && [ -r /etc/profile ]; then . /etc/profile >/dev/null 2>&1; fi
for __sky_it in ~/.bash_profile ~/.bash_login ~/.profile; do
  if [ -r "$__sky_it" ]; then . "$__sky_it" >/dev/null 2>&1; break; fi
done
for __sky_it in "${__sky_kept[@]}"; do export "$__sky_it"; done
cd "$__sky_workdir" || exit 1
unset SKYLOOM_KEEP __sky_kept __sky_it __sky_machine __sky_workdir
. "$__sky_script"
"""


def owns_machine(home: Path) -> bool:
    """Whether the node's home is the user's real home: a node of the local provider shares its machine with others."""
    return Path(_user()[1]).resolve() == home.resolve()


def _user() -> tuple[str, str]:
    """(name, home) of who runs the agent; in a container the user may have no entry."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return str(os.getuid()), os.environ.get("HOME", "/")
    return entry.pw_name, entry.pw_dir


def base_env(home: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """What every process of this node starts with."""
    env = {name: inherited[name] for name in FROM_MACHINE if inherited.get(name)}
    env.update({name: value for name, value in inherited.items() if name.startswith("LC_")})
    if "CUDA_VISIBLE_DEVICES" in inherited:
        # Also when it is empty: then this node has none of the machine's GPUs.
        env["CUDA_VISIBLE_DEVICES"] = inherited["CUDA_VISIBLE_DEVICES"]
    env.setdefault("PATH", DEFAULT_PATH)
    env.setdefault("LANG", "C.UTF-8")
    env.setdefault("TERM", "dumb")
    user = _user()[0]
    env.update(HOME=str(home), USER=user, LOGNAME=user, SHELL="/bin/bash", PYTHONUNBUFFERED="1")
    return env


def command(script: Path, home: Path) -> list[str]:
    bash = shutil.which("bash") or "/bin/bash"
    machine = "1" if owns_machine(home) else "0"
    return [
        bash,
        "--noprofile",
        "--norc",
        "-c",
        WRAPPER,
        "bash",
        str(script),
        machine,
        str(home / "sky_workdir"),
    ]


def process_env(
    home: Path, inherited: Mapping[str, str], job: Mapping[str, str], marker: str
) -> dict[str, str]:
    """`job` wins over the machine's; its names are what the login files may not change."""
    env = base_env(home, inherited)
    env.update(job)
    env["SKYLOOM_KEEP"] = " ".join(sorted(job))
    env["SKYLOOM_JOB"] = marker
    return env


def run_env(
    envs: Mapping[str, str],
    *,
    job_id: int,
    rank: int,
    ips: Sequence[str],
    head_ip: str,
    gpus_asked: float,
    gpus: Optional[Sequence[str]],
) -> dict[str, str]:
    """The run phase of one rank (compat: runtime §2). `gpus` None: the node hands out none, so it shows what it has."""
    env = dict(envs)
    env.update(
        SKYPILOT_NODE_IPS="\n".join(ips),
        SKYPILOT_NUM_NODES=str(len(ips)),
        SKYPILOT_NODE_RANK=str(rank),
        SKYPILOT_NUM_GPUS_PER_NODE=str(math.ceil(gpus_asked)),
        SKYPILOT_INTERNAL_JOB_ID=str(job_id),
        SKYPILOT_HEAD_IP=head_ip,
    )
    if gpus is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        # The driver's numbers follow the bus; CUDA's own would put the fastest GPU first.
        env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return env


def setup_env(
    envs: Mapping[str, str], *, rank: int, ips: Sequence[str], head_ip: str, num_nodes: int, gpus_asked: float
) -> dict[str, str]:
    """The setup phase on one node of the whole cluster."""
    env = dict(envs)
    env.update(
        SKYPILOT_SETUP_NODE_IPS="\n".join(ips),
        SKYPILOT_SETUP_NODE_RANK=str(rank),
        SKYPILOT_SETUP_NUM_GPUS_PER_NODE=str(math.ceil(gpus_asked)),
        SKYPILOT_NUM_NODES=str(num_nodes),
        SKYPILOT_HEAD_IP=head_ip,
    )
    return env
