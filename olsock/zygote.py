"""Zygotes: sandboxes whose interpreter has imported packages and forks handlers that have them.

The twin of olsock/runtime/zygote.py (inside) and csrc/fork/isolate.c (the fork). A zygote runs package code, so it is not
trusted: it has a user namespace and a range of ids of its own, and nothing that it says is believed. Its child is found
through the cgroup that it had to be born in.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from olsock import host as hosts
from olsock import identity, rootfs
from olsock._core import process, seccomp
from olsock.box import (
    CAP_NET_ADMIN,
    CAP_SETGID,
    CAP_SETPCAP,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    INIT_CAPABILITIES,
    Box,
    Command,
    Mounts,
    Setup,
    limits,
)
from olsock.cgroups import Leaf, Stats
from olsock.channel import Channel
from olsock.deadline import Deadline
from olsock.endpoints import Endpoints, read_tail
from olsock.errors import DeadlineError, KernelError, SandboxDeadError, SpecError, ZygoteError
from olsock.function import Function, Parts, bind_code, config, describe_status
from olsock.interpreter import ENVIRONMENT, Interpreter
from olsock.kits import Kit, Kits
from olsock.owned import Owned
from olsock.packets import blob, rlimits, strings, u32
from olsock.spawner import channel
from olsock.spec import FunctionSpec, ZygoteSpec

CAPABILITIES = CAP_SYS_ADMIN | CAP_SETGID | CAP_SETUID
"""What a zygote keeps in its own user namespace: to mount a handler's trees and proc, and to give up its id."""

SETTLED = ("hostname", "network", "packages", "python", "seccomp")  # for all handlers of a zygote, when it is made

_NETWORK_GIVEN, _NETWORK_SHARED = 1, 2  # csrc/fork/isolate.c
FORK_TIMEOUT = 10.0
STATUS_TIMEOUT = 1.0  # for init to tell of an end
REMOVAL_TIMEOUT = 20.0
MAX_ORDERS = 256
LOG_LIMIT = 64 * 1024
NOFILE = 1024
TMPFS_SIZE = 64 * 1024 * 1024
SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


TREES = (rootfs.TASK, "/tmp", "/dev/shm")  # where a handler's own trees go, in the order of the fds


@dataclass(frozen=True, slots=True)
class _Order:
    """A function to be forked, checked and packed."""

    spec: FunctionSpec
    config: bytes
    request: bytes


