"""For functions: have something done before a snapshot of them is taken, and after each start from it.

With ``snapshot: true`` a function's module is imported once, and instances are forked from that state.
What must not be shared, or cannot be (connections, secrets, random state, what the time was), is closed
before and made anew after::

    import olsock_runtime

    @olsock_runtime.before_snapshot
    def close(): ...

    @olsock_runtime.after_restore
    def connect(): ...

`register_before_snapshot` and `register_after_restore` are AWS's names for the same, as in its package
`snapshot_restore_py`, which can be imported as well. Functions for before run in reverse order of
registration, those for after in order. What they raise fails the start. Without a snapshot none runs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Tuple, TypeVar

    Any_ = TypeVar("Any_", bound=Callable[..., Any])
    Hook = Tuple[Callable[..., Any], Tuple[Any, ...], Dict[str, Any]]

__all__ = ["after_restore", "before_snapshot", "register_after_restore", "register_before_snapshot"]

_before: List[Hook] = []
_after: List[Hook] = []


def register_before_snapshot(func: Any_, *args: Any, **kwargs: Any) -> Any_:
    """Have ``func(*args, **kwargs)`` called before the snapshot is taken; return `func`."""
    _before.append((func, args, kwargs))
    return func


def register_after_restore(func: Any_, *args: Any, **kwargs: Any) -> Any_:
    """Have ``func(*args, **kwargs)`` called in each instance, before it takes its first request; return `func`."""
    _after.append((func, args, kwargs))
    return func


def before_snapshot(func: Any_) -> Any_:
    """Decorate what is to be called before the snapshot is taken."""
    return register_before_snapshot(func)


def after_restore(func: Any_) -> Any_:
    """Decorate what is to be called in each instance, before it takes its first request."""
    return register_after_restore(func)


def get_before_snapshot() -> List[Hook]:
    """Return what is registered, as (function, args, kwargs): for the runtime, which takes away what it runs."""
    return _before


def get_after_restore() -> List[Hook]:
    """Return what is registered, as (function, args, kwargs): for the runtime, which takes away what it runs."""
    return _after
