"""Goes through the start of a function once, with one of ours, where nobody waits for it.

What runs for the first time in a fork is slow: pages that are written to are copied, those of the interpreter's program are
mapped in one by one, and the interpreter adapts its bytecode. The import system is the most of a start. So a zygote rehearses
before it forks, and a handler that was forked ahead while it waits; half of the time from the function's arrival to its
first answer goes away by it. Nothing is left: not the module, nor a path, nor a variable.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODULE = "olsock_rehearsed"
DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rehearsal")
REQUEST = b'{"rehearsal":[1,2.5,null,true,"text"]}'


def in_zygote(handler: Any, packages: list[str], code: str) -> None:
    """Rehearse the import, with `handler` the runtime's module; `packages` are directories, `code` a function's place."""
    path, here = list(sys.path), os.getcwd()
    try:
        handler.initialise(_config(packages))
        _look_ahead(code)
    except Exception:
        pass  # an import system that somebody has changed: functions will do with it what they can
    finally:
        _forget(path, here)


def in_handler(server: Any, wire: Any) -> None:
    """Rehearse CONFIG and a request on the `server` that waits for them; what it says goes nowhere."""
    path, here, fd = list(sys.path), os.getcwd(), server.channel.fd
    server.channel.fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    restored, server.restored = server.restored, None
    try:
        frames = wire.message(wire.CONFIG, 0, json.dumps(_config([])).encode())
        frames += wire.message(wire.REQUEST, 1, b"{}", REQUEST)
        for kind, _, request, payload in server.parser.feed(frames):
            if kind == wire.CONFIG:
                server.start(payload)
            else:
                server.answer(request, payload)
        server.mend()
    finally:
        os.close(server.channel.fd)
        server.channel.fd, server.restored = fd, restored
        server.config, server.function, server.context = {}, None, None
        _forget(path, here)


def _config(packages: list[str]) -> dict[str, Any]:
    env = {name: os.environ[name] for name in ("HOME", "LANG", "PATH") if name in os.environ}  # set to what they are
    return {"code": DIRECTORY, "handler": f"{MODULE}:f", "env": env, "path": packages, "cwd": DIRECTORY}


def _forget(path: list[str], directory: str) -> None:
    sys.modules.pop(MODULE, None)
    sys.path[:] = path
    sys.path_importer_cache.pop(DIRECTORY, None)
    os.chdir(directory)


def _look_ahead(code: str) -> None:
    """Have a finder ready for where functions are; it looks into the directory when it is asked."""
    for hook in sys.path_hooks:
        try:
            finder = hook(code)
        except ImportError:
            continue
        sys.path_importer_cache[code] = finder
        return
