"""Runs what a function has registered for its snapshot: with our `olsock_runtime`, or AWS's `snapshot_restore_py`.

Nothing is imported: a function that uses neither has registered nothing. The order is AWS's
(aws-lambda-python-runtime-interface-client, lambda_runtime_hooks_runner.py): before the snapshot in reverse
order of registration, after it in order, and what has been called is taken away. What a hook raises, or
SystemExit, comes out of here, and the rest is not called.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The second is the first under another name, or AWS's own from the function's packages: a list of its own then.
MODULES = ("olsock_runtime", "snapshot_restore_py")


def run_before_snapshot() -> None:
    """Call what is to be done before the process that has imported the function is forked from."""
    for hooks in _registered("get_before_snapshot"):
        while hooks:
            function, args, kwargs = hooks.pop()
            function(*args, **kwargs)


def run_after_restore() -> None:
    """Call what is to be done in a process that was forked, before it takes requests."""
    for hooks in _registered("get_after_restore"):
        while hooks:
            function, args, kwargs = hooks.pop(0)
            function(*args, **kwargs)


def _registered(name: str) -> list[Any]:
    """Return the lists of hooks. A function's own module of one of these names, which has none, is left alone."""
    found: list[Any] = []
    for module in MODULES:
        get = getattr(sys.modules.get(module), name, None)
        hooks = get() if get is not None else None
        if type(hooks) is list and all(hooks is not known for known in found):
            found.append(hooks)
    return found
