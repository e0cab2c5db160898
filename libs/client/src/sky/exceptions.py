"""Every exception that the SDK raises, under the names that users know.

Each is a SkyloomError too: `message`, `hint` and `details` are always there. A class without a code of its own is another name
for the error of skyloom_common that it derives from, and is what `from_wire` makes of it: `except sky.exceptions.X` and
`except skyloom_common.core.errors.X` both catch it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from skyloom_common.core import errors
from skyloom_common.core.errors import SkyloomError

if TYPE_CHECKING:
    from skyloom_common.contracts.jobs import JobExitCode


def __getattr__(name: str) -> Any:
    if name == "JobExitCode":  # the only name here that is not an exception: its contracts cost a start 5 ms
        from skyloom_common.contracts.jobs import JobExitCode

        return JobExitCode
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def from_wire(body: dict[str, Any]) -> SkyloomError:
    """The exception that an error body of the server names: ours where there is one."""
    error = SkyloomError.from_wire(body)
    ours = _by_code().get(str(body.get("code")))
    if ours is None:
        return error
    made = ours.__new__(ours)
    SkyloomError.__init__(made, error.message, hint=error.hint, details=error.details)
    return made


def _by_code() -> dict[str, type[SkyloomError]]:
    """A class comes before those that derive from it: the broadest name of a code wins."""
    found: dict[str, type[SkyloomError]] = {}
    for value in globals().values():
        if isinstance(value, type) and issubclass(value, SkyloomError) and value.__module__ == __name__:
            found.setdefault(value.code, value)
    return found


class ClientError(SkyloomError):
    """Something on this machine, not on the server, is wrong."""

    code = "client_error"


class CloudError(SkyloomError):
    code = "cloud_error"


class NetworkError(SkyloomError):
    code = "network_error"


class NotSupportedError(errors.NotSupportedYet, register=False):
    """Understood, but no part of this version acts on it."""


# --- provisioning ---


class ResourcesUnavailableError(errors.ResourcesUnavailable, register=False):
    @property
    def failover_history(self) -> list[SkyloomError]:
        """One error per attempt, with the provider's own words."""
        return [from_wire(a.get("error", a)) for a in self.details.get("attempts", []) if isinstance(a, dict)]

    @property
    def no_failover(self) -> bool:
        return bool(self.details.get("no_failover", False))


class KubeAPIUnreachableError(ResourcesUnavailableError):
    code = "kube_api_unreachable"


class ResourcesMismatchError(errors.ResourcesMismatch, register=False):
    pass


class ProvisionPrechecksError(SkyloomError):
    code = "provision_prechecks"

    @property
    def reasons(self) -> list[Any]:
        return list(self.details.get("reasons", []))


class ProvisionUnsupportedError(errors.ProviderInvalidRequest):
    code = "provision_unsupported"


class InvalidCloudConfigs(errors.InvalidRequest):
    code = "invalid_cloud_configs"


class InvalidCloudCredentials(errors.CredentialsInvalid, register=False):
    pass


class NoCloudAccessError(errors.PermissionDenied):
    code = "no_cloud_access"


class AWSAzFetchingError(CloudError):
    code = "aws_az_fetching"


# --- clusters ---


class ClusterNotUpError(errors.ClusterNotUp, register=False):
    @property
    def cluster_status(self) -> Any:
        from skyloom_common.contracts.clusters import ClusterStatus

        name = self.details.get("status")
        return ClusterStatus(name) if name in ClusterStatus.__members__ else None

    @property
    def handle(self) -> Any:
        return self.details.get("handle")


class ClusterDoesNotExist(errors.ClusterDoesNotExist, ValueError, register=False):
    pass


class ClusterSetUpError(SkyloomError):
    code = "cluster_setup"


class ClusterStatusFetchingError(errors.Unavailable):
    code = "cluster_status_fetching"


