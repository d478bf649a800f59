"""Where attacks are run: in a sandbox, in a cold handler, in one from a zygote, and outside for the control."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import olsock
from olsock import rootfs

HANDLERS = Path(__file__).parents[1] / "attack" / "handlers"
KINDS = ("sandbox", "function", "zygote")
PYTHON = rootfs.host_python()


class Place:
    """One sandbox in which probes (handlers/probes.py) can be run by name."""

    def __init__(self, kind: str, inside: Any, run: Callable[[dict[str, Any]], Any]) -> None:
        self.kind, self.inside, self._run = kind, inside, run

    def __call__(self, probe: str, *args: Any) -> Any:
        return self._run({"probe": probe, "args": args})


class InSandbox:
    """Runs each probe as a program of its own."""

    def __init__(self, box: olsock.Sandbox) -> None:
        self._box = box

    def __call__(self, event: dict[str, Any]) -> Any:
        argv = [PYTHON, "-I", "-S", "-B", f"{rootfs.TASK}/probes.py"]
        done = self._box.run(argv, input=json.dumps(event).encode(), timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)


@contextlib.contextmanager
def open_place(kind: str, *, code: Path = HANDLERS, **options: Any) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        if kind == "sandbox":
            box = stack.enter_context(olsock.Sandbox(binds=[f"{code}:{rootfs.TASK}"], **options))
            yield Place(kind, box, InSandbox(box))
            return
        if kind == "function":
            fn = stack.enter_context(olsock.Function(code, "probes:f", **options))
        else:
            zygote = stack.enter_context(olsock.Zygote(spare=0))
            fn = stack.enter_context(zygote.fork(code, "probes:f", **options))
        yield Place(kind, fn, lambda event: fn.invoke(event, timeout=60))


def outside(probe: str, *args: Any, user: int | None = None, before: str | None = None) -> Any:
    """Run a probe on the host, as root or as `user`; `before` is shell, run in a mount namespace of its own."""
    argv = [sys.executable, "-S", "-B", str(HANDLERS / "probes.py")]
    if before is not None:
        argv = ["unshare", "--mount", "--propagation=private", "sh", "-ec", f'{before}\nexec "$@"', "sh", *argv]
    event = json.dumps({"probe": probe, "args": args}).encode()
    done = subprocess.run(argv, input=event, capture_output=True, user=user, group=user, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)
