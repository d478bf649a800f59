"""Imports packages once, then forks children that have them. Runs in a sandbox of its own.

Exec'd as ``python -I -S -B /var/runtime/zygote.py``, or forked from another zygote, with the control socket
(SOCK_SEQPACKET, to the library) on fd 3. First message: JSON ``{"imports": [...], "path": [...],
"capabilities": int, "env": {...}, "config": {...}}`` (the last for a zygote of one function), answered by one
JSON message. Then one packet per fork: opaque bytes for `_fork.fork` and the descriptors that belong to
them, answered by ``b"\\0" + pid u32`` or ``b"\\1" + errno i32 + text``. The library is trusted, what is
imported here is not: nothing said here is believed by it.
"""

from __future__ import annotations

import _socket  # not `socket`: it brings selectors and enums that no child needs
import errno
import gc
import json
import os
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import _fork, atfork, handler, hooks, measure, rehearse, reseed, wire
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    try:
        import _fork
        import atfork
        import handler
        import hooks
        import rehearse
        import reseed
    finally:
        del sys.path[0]
    for _name in (
        "_fork",
        "atfork",
        "handler",
        "hooks",
        "rehearse",
        "reseed",
    ):  # see handler.py: users may have modules of these names
        sys.modules[f"_olsock_{_name.lstrip('_')}"] = sys.modules.pop(_name)
    measure, wire = handler.measure, handler.wire

if TYPE_CHECKING:
    from typing import Any, NoReturn

CONTROL = 3
TASK = "/var/task"  # where functions are: olsock/rootfs.py
MAX_PACKET = 64 * 1024
MAX_FDS = 32
MAX_REASON = 1024
MAX_REASONS, MAX_BAD = 16 * 1024, 256  # of a report: characters, imports that failed
HELLO = b"\0"  # from a forked zygote that waits for its orders, and from a handler that waits for its function
FINISHED, HALF_MADE, ZYGOTE, EXECUTED = 0, -1, -2, 1  # kinds of children: csrc/fork/isolate.h
FORKED = struct.Struct("<BI")
FAILED = struct.Struct("<Bi")


def import_all(names: list[str]) -> dict[str, str]:
    """Import each module; return why, by name, for those that failed, or left threads or shared memory behind."""
    bad = {}
    before, shared_before = _fork.threads(), shared()
    for name in names:
        try:
            __import__(name)
        except BaseException as error:  # SystemExit at import is a failed import as well
            try:
                bad[name] = f"{type(error).__name__}: {error}"[:MAX_REASON]
            except BaseException:
                bad[name] = type(error).__name__
        after = settled(before)
        if after > before:
            bad[name] = f"started {after - before} thread{'s' if after - before > 1 else ''}"
        shared_after = shared()
        if shared_after > shared_before:
            bad[name] = "made memory that all who are forked from it would share"
        before, shared_before = after, shared_after
    return bad


def shared() -> int:
    """Return how many mappings a fork would share and not copy: what one function writes there, another would read."""
    with open("/proc/self/maps", "rb") as file:
        return sum(line.split(None, 2)[1] == b"rw-s" for line in file)


def settled(expected: int) -> int:
    """Return how many threads there are once those that are about to end have: joining one does not wait for the kernel."""
    for _ in range(100):
        threads = _fork.threads()
        if threads <= expected:
            break
        time.sleep(0.001)
    return threads


