"""Errors as the API has them: a type, a status and a message."""

from __future__ import annotations

import msgspec

_STATUS = {
    "InvalidParameterValueException": 400,
    "InvalidRequestContentException": 400,
    "CodeStorageExceededException": 400,
    "AccessDeniedException": 403,
    "IncompleteSignatureException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "UnrecognizedClientException": 403,
    "ResourceNotFoundException": 404,
    "UnknownOperationException": 404,
    "ProvisionedConcurrencyConfigNotFoundException": 404,
    "ResourceConflictException": 409,
    "PreconditionFailedException": 412,
    "RequestTooLargeException": 413,
    "TooManyRequestsException": 429,
    "ServiceException": 500,
}
_CAPITAL = ("ResourceNotFoundException", "ServiceException", "AccessDeniedException")  # their message is a "Message"


class ApiError(Exception):
    """An operation was not carried out; nothing was changed. `type` is one of the API's."""

    def __init__(self, kind: str, message: str, **fields: str) -> None:
        super().__init__(message)
        self.type, self.message, self.fields = kind, message, fields

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _STATUS[self.type]

    def body(self) -> bytes:
        """The JSON that tells of it."""
        whose = "Service" if self.status >= 500 else "User"
        name = "Message" if self.type in _CAPITAL else "message"
        return msgspec.json.encode({"Type": whose, name: self.message, **self.fields})


def invalid(message: str) -> ApiError:
    """Return the error for a parameter that cannot be accepted."""
    return ApiError("InvalidParameterValueException", message)


def absent(message: str) -> ApiError:
    """Return the error for what there is not."""
    return ApiError("ResourceNotFoundException", message)
