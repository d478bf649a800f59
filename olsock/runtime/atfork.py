"""Spares children of a zygote what `threading` does after a fork for threads that are not there any more.

Its hook gives the module new locks, goes through all threads and builds its table anew. In a child whose
parent had one thread all of that is as it was: 95 pages are copied, in a third of a millisecond, to no effect.
So a zygote takes the hook's code away, if the main thread is the only one that `threading` knows, and a child
has it back before any code but ours runs in it: forks of its own do what they have to.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_code: Any = None  # of the hook, while it is taken away


def _nothing() -> None:
    """Stand in for the hook."""


def spare() -> None:
    """Take the hook's code away. For a zygote with one thread, which starts none."""
    global _code
    threading: Any = sys.modules.get("threading")
    hook = getattr(threading, "_after_fork", None)
    try:
        if type(hook) is not type(spare) or hook.__code__.co_freevars or not _is_alone(threading):
            return
        _code, hook.__code__ = hook.__code__, _nothing.__code__
    except Exception:
        pass  # a module that is made otherwise: its hook runs


def restore() -> None:
    """Give the code back."""
    global _code
    if _code is not None:
        sys.modules["threading"]._after_fork.__code__, _code = _code, None


def _is_alone(threading: Any) -> bool:
    """Tell whether `threading` knows of nobody but the main thread, not even of one that has ended."""
    main = threading.main_thread()
    known = [*threading._active.values(), *threading._dangling]
    return threading.current_thread() is main and not threading._limbo and all(each is main for each in known)