class FetchClusterInfoError(errors.Unavailable):
    code = "fetch_cluster_info"

    class Reason(enum.Enum):
        HEAD = "HEAD"
        WORKER = "WORKER"
        UNKNOWN = "UNKNOWN"

    @property
    def reason(self) -> FetchClusterInfoError.Reason:
        name = str(self.details.get("reason"))
        return self.Reason[name] if name in self.Reason.__members__ else self.Reason.UNKNOWN


class InvalidClusterNameError(errors.InvalidRequest):
    code = "invalid_cluster_name"


class ClusterOwnerIdentityMismatchError(errors.PermissionDenied):
    code = "cluster_owner_mismatch"


class CloudUserIdentityError(errors.PermissionDenied):
    code = "cloud_user_identity"


class CachedClusterUnavailable(errors.Unavailable):
    code = "cached_cluster_unavailable"


class NoClusterLaunchedError(errors.ResourcesUnavailable):
    code = "no_cluster_launched"


class PortDoesNotExistError(errors.NotFound):
    code = "port_does_not_exist"


class JobDoesNotExist(errors.JobDoesNotExist, register=False):
    pass


# --- commands ---


class CommandFailureException(SkyloomError):
    code = "command_failure"


class CommandError(CommandFailureException):
    code = "command_error"

    @property
    def returncode(self) -> int:
        return int(self.details.get("returncode", 1))

    @property
    def command(self) -> str:
        return str(self.details.get("command", ""))

    @property
    def error_msg(self) -> str:
        return self.message

    @property
    def detailed_reason(self) -> str | None:
        reason = self.details.get("detailed_reason")
        return None if reason is None else str(reason)


# --- storage and volumes ---


class StorageError(SkyloomError):
    code = "storage"


class StorageInitError(StorageError):
    code = "storage_init"


class StorageBucketCreateError(StorageInitError):
    code = "storage_bucket_create"


class StorageBucketGetError(StorageInitError):
    code = "storage_bucket_get"


class StorageBucketDeleteError(StorageError):
    code = "storage_bucket_delete"


class StorageUploadError(StorageError):
    code = "storage_upload"


class StorageSpecError(StorageError, ValueError):
    code = "storage_spec"


class StorageSourceError(StorageSpecError):
    code = "storage_source"


class StorageNameError(StorageSpecError):
    code = "storage_name"


class StorageModeError(StorageSpecError):
    code = "storage_mode"


class StorageExternalDeletionError(StorageBucketGetError):
    code = "storage_external_deletion"


class NonExistentStorageAccountError(StorageExternalDeletionError):
    code = "storage_account_missing"


class VolumeNotReadyError(errors.Conflict):
    code = "volume_not_ready"


class VolumeNotFoundError(errors.NotFound):
    code = "volume_not_found"


class VolumeTopologyConflictError(errors.Conflict, ValueError):
    code = "volume_topology_conflict"


# --- jobs and services ---


class ManagedJobReachedMaxRetriesError(SkyloomError):
    code = "managed_job_max_retries"


class ManagedJobStatusError(SkyloomError):
    code = "managed_job_status"


class ManagedJobUserCancelledError(SkyloomError):
    code = "managed_job_user_cancelled"


class ServeUserTerminatedError(SkyloomError):
    code = "serve_user_terminated"


class PoolDoesNotExistError(errors.NotFound):
    code = "pool_does_not_exist"


# --- configuration and policy ---


class InvalidSkyPilotConfigError(errors.InvalidTask, ValueError, register=False):
    """A task or configuration is wrong; `details["problems"]` lists every problem."""


class UserRequestRejectedByPolicy(errors.PermissionDenied):
    code = "rejected_by_policy"


class RestfulPolicyError(UserRequestRejectedByPolicy):
    code = "restful_policy"


class InvalidWorkspaceNameError(errors.InvalidRequest):
    code = "invalid_workspace_name"


class WorkspaceAmbiguousError(errors.InvalidRequest):
    code = "workspace_ambiguous"


class NoWorkspaceAccessError(errors.PermissionDenied):
    code = "no_workspace_access"


class PermissionDeniedError(errors.PermissionDenied, register=False):
    pass


