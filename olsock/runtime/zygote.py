"""Imports packages once, then forks children that have them. Runs in a sandbox of its own.

Exec'd as ``python -I -S -B /var/runtime/zygote.py`` with the control socket (SOCK_SEQPACKET, to the
library) on fd 3. First message: JSON ``{"imports": [...], "path": [...], "capabilities": int}``, answered
by one JSON message. Then one packet per fork: opaque bytes for `_fork.fork` and the descriptors that
belong to them, answered by ``b"\\0" + pid u32`` or ``b"\\1" + errno i32 + text``. The library is trusted,
what is imported here is not: nothing said here is believed by it.
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
    from olsock.runtime import _fork, handler, reseed
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    try:
        import _fork
        import handler
        import reseed
    finally:
        del sys.path[0]
    for _name in ("_fork", "handler", "reseed"):  # see handler.py: users may have modules of these names
        sys.modules[f"_olsock_{_name.lstrip('_')}"] = sys.modules.pop(_name)

if TYPE_CHECKING:
    from typing import Any, NoReturn

CONTROL = 3
MAX_PACKET = 64 * 1024
MAX_FDS = 16
MAX_REASON = 1024
FORKED = struct.Struct("<BI")
FAILED = struct.Struct("<Bi")


def import_all(names: list[str]) -> dict[str, str]:
    """Import each module; return why, by name, for those that failed or that left threads running."""
    bad = {}
    before = _fork.threads()
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
        before = after
    return bad


def settled(expected: int) -> int:
    """Return how many threads there are once those that are about to end have: joining one does not wait for the kernel."""
    for _ in range(100):
        threads = _fork.threads()
        if threads <= expected:
            break
        time.sleep(0.001)
    return threads


def prepare(order: dict[str, Any]) -> dict[str, Any]:
    """Harden the process, import what `order` names, and return the report."""
    began = time.perf_counter()
    _fork.harden(order["capabilities"])  # before the first line of foreign code
    sys.path += [entry for entry in order.get("path") or () if entry not in sys.path]
    gc.disable()  # nothing that an import makes is garbage for long; collections would only touch pages
    bad = import_all(order.get("imports") or [])
    ssl = sys.modules.get("_ssl")
    if ssl is not None:
        # OpenSSL sets its generators up on first use, which takes half a millisecond: once here instead of in every
        # child. What they hold is worth nothing to a child, whose `reseed` comes before its first line of code.
        ssl.RAND_bytes(1)
    gc.collect()
    gc.freeze()  # children never walk these objects, so their pages stay shared
    flush()  # what is in a buffer now would be written by every child
    threads = settled(1)
    return {
        "ok": threads == 1,
        "bad": bad,
        "threads": threads,
        "modules": len(sys.modules),
        "ms": round((time.perf_counter() - began) * 1000, 3),
    }


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


def fork(request: bytes, fds: list[int]) -> bytes | None:
    """Fork once; return the answer for the library, or None in the child, which is isolated already."""
    threads = _fork.threads()
    if threads != 1:  # a lock that another thread holds now would be held for ever in the child
        return FAILED.pack(1, errno.EBUSY) + f"the zygote has {threads} threads and cannot fork".encode()
    try:
        pid = _fork.fork(request, fds)
    except OSError as error:
        return FAILED.pack(1, error.errno or errno.EIO) + str(error).encode(errors="replace")[:MAX_REASON]
    if pid:
        return FORKED.pack(0, pid)
    handler.announce(CONTROL)  # its number is the child's channel now
    return None


def loop(control: _socket.socket) -> int:
    """Serve fork requests until the library hangs up; in a child, return the number of its channel."""
    while True:
        data, fds = receive(control)
        if not data:
            os._exit(0)
        answer = fork(data, fds)
        if answer is None:
            control.detach()  # not to be closed with the object: see `fork`
            return CONTROL
        for fd in fds:
            os.close(fd)
        control.send(answer)


def main() -> NoReturn:
    """Entry: the control socket is fd 3."""
    try:
        control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, CONTROL)
        data, _ = receive(control)
        if not data:
            os._exit(0)
        report = prepare(json.loads(data))
        control.send(json.dumps(report).encode())
        channel = loop(control)
        del control, data, report
        gc.enable()
        reseed.restore()
    except BaseException as error:
        # Told to the log and to the library by the end of file; there is nobody to go on for.
        try:
            os.write(2, f"olsock: zygote failed: {type(error).__name__}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(1)
    handler.serve(channel)


if __name__ == "__main__":
    main()
