"""Errors are types, made once at the edge, and survive HTTP: a code and a sentence out, the same class in.

Callers branch on the class; the text is for people. A subclass is found again by its `code`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Optional


class SkyloomError(Exception):
    """Base of every error that a user or another service may see.

    `message` is one sentence; `hint` suggests what to type next; `details` is JSON-able data for programs.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    _by_code: ClassVar[dict[str, type[SkyloomError]]] = {}

    def __init__(
        self, message: str, *, hint: Optional[str] = None, details: Optional[dict[str, Any]] = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = dict(details or {})

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        """`register=False`: another name for a class that has this code already; `from_wire` here never makes it."""
        super().__init_subclass__(**kwargs)
        if register:
            SkyloomError._by_code[cls.code] = cls

    def to_wire(self) -> dict[str, Any]:
        """{"code", "message", "hint"?, "details"?}: the body of every error response and of a failed operation."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.hint:
            body["hint"] = self.hint
        if self.details:
            body["details"] = self.details
        return body

    @staticmethod
    def from_wire(body: dict[str, Any]) -> SkyloomError:
        """The class that `code` names (unknown codes give RemoteError), with the sender's words."""
        cls = SkyloomError._by_code.get(str(body.get("code")), RemoteError)
        error = cls.__new__(cls)
        SkyloomError.__init__(
            error,
            str(body.get("message", "unknown error")),
            hint=body.get("hint"),
            details=body.get("details"),
        )
        if cls is RemoteError:
            error.details.setdefault("code", body.get("code"))
        return error


class RemoteError(SkyloomError):
    """A service failed in a way that has no class here; `details["code"]` keeps its word."""

    code = "remote"
    http_status = 502


class InternalError(SkyloomError):
    """A fault of ours. The sentence is safe to show; the stack is in the server's log."""

    code = "internal"
    http_status = 500


class InvalidRequest(SkyloomError):
    """The request can never work as it is. Names the field, the value and the right form."""

    code = "invalid_request"
    http_status = 400


class InvalidTask(InvalidRequest):
    """A task file or task object is wrong. `details["problems"]` lists every problem (file, line, field, ...)."""

    code = "invalid_task"


class NotSupportedYet(InvalidRequest):
    """Understood and kept, but no part of this version acts on it. The message begins "not supported yet: FIELD"."""

    code = "not_supported_yet"
    http_status = 422


class NotFound(SkyloomError):
    code = "not_found"
    http_status = 404


class ClusterDoesNotExist(NotFound):
    code = "cluster_does_not_exist"


class JobDoesNotExist(NotFound):
    code = "job_does_not_exist"


class OperationDoesNotExist(NotFound):
    code = "operation_does_not_exist"


class Unauthenticated(SkyloomError):
    code = "unauthenticated"
    http_status = 401


class PermissionDenied(SkyloomError):
    code = "permission_denied"
    http_status = 403


class Conflict(SkyloomError):
    """Somebody else changed it first, or its present state forbids this."""

    code = "conflict"
    http_status = 409


class VersionConflict(Conflict):
    """Compare-and-set lost: read again and decide again."""

    code = "version_conflict"


class ClusterNotUp(Conflict):
    code = "cluster_not_up"


class ResourcesMismatch(Conflict):
    """An existing cluster is smaller than, or different from, what is asked of it."""

    code = "resources_mismatch"


class ResourcesUnavailable(SkyloomError):
    """No candidate is left. `details["attempts"]` lists each with the provider's own words."""

    code = "resources_unavailable"
    http_status = 409


class Unavailable(SkyloomError):
    """A part that is needed does not answer now; the same call may work later."""

    code = "unavailable"
    http_status = 503


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class AgentUnreachable(Unavailable):
    code = "agent_unreachable"


class OperationCancelled(SkyloomError):
    code = "operation_cancelled"
    http_status = 409


class TooLarge(InvalidRequest):
    code = "too_large"
    http_status = 413


# --- made by providers (STYLE.md: one place per cloud translates its codes into these) ---


class ProviderError(SkyloomError):
    """Base of what a provider may raise. `details["provider_message"]` keeps the provider's own text."""

    code = "provider_error"
    http_status = 502


class InsufficientCapacity(ProviderError):
    """Sold out. `details["blocks"]`: zone | region | cloud."""

    code = "insufficient_capacity"


class QuotaExceeded(ProviderError):
    """Leave the region."""

    code = "quota_exceeded"


class CredentialsInvalid(ProviderError):
    """Leave the cloud."""

    code = "credentials_invalid"


class AccessDenied(ProviderError):
    """The account may not do this there. `details["blocks"]`: zone | region | cloud; the region unless it is said."""

    code = "access_denied"


class PriceLimitExceeded(ProviderError):
    """Spot capacity costs more there now than the request pays."""

    code = "price_limit_exceeded"


class ProviderInvalidRequest(ProviderError):
    """Stops the launch: no other place would accept it either."""

    code = "provider_invalid_request"


class Throttled(ProviderError):
    """Wait and repeat."""

    code = "throttled"


class InstanceNotFound(ProviderError):
    """It is truly gone."""

    code = "instance_not_found"
    http_status = 404
