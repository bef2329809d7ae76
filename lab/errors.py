"""The exceptions that the lab raises; each message says what happened and what to do."""

from __future__ import annotations


class LabError(Exception):
    """The lab cannot do what was asked; the message is meant for the person at the terminal."""


class NodeError(LabError):
    """A node of the lab could not be made, started or stopped."""


class ApiError(LabError):
    """The API refuses a request; becomes a Status object of Kubernetes.

    Attributes:
        code: HTTP status code.
        reason: the machine-readable reason of the API conventions, such as NotFound.
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(message)

    @classmethod
    def not_found(cls, plural: str, name: str) -> ApiError:
        """No such object."""
        return cls(404, "NotFound", f'{plural} "{name}" not found')

    @classmethod
    def conflict(cls, plural: str, name: str, why: str) -> ApiError:
        """The object changed since the caller read it."""
        return cls(409, "Conflict", f'Operation cannot be fulfilled on {plural} "{name}": {why}')

    @classmethod
    def exists(cls, plural: str, name: str) -> ApiError:
        """An object of that name is there already."""
        return cls(409, "AlreadyExists", f'{plural} "{name}" already exists')

    @classmethod
    def gone(cls, message: str) -> ApiError:
        """The resourceVersion or continue token is too old: the caller lists anew."""
        return cls(410, "Expired", message)

    @classmethod
    def invalid(cls, message: str) -> ApiError:
        """The request makes no sense."""
        return cls(400, "BadRequest", message)

    @classmethod
    def unprocessable(cls, message: str) -> ApiError:
        """The object breaks a rule of its kind."""
        return cls(422, "Invalid", message)

    def status(self) -> dict[str, object]:
        """The Status object that a client of Kubernetes expects."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }


class PluginError(LabError):
    """A CNI plugin failed, or its configuration cannot be used.

    Attributes:
        code: the code of the CNI error object; 0 where the plugin gave none.
        details: the error object's details.
    """

    def __init__(self, message: str, *, code: int = 0, details: str = "") -> None:
        self.code = code
        self.details = details
        super().__init__(message)
