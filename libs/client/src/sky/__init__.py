"""The sky command and SDK: `import sky` gives the functions, classes and enums that users of the ecosystem know.

Nothing is loaded until it is used: `_NAMES` says which module a name comes from.
"""

from __future__ import annotations

# What type checkers take for typing.TYPE_CHECKING, without importing typing.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from sky import batch as batch
    from sky import catalog as catalog
    from sky import clouds as clouds
    from sky import exceptions as exceptions
    from sky import jobs as jobs
    from sky import serve as serve
    from sky import volumes as volumes
    from sky.admin_policy import AdminPolicy as AdminPolicy
    from sky.admin_policy import Config as Config
    from sky.admin_policy import MutatedUserRequest as MutatedUserRequest
    from sky.admin_policy import RequestOptions as RequestOptions
    from sky.admin_policy import UserRequest as UserRequest
    from sky.catalog import list_accelerators as list_accelerators
    from sky.client.sdk import api_cancel as api_cancel
    from sky.client.sdk import api_info as api_info
    from sky.client.sdk import api_login as api_login
    from sky.client.sdk import api_logout as api_logout
    from sky.client.sdk import api_server_logs as api_server_logs
    from sky.client.sdk import api_start as api_start
    from sky.client.sdk import api_status as api_status
    from sky.client.sdk import api_stop as api_stop
    from sky.client.sdk import autostop as autostop
    from sky.client.sdk import cancel as cancel
    from sky.client.sdk import check as check
    from sky.client.sdk import cost_report as cost_report
    from sky.client.sdk import down as down
    from sky.client.sdk import download_logs as download_logs
    from sky.client.sdk import enabled_clouds as enabled_clouds
    from sky.client.sdk import endpoints as endpoints
    from sky.client.sdk import exec as exec
    from sky.client.sdk import get as get
    from sky.client.sdk import job_status as job_status
    from sky.client.sdk import launch as launch
    from sky.client.sdk import list_accelerator_counts as list_accelerator_counts
    from sky.client.sdk import optimize as optimize
    from sky.client.sdk import queue as queue
    from sky.client.sdk import reload_config as reload_config
    from sky.client.sdk import start as start
    from sky.client.sdk import status as status
    from sky.client.sdk import stop as stop
    from sky.client.sdk import stream_and_get as stream_and_get
    from sky.client.sdk import tail_logs as tail_logs
    from sky.client.sdk import tail_provision_logs as tail_provision_logs
    from sky.client.sdk import validate as validate
    from sky.clouds import AWS as AWS
    from sky.clouds import CLOUD_REGISTRY as CLOUD_REGISTRY
    from sky.clouds import DO as DO
    from sky.clouds import GCP as GCP
    from sky.clouds import IBM as IBM
    from sky.clouds import OCI as OCI
    from sky.clouds import SCP as SCP
    from sky.clouds import SSH as SSH
    from sky.clouds import Azure as Azure
    from sky.clouds import Cloud as Cloud
    from sky.clouds import Cudo as Cudo
    from sky.clouds import Fluidstack as Fluidstack
    from sky.clouds import Hyperbolic as Hyperbolic
    from sky.clouds import K8s as K8s
    from sky.clouds import Kubernetes as Kubernetes
    from sky.clouds import Lambda as Lambda
    from sky.clouds import Local as Local
    from sky.clouds import Mithril as Mithril
    from sky.clouds import Nebius as Nebius
    from sky.clouds import Paperspace as Paperspace
    from sky.clouds import PrimeIntellect as PrimeIntellect
    from sky.clouds import RunPod as RunPod
    from sky.clouds import Seeweb as Seeweb
    from sky.clouds import Shadeform as Shadeform
    from sky.clouds import Slurm as Slurm
    from sky.clouds import Vast as Vast
    from sky.clouds import Verda as Verda
    from sky.clouds import Vsphere as Vsphere
    from sky.clouds import Yotta as Yotta
    from sky.dag import Dag as Dag
    from sky.dag import DagExecution as DagExecution
    from sky.enums import ClusterStatus as ClusterStatus
    from sky.enums import JobStatus as JobStatus
    from sky.enums import ManagedJobStatus as ManagedJobStatus
    from sky.enums import OptimizeTarget as OptimizeTarget
    from sky.enums import StatusRefreshMode as StatusRefreshMode
    from sky.exceptions import JobExitCode as JobExitCode
    from sky.request_id import RequestId as RequestId
    from sky.resources import Resources as Resources
    from sky.scratch import debug as debug
    from sky.storage import FileMountType as FileMountType
    from sky.storage import Storage as Storage
    from sky.storage import StorageMode as StorageMode
    from sky.storage import StoreType as StoreType
    from sky.task import Task as Task
    from sky.unsupported import later as _later

    dashboard = _later("sky.dashboard")
    storage_ls = _later("sky.storage_ls")
    storage_delete = _later("sky.storage_delete")
    ssh_up = _later("sky.ssh_up")
    ssh_down = _later("sky.ssh_down")
    local_up = _later("sky.local_up")
    local_down = _later("sky.local_down")
    workspaces = _later("sky.workspaces")
    set_preferred_workspace = _later("sky.set_preferred_workspace")
    get_user_workspace = _later("sky.get_user_workspace")
    realtime_kubernetes_gpu_availability = _later("sky.realtime_kubernetes_gpu_availability")
    kubernetes_node_info = _later("sky.kubernetes_node_info")
    kubernetes_label_gpus = _later("sky.kubernetes_label_gpus")
    realtime_slurm_gpu_availability = _later("sky.realtime_slurm_gpu_availability")
    slurm_node_info = _later("sky.slurm_node_info")
    status_kubernetes = _later("sky.status_kubernetes")
    create_debug_dump = _later("sky.create_debug_dump")
    download_debug_dump = _later("sky.download_debug_dump")
    ServeConfig = _later("sky.ServeConfig")
    AutoScalingPolicy = _later("sky.AutoScalingPolicy")
    tail_hook_logs = _later("sky.tail_hook_logs")
    tail_autostop_logs = _later("sky.tail_autostop_logs")