def prepare(order: dict[str, Any]) -> tuple[dict[str, Any], handler.Server]:
    """Import what `order` names; return the report, and what will answer in the children."""
    began = time.perf_counter()
    os.environ.update(order.get("env") or {})
    path = order.get("path") or []
    sys.path += [entry for entry in (*path, handler.LIBRARY) if entry not in sys.path]
    handler.neighbour("context")  # so that no child need read it; before a package may have covered it
    gc.disable()  # nothing that an import makes is garbage for long; collections would only touch pages
    measure.start(path)
    try:
        bad = import_all(order.get("imports") or [])
    finally:
        imports = measure.stop()
    measure.settle(path)
    failed, told = become_function(order["config"]) if "config" in order else ("", {})
    ssl = sys.modules.get("_ssl")
    if ssl is not None:
        # OpenSSL sets its generators up on first use, which takes half a millisecond: once here instead of in every
        # child. What they hold is worth nothing to a child, whose `reseed` comes before its first line of code.
        ssl.RAND_bytes(1)
    reseed.prepare(_fork.window)
    if "config" not in order:
        rehearse.in_zygote(handler, path, TASK)
    forget_directories()
    server = handler.settle()  # here once, instead of in every child
    atfork.spare()
    gc.collect()
    gc.freeze()  # children never walk these objects, so their pages stay shared
    flush()  # what is in a buffer now would be written by every child
    threads, mappings = settled(1), shared()
    report = {
        "ok": threads == 1 and not mappings,
        "bad": {name: why[: max(64, MAX_REASONS // len(bad))] for name, why in list(bad.items())[:MAX_BAD]},
        "failed": failed,
        "threads": threads,
        "shared": mappings,
        "modules": len(sys.modules),
        "imports": (imports + told.get("imports", []))[: measure.MAX_ROWS],
        "used": told.get("used", []),
        "ms": round((time.perf_counter() - began) * 1000, 3),
    }
    return report, server


def become_function(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Import the module of a function, for children that need not; return why that failed, or what it imported."""
    try:
        _, _, told = handler.initialise(config)
        hooks.run_before_snapshot()
    except BaseException as error:
        trace = json.loads(handler.describe(error, "init"))["traceback"]
        return trace[-MAX_REASON:] or type(error).__name__, {}
    return "", told


def forget_directories() -> None:
    """Have the import system look again into what it has listed: a child has other packages in the same places."""
    for finder in sys.path_importer_cache.values():
        invalidate = getattr(finder, "invalidate_caches", None)
        if invalidate is not None:
            try:
                invalidate()
            except Exception:
                pass  # somebody's own, and nothing that we mount over


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # an import closed or replaced it


def receive(control: _socket.socket) -> tuple[bytes, list[int]]:
    """Return one packet and its descriptors; an empty packet is the end of the connection."""
    space = _socket.CMSG_SPACE(MAX_FDS * 4)
    data, ancillary, flags, _ = control.recvmsg(MAX_PACKET, space, _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            count = len(content) // 4
            fds += struct.unpack(f"={count}i", content[: count * 4])
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        raise ValueError("packet or descriptors were cut off")
    return data, fds


def fork(request: bytes, fds: list[int]) -> bytes | int:
    """Fork once; return the answer for the library, or in the child what kind of child it is."""
    threads = _fork.threads()
    if threads != 1:  # a lock that another thread holds now would be held for ever in the child
        return FAILED.pack(1, errno.EBUSY) + f"the zygote has {threads} threads and cannot fork".encode()
    try:
        pid = _fork.fork(request, fds)
    except OSError as error:
        return FAILED.pack(1, error.errno or errno.EIO) + str(error).encode(errors="replace")[:MAX_REASON]
    if pid > 0:
        return FORKED.pack(0, pid)
    if pid == FINISHED:
        handler.announce(CONTROL)  # its number is the child's channel now
    return pid


def loop(control: _socket.socket) -> int:
    """Serve fork requests until the library hangs up; in a child, return its kind."""
    while True:
        data, fds = receive(control)
        if not data:
            os._exit(0)
        answer = fork(data, fds)
        if isinstance(answer, int):
            control.detach()  # the child has another file under its number
            return answer
        for fd in fds:
            os.close(fd)
        control.send(answer)


def begin(kind: int) -> tuple[int, handler.Server]:
    """Be a zygote: take the orders, import, and fork. Returns in its children, with their kind and what answers in them."""
    control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, CONTROL)
    atfork.restore()
    if kind == ZYGOTE:
        reseed.restore()  # zygotes of one parent would draw the same keys: they have the same pid, too
        control.send(HELLO)
    data, _ = receive(control)
    if not data:
        os._exit(0)
    order = json.loads(data)
    if kind == EXECUTED:  # one that was forked has given up its rights already
        _fork.harden(order["capabilities"])  # before the first line of foreign code
    report, server = prepare(order)
    control.send(json.dumps(report).encode())
    del data, order, report
    return loop(control), server


def wait(server: handler.Server) -> None:
    """Say that everything but the function is there, wait for that, and take it on."""
    rehearse.in_handler(server, wire)
    threads = settled(1)
    if threads != 1:
        # Hooks of packages may start some after a fork. They would keep the zygote's filter when this thread takes on a
        # handler's, and the function's code could have them do what it may not: such a handler cannot be made ahead.
        raise OSError(errno.EBUSY, f"hooks of the fork left {threads} threads running")
    server.channel.send(HELLO)
    _fork.finish(server.channel.fd)


def main() -> NoReturn:
    """Entry: the control socket is fd 3."""
    try:
        kind = EXECUTED
        while kind in (EXECUTED, ZYGOTE):
            kind, server = begin(kind)
        gc.enable()
        atfork.restore()
        reseed.restore()
        server.open(CONTROL)
        if hooks.MODULES[0] in sys.modules or hooks.MODULES[1] in sys.modules:
            server.restored = hooks.run_after_restore
        if kind == HALF_MADE:
            wait(server)
            handler.announce(server.channel.fd)
    except BaseException as error:
        # Told to the log and to the library by the end of file; there is nobody to go on for.
        try:
            os.write(2, f"olsock: zygote failed: {type(error).__name__}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(1)
    handler.serve(CONTROL, server)


if __name__ == "__main__":
    main()