class RecipeAlreadyExistsError(errors.Conflict):
    code = "recipe_exists"


class GitError(ClientError):
    code = "git"


# --- the API server ---


class ApiServerError(SkyloomError):
    """The server answered with something that is not an error of ours."""

    code = "api_server"


class ApiServerConnectionError(errors.Unavailable):
    code = "api_server_connection"


class ApiServerAuthenticationError(errors.Unauthenticated, register=False):
    pass


class APIVersionMismatchError(SkyloomError):
    code = "api_version_mismatch"


class APINotSupportedError(errors.NotSupportedYet):
    code = "api_not_supported"


class RequestCancelled(errors.OperationCancelled, register=False):
    pass


class RequestAlreadyExistsError(errors.Conflict):
    code = "request_exists"


class RequestInterruptedError(errors.Unavailable):
    code = "request_interrupted"


class ServerTemporarilyUnavailableError(errors.Unavailable, register=False):
    pass


class ExecutionRetryableError(errors.Unavailable):
    code = "execution_retryable"

    @property
    def retry_wait_seconds(self) -> int:
        return int(self.details.get("retry_wait_seconds", 1))


class ConcurrentWorkerExhaustedError(errors.Unavailable):
    code = "concurrent_worker_exhausted"


class SkyletInternalError(SkyloomError):
    code = "skylet_internal"


class SkyletMethodNotImplementedError(SkyletInternalError):
    code = "skylet_not_implemented"


__all__ = [
    "APINotSupportedError",
    "APIVersionMismatchError",
    "AWSAzFetchingError",
    "ApiServerAuthenticationError",
    "ApiServerConnectionError",
    "ApiServerError",
    "CachedClusterUnavailable",
    "ClientError",
    "CloudError",
    "CloudUserIdentityError",
    "ClusterDoesNotExist",
    "ClusterNotUpError",
    "ClusterOwnerIdentityMismatchError",
    "ClusterSetUpError",
    "ClusterStatusFetchingError",
    "CommandError",
    "CommandFailureException",
    "ConcurrentWorkerExhaustedError",
    "ExecutionRetryableError",
    "FetchClusterInfoError",
    "GitError",
    "InvalidCloudConfigs",
    "InvalidCloudCredentials",
    "InvalidClusterNameError",
    "InvalidSkyPilotConfigError",
    "InvalidWorkspaceNameError",
    "JobDoesNotExist",
    "JobExitCode",
    "KubeAPIUnreachableError",
    "ManagedJobReachedMaxRetriesError",
    "ManagedJobStatusError",
    "ManagedJobUserCancelledError",
    "NetworkError",
    "NoCloudAccessError",
    "NoClusterLaunchedError",
    "NoWorkspaceAccessError",
    "NonExistentStorageAccountError",
    "NotSupportedError",
    "PermissionDeniedError",
    "PoolDoesNotExistError",
    "PortDoesNotExistError",
    "ProvisionPrechecksError",
    "ProvisionUnsupportedError",
    "RecipeAlreadyExistsError",
    "RequestAlreadyExistsError",
    "RequestCancelled",
    "RequestInterruptedError",
    "ResourcesMismatchError",
    "ResourcesUnavailableError",
    "RestfulPolicyError",
    "ServeUserTerminatedError",
    "ServerTemporarilyUnavailableError",
    "SkyletInternalError",
    "SkyletMethodNotImplementedError",
    "SkyloomError",
    "StorageBucketCreateError",
    "StorageBucketDeleteError",
    "StorageBucketGetError",
    "StorageError",
    "StorageExternalDeletionError",
    "StorageInitError",
    "StorageModeError",
    "StorageNameError",
    "StorageSourceError",
    "StorageSpecError",
    "StorageUploadError",
    "UserRequestRejectedByPolicy",
    "VolumeNotFoundError",
    "VolumeNotReadyError",
    "VolumeTopologyConflictError",
    "WorkspaceAmbiguousError",
    "from_wire",
]