__version__ = "0.1.0"

_MODULES = ("batch", "catalog", "client", "clouds", "exceptions", "jobs", "serve", "volumes")
_CONTENTS = {
    "sky.client.sdk": (
        "api_cancel", "api_info", "api_login", "api_logout", "api_server_logs", "api_start", "api_status", "api_stop",
        "autostop", "cancel", "check", "cost_report", "down", "download_logs", "enabled_clouds", "endpoints", "exec",
        "get", "job_status", "launch", "list_accelerator_counts", "optimize", "queue", "reload_config", "start",
        "status", "stop", "stream_and_get", "tail_logs", "tail_provision_logs", "validate",
    ),
    "sky.catalog": ("list_accelerators",),
    "sky.task": ("Task",),
    "sky.resources": ("Resources",),
    "sky.dag": ("Dag", "DagExecution"),
    "sky.scratch": ("debug",),
    "sky.storage": ("Storage", "StorageMode", "StoreType", "FileMountType"),
    "sky.enums": ("OptimizeTarget", "ClusterStatus", "JobStatus", "ManagedJobStatus", "StatusRefreshMode"),
    "sky.exceptions": ("JobExitCode",),
    "sky.request_id": ("RequestId",),
    "sky.admin_policy": ("AdminPolicy", "Config", "MutatedUserRequest", "RequestOptions", "UserRequest"),
    "sky.clouds": (
        "AWS", "Azure", "Cloud", "CLOUD_REGISTRY", "Cudo", "DO", "Fluidstack", "GCP", "Hyperbolic", "IBM", "K8s",
        "Kubernetes", "Lambda", "Local", "Mithril", "Nebius", "OCI", "Paperspace", "PrimeIntellect", "RunPod", "SCP",
        "SSH", "Seeweb", "Shadeform", "Slurm", "Vast", "Verda", "Vsphere", "Yotta",
    ),
}  # fmt: skip
_LATER = (
    "AutoScalingPolicy", "ServeConfig", "create_debug_dump", "dashboard", "download_debug_dump",
    "get_user_workspace", "kubernetes_label_gpus", "kubernetes_node_info", "local_down", "local_up",
    "realtime_kubernetes_gpu_availability", "realtime_slurm_gpu_availability", "set_preferred_workspace",
    "slurm_node_info", "ssh_down", "ssh_up", "status_kubernetes",
    "storage_delete", "storage_ls", "tail_autostop_logs", "tail_hook_logs", "workspaces",
)  # fmt: skip
_NAMES = {name: module for module, names in _CONTENTS.items() for name in names}

__all__ = [*_NAMES, *_LATER, *_MODULES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    import importlib

    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _LATER:
        value = importlib.import_module("sky.unsupported").later(f"sky.{name}")
    elif name in _MODULES:
        value = importlib.import_module(f"sky.{name}")
    else:
        raise AttributeError(f"module 'sky' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
