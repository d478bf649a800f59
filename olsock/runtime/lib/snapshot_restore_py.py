"""AWS Lambda's names for the hooks of `olsock_runtime`. Who brings AWS's package of this name gets that instead."""

from olsock_runtime import (
    get_after_restore,
    get_before_snapshot,
    register_after_restore,
    register_before_snapshot,
)

__all__ = ["get_after_restore", "get_before_snapshot", "register_after_restore", "register_before_snapshot"]