class Zygote(Owned):
    """An interpreter that has imported `imports` and forks handlers in about a millisecond.

    `packages` are directories of installed packages, which the handlers see too; `python` an interpreter (CPython >= 3.9).
    Raises `ZygoteError` for an import that fails, crashes, or leaves threads behind; with `skip_bad`, modules that fail
    to import are left out and named in `bad`.
    """

    def __init__(self, imports: Sequence[str] = (), **options: Any) -> None:
        """Create it and wait until the imports are done."""
        self.spec = ZygoteSpec.parse(imports=imports, **options)
        self.bad: dict[str, str] = {}
        self._turn = threading.Lock()  # forks of one process are serial in the kernel as well
        self._functions: weakref.WeakSet[Function] = weakref.WeakSet()  # one that is forgotten ends by itself
        self._orders: dict[tuple[Any, ...], _Order] = {}
        host = hosts.current()
        self.name = f"z-{host.number()}"
        self._interpreter = Interpreter(self.spec.python, self.spec.packages)
        self._filter = seccomp.compile("handler-drop")
        self._block = identity.claim()
        self._domain = host.tree.domain(self.name)
        self._box: Box | None = None
        self._kits: Kits | None = None
        self._control: socket.socket | None = None
        self._log = self.pidfd = -1
        self._own()
        try:
            self._start(host)
        except BaseException:
            self.close()
            raise

    def _start(self, host: hosts.Host) -> None:
        own_network = self.spec.network != "host"
        self._domain.delegate(self._block.base)
        # Init stays out of the zygote's cgroup: it has to outlive the zygote for the handlers' sake.
        init_leaf = self._domain.leaf("init")
        self._leaf = self._domain.leaf("zygote")
        self._leaf.set(self.spec.limits)
        base = host.bases.place(
            self._interpreter.recipe(self.spec.network != "none")
        )  # before the clone, which copies it
        self._box = box = Box(host.spawner, [(0, self._block.base, self._block.size)], init_leaf, network=own_network)
        over = Mounts()
        over.proc(())  # unmasked: the kernel refuses handlers a proc of their own below a masked one
        over.tmpfs("/tmp", TMPFS_SIZE, 4096)
        over.tmpfs("/dev/shm", TMPFS_SIZE, 4096)
        box.setup(
            Setup(
                root=base,
                mounts=over,
                hostname="sandbox",
                rlimits=limits(NOFILE, None),
                filter=seccomp.compile("zygote"),
                filter_init=False,  # init makes network namespaces, which the zygote's filter does not allow
                capabilities=INIT_CAPABILITIES | CAPABILITIES | CAP_SETPCAP | CAP_NET_ADMIN,
                network=own_network,
                # With one rooted at its own leaf, nsdelegate refuses births elsewhere (ENOENT); handlers get theirs.
                cgroup=False,
            )
        )
        self._spawn(box, init_leaf)
        self._prepare()
        self._kits = Kits(self._domain, box, self._block, spare=self.spec.spare, network=own_network)

    def _spawn(self, box: Box, init_leaf: Leaf) -> None:
        ours, theirs = channel()
        self._control = ours
        ours.settimeout(FORK_TIMEOUT)
        self._log, log = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        command = Command(
            self._interpreter.command("zygote.py"),
            {**ENVIRONMENT, **SINGLE_THREADED, **self.spec.env},
            "/",
            uid=0,
            gid=0,
            capabilities=CAPABILITIES | CAP_SETPCAP,
        )
        try:
            self._token, _ = box.spawn(command, [null, log, log, theirs.fileno()])
        finally:
            process.close_all(null, log)
            theirs.close()
        # It waits for its orders while it is moved, so all that it imports is charged to its own cgroup.
        (pid,) = [pid for pid in init_leaf.pids() if pid != box.pid]
        self._leaf.adopt(pid)
        self.pid = pid
        self.pidfd = process.pidfd_open(pid)

    def _prepare(self) -> None:
        assert self._control is not None
        order = {
            "imports": list(self.spec.imports),
            "path": self._interpreter.path,
            "capabilities": CAPABILITIES,
        }
        self._control.send(json.dumps(order).encode())
        report = self._report()
        self.bad = {str(name): str(why) for name, why in report.get("bad", {}).items()}
        if not report.get("ok"):
            raise ZygoteError(f"imports left {report.get('threads')} threads running: {_reasons(self.bad)}")
        if self.bad and not self.spec.skip_bad:
            raise ZygoteError(f"imports failed: {_reasons(self.bad)}")

    def _report(self) -> dict[str, Any]:
        """Wait for the zygote's report while emptying its log, on which it could block otherwise."""
        assert self._control is not None
        output = bytearray()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._log, select.POLLIN)
        os.set_blocking(self._log, False)
        clock = Deadline(self.spec.timeout)
        while True:
            ready = [fd for fd, _ in poll.poll(clock.milliseconds())]
            if not ready:
                raise ZygoteError(f"imports took longer than {self.spec.timeout} s")
            if self._log in ready and not read_tail(self._log, output, LOG_LIMIT):
                poll.unregister(self._log)
            if self._control.fileno() in ready:
                try:
                    data = self._control.recv(LOG_LIMIT)
                except OSError:
                    data = b""
                if not data:
                    read_tail(self._log, output, LOG_LIMIT)
                    raise ZygoteError(f"the interpreter ended during imports: {self._epitaph(output)}")
                try:
                    report = json.loads(data)
                except ValueError:
                    report = None
                if not isinstance(report, dict) or not isinstance(report.get("bad", {}), dict):
                    raise ZygoteError("the zygote sent no report")
                return report

    def _epitaph(self, output: bytearray) -> str:
        assert self._box is not None
        last = output.decode(errors="replace").strip().splitlines()[-3:]
        if self._leaf.oom_kills():
            return "out of memory"
        try:
            status = self._box.wait(self._token, 1.0).status
        except (DeadlineError, SandboxDeadError):
            return " | ".join(last)
        return " | ".join([describe_status(status), *last])

    def fork(self, code: str | os.PathLike[str], handler: str = "f:f", **options: Any) -> Function:
        """Fork a handler: `code` is a directory with its module, mounted at /var/task; options as for `Function`.

        Raises `ZygoteError` if this zygote cannot fork any more; live handlers are not affected by that. What was settled
        with the zygote (network, seccomp, packages, python, hostname) is no option here: `SpecError`.
        """
        for name in SETTLED:
            if name in options:
                raise SpecError(name, options[name], "no value here: the zygote settles that for its handlers")
        order = self._order(code, handler, options)
        kits, box = self._kits, self._box
        if self._closed or kits is None or box is None:
            raise ZygoteError(f"zygote {self.name} is closed")
        kit = kits.take(order.spec)
        try:
            return self._fork(box, kits, order, kit)
        except BaseException:
            kit.release()
            raise

    def _order(self, code: str | os.PathLike[str], handler: str, options: dict[str, Any]) -> _Order:
        """Check and pack what was asked for, or remember: a function is forked again and again, and this costs as much
        as all else that a fork needs here."""
        key: tuple[Any, ...] = (os.fspath(code), handler, *((name, type(it), it) for name, it in options.items()))
        try:
            known = self._orders.get(key)
        except TypeError:  # an option, such as env, that cannot be a key
            key, known = (), None
        if known is not None and os.path.isdir(known.spec.code):
            return known
        spec = FunctionSpec.parse(code=code, handler=handler, **options)
        order = _Order(spec, config(spec, self._interpreter), self._pack(spec))
        if key:
            if len(self._orders) >= MAX_ORDERS:
                self._orders.clear()
            self._orders[key] = order
        return order

    def _pack(self, spec: FunctionSpec) -> bytes:
        """The part of a request that does not depend on the kit."""
        return rlimits(limits(spec.nofile, spec.fsize)) + blob(self._filter)

    def _fork(self, box: Box, kits: Kits, order: _Order, kit: Kit) -> Function:
        ends, pidfd = kit.ends, -1
        assert ends is not None
        try:
            ends.send(order.config)
            code = bind_code(order.spec.code)
            try:
                inner = self._request(kit, ends, code, order.request)
            finally:
                os.close(code)
            ends.close_theirs()
            pid, pidfd = self._find(kit, ends)
            status = partial(box.wait_orphan, inner, STATUS_TIMEOUT)
            parts = Parts(order.spec, ends, kit.leaf, pid, pidfd, status, lambda: None)
        except BaseException:
            process.close_all(pidfd)
            raise
        made = Function.forked(parts)
        kit.ends = None

        def release() -> None:
            self._functions.discard(made)
            kit.leaf.kill()
            # The kernel tells of an empty cgroup at most every 10 ms (kernel/cgroup/cgroup.c, CGROUP_FILE_NOTIFY_MIN_INTV);
            # the pidfd tells at once.
            process.wait_readable(pidfd, REMOVAL_TIMEOUT)
            kit.release()

        parts.release = release
        self._functions.add(made)
        kits.check(kit, pid)
        kit.close_fds()
        return made

    def _request(self, kit: Kit, ends: Endpoints, code: int, rest: bytes) -> int:
        """One exchange with the zygote, under a deadline; return the child's pid as it names it.

        That is believed for nothing but words: it picks the exit status that a crash is described with.
        """
        assert self._control is not None
        flags = _NETWORK_SHARED if self.spec.network == "host" else 0
        fds = [*ends.theirs, kit.cgroup]
        if kit.netns >= 0:
            flags |= _NETWORK_GIVEN
            fds.append(kit.netns)
        fds += [*kit.tasks, kit.tmp, kit.shm, code]
        own = strings(TREES[1:]) + strings(rootfs.MASKED) + strings(TREES[:1]) + u32(kit.uid, kit.uid)
        with self._turn:
            try:
                socket.send_fds(self._control, [u32(flags, len(kit.tasks)) + own, rest], fds)
                answer = self._control.recv(4096)
            except TimeoutError:
                self._leaf.kill()
                raise ZygoteError(f"the zygote did not fork in {FORK_TIMEOUT} s and was killed") from None
            except OSError as e:
                raise ZygoteError(f"the zygote is gone ({e.strerror})") from e
        if not answer:
            raise ZygoteError("the zygote is gone")
        if answer[0] != 0:
            raise ZygoteError(f"the zygote could not fork: {answer[5:1024].decode(errors='replace')}")
        return int.from_bytes(answer[1:5], "little")

    def _find(self, kit: Kit, ends: Endpoints) -> tuple[int, int]:
        """The child's pid and pidfd, read from the fresh cgroup that it was born in."""
        for pid in kit.leaf.pids():
            try:
                pidfd = process.pidfd_open(pid)
            except KernelError:
                continue
            if pid in kit.leaf.pids():  # still there: the pidfd is that process and no later one
                return pid, pidfd
            os.close(pidfd)
        with contextlib.suppress(SandboxDeadError):
            Channel(ends.channel).wait_started(1.0)  # raises what the child reported before it ended
        raise ZygoteError("the zygote forked nobody into the sandbox's cgroup")

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return not self._closed and self.pidfd >= 0 and not process.wait_readable(self.pidfd, 0)

    def stats(self) -> Stats:
        """What the zygote itself uses, its handlers apart."""
        return self._leaf.stats()

    def _end(self) -> None:
        for made in list(self._functions):
            made.close()
        if self._control is not None:
            self._control.close()
        self._domain.kill()
        if self._box is not None:
            self._box.close()
        if self._kits is not None:
            self._kits.close()
        self._domain.remove()
        process.close_all(self._log, self.pidfd)
        self._block.release()


def _reasons(bad: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in bad.items()) or "of unknown origin"
