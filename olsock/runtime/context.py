"""What a handler with a second parameter is told of its invocation: AWS Lambda's context object, and the HTTP request.

Loaded only for handlers that take it.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TRACE = "_X_AMZN_TRACE_ID"  # where tracing libraries look


class Identity:
    """The caller as Amazon Cognito knows it: nobody, here. The names are there for code that asks."""

    cognito_identity_id = None
    cognito_identity_pool_id = None


class Client:
    """The application that called, as it describes itself."""

    def __init__(self, told: Any) -> None:
        fields = told if isinstance(told, dict) else {}
        for name in ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name"):
            setattr(self, name, fields.get(name))


class ClientContext:
    """What the caller sent beside the event."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.client = None if told.get("client") is None else Client(told["client"])
        self.custom = told.get("custom")
        self.env = told.get("env")


class Context:
    """One invocation. Names and types are AWS Lambda's; method, path, query and headers are ours."""

    identity = Identity()
    tenant_id = None

    def __init__(self, request: int, meta: dict[str, Any]) -> None:
        self._deadline_ms: float | None = meta.get("deadline_ms")
        self._client: Any = meta.get("client_context")
        told = os.environ.get  # of the function, as AWS's own runtime does it
        self.function_name: str = told("AWS_LAMBDA_FUNCTION_NAME", "")
        self.function_version: str = told("AWS_LAMBDA_FUNCTION_VERSION", "")
        self.invoked_function_arn: str = meta.get("arn") or self._arn()
        self.memory_limit_in_mb: str | None = told("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.aws_request_id: str = meta.get("id") or str(request)
        self.method: str = meta.get("method", "")
        self.path: str = meta.get("path", "")
        self.query: str = meta.get("query", "")
        self.headers: Any = meta.get("headers") or {}
        if meta.get("trace"):
            os.environ[TRACE] = meta["trace"]
        elif TRACE in os.environ:
            del os.environ[TRACE]  # of the request before

    def _arn(self) -> str:
        region = os.environ.get("AWS_REGION", "us-east-1")
        return f"arn:aws:lambda:{region}:000000000000:function:{self.function_name}" if self.function_name else ""

    @property
    def log_group_name(self) -> str:
        """Where the worker says the logs are, or what AWS would call it."""
        return os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME") or f"/aws/lambda/{self.function_name}"

    @property
    def log_stream_name(self) -> str:
        """What the version's part of the logs is called; empty where it was not told."""
        return os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", "")

    @property
    def client_context(self) -> ClientContext | None:
        """What the caller sent beside the event, if it did."""
        return ClientContext(self._client) if isinstance(self._client, dict) else None

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the deadline (sent as Unix time); a very long time where there is none."""
        if self._deadline_ms is None:
            return sys.maxsize
        return max(0, int(self._deadline_ms - time.time() * 1000))

    def log(self, message: Any) -> None:
        """Write to the log, as it is: no line is ended."""
        sys.stdout.write(str(message))
