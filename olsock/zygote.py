"""Zygotes: sandboxes whose interpreter has imported packages and forks handlers, or further zygotes, that have them.

The twin of olsock/runtime/zygote.py. A zygote runs package code, so it is not trusted: it has a trust domain of its own
(olsock/trust.py), and nothing that it says is believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from olsock import forks, memory, readiness
from olsock import host as hosts
from olsock._core import process, seccomp
from olsock.box import CAP_SETPCAP, Command, limits
from olsock.cgroups import Stats
from olsock.channel import FAULT_SIZE
from olsock.deadline import Deadline
from olsock.endpoints import Tail
from olsock.errors import DeadlineError, SandboxDeadError, SpecError, ZygoteError
from olsock.forks import Child, Forks
from olsock.function import Function, Parts, bind_directory, config, config_of, describe_status, own_trees
from olsock.interpreter import ENVIRONMENT, Interpreter
from olsock.kits import Kit, Kits
from olsock.memory import Memory
from olsock.owned import Owned
from olsock.packets import blob, error, rlimits
from olsock.readiness import Imported
from olsock.runtime import wire
from olsock.spawner import channel
from olsock.spec import FunctionSpec, ZygoteSpec
from olsock.stock import Stock
from olsock.trust import CAPABILITIES, ENTERED, TrustDomain, own_mounts

SETTLED = ("hostname", "network", "python", "seccomp")  # for all handlers of a zygote, when it is made
INHERITED = ("network", "python", "separate_stderr", "pids")  # settled for a child by its parent

STATUS_TIMEOUT = 1.0  # for init to tell of an end
REMOVAL_TIMEOUT = 20.0
BIRTH_TIMEOUT = 10.0  # of a zygote from a zygote: two clones and its namespaces
MAX_ORDERS = 256
LOG_LIMIT = 64 * 1024
REPORT_LIMIT = 256 * 1024
SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class _Order:
    """A function to be forked, checked and packed."""

    spec: FunctionSpec
    config: bytes
    rest: bytes  # limits and the filter
    packages: tuple[str, ...]  # other than the zygote's


@dataclass(slots=True)
class _Blank:
    """A handler that was forked ahead and waits for its function."""

    kit: Kit
    child: Child

    def release(self) -> None:
        process.close_all(self.child.pidfd)
        self.kit.release()


class Zygote(Owned):
    """An interpreter that has imported `imports` and forks handlers in about a millisecond.

    `packages` are directories of installed packages, which the handlers see too; `python` an interpreter (CPython >= 3.9).
    `blanks` handlers are kept forked ahead, and start in a third of that. With `code` and `handler` it is a zygote of that
    one function, whose module it has imported too. `descendants` zygotes can be forked from it: see `child`.

    Raises `ZygoteError` for an import that fails, crashes, or leaves threads behind; with `skip_bad`, modules that fail
    to import are left out and named in `bad`.
    """

    def __init__(self, imports: Sequence[str] = (), **options: Any) -> None:
        """Create it and wait until the imports are done."""
        self._make(ZygoteSpec.parse(imports=imports, **options), None)

    def child(self, imports: Sequence[str] = (), **options: Any) -> Zygote:
        """Fork a zygote from this one: it shares the memory of what is imported here, and imports more.

        Options as for `Zygote`; interpreter, network and streams are the parent's, and so are packages unless others are
        given, which it and its handlers then see in their place. Closing the parent closes it. Raises `ZygoteError` too if
        more are forked than `descendants` said.
        """
        for name in INHERITED:
            if name in options:
                raise SpecError(name, options[name], "no value here: a zygote that is forked has its parent's")
        if self._closed:
            raise ZygoteError(f"zygote {self.name} is closed")
        given = {name: getattr(self.spec, name) for name in INHERITED}
        options.setdefault("packages", self.spec.packages)
        spec = ZygoteSpec.parse(imports=imports, **options, **given)
        self._check_places(spec.packages)
        made = type(self).__new__(type(self))
        made._make(spec, self)
        return made

    def _make(self, spec: ZygoteSpec, parent: Zygote | None) -> None:
        self.spec, self.parent = spec, parent
        self.bad: dict[str, str] = {}
        self.imported: tuple[Imported, ...] = ()  # what of its packages it has imported itself, as it says
        self._functions: weakref.WeakSet[Function] = weakref.WeakSet()  # one that is forgotten ends by itself
        self._children: weakref.WeakSet[Zygote] = weakref.WeakSet()
        self._orders: dict[tuple[Any, ...], _Order] = {}
        host = hosts.current()
        self.name = f"z-{host.number()}"
        self._interpreter = Interpreter(spec.python, spec.packages)
        self._filter = seccomp.compile("handler-drop")
        self._kits: Kits | None = None
        self._blanks: Stock[_Blank] | None = None
        self._control: socket.socket | None = None
        self._log = self.pidfd = -1
        self.pid = self._inner = 0
        if parent is None:
            self._domain = TrustDomain.root(host, self.name, spec.descendants)
        else:
            self._domain = parent._domain.nested(self.name, spec.descendants)
        self._own()
        try:
            self._start(host)
        except BaseException:
            self.close()
            raise
        if parent is not None:
            parent._children.add(self)
            if parent._closed:
                self.close()
                raise ZygoteError(f"zygote {parent.name} was closed meanwhile")

    # -- its own start ------------------------------------------------------------------------------------------------

    def _start(self, host: hosts.Host) -> None:
        own_network = self.spec.network != "host"
        over, opened, root = own_mounts(), [], ""
        try:
            if self.parent is None:  # before the clone, which copies it
                root = host.bases.place(self._interpreter.recipe(self.spec.network != "none"))
            else:
                for source, target in zip(self.spec.packages, self._interpreter.path, strict=True):
                    opened.append(bind_directory(source, "packages"))
                    over.tree(target, opened[-1])
            for target, tree in own_trees(self.spec):
                opened.append(tree)
                over.tree(target, tree)
            self._domain.open(host, root, self.spec.limits, over, network=own_network)
        finally:
            process.close_all(*opened)
        self._log, log = os.pipe2(os.O_CLOEXEC)
        try:
            if self.parent is None:
                self._execute(log)
            else:
                self._fork_from(self.parent, log)
        finally:
            os.close(log)
        self._prepare()
        assert self._control is not None
        self._forks = Forks(
            self._control, self._domain.leaf, nested=self.parent is not None, shared_network=not own_network
        )
        self._kits = Kits(
            self._domain, spare=self.spec.spare, network=own_network, separate_stderr=self.spec.separate_stderr
        )
        self._blanks = Stock(_maker(weakref.ref(self)), _Blank.release, self.spec.blanks, "olsock-halves")
        self._blanks.refill()

    def _execute(self, log: int) -> None:
        """Begin a fresh interpreter in this domain."""
        box = self._domain.box
        assert box is not None
        self._control, theirs = channel()
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
            os.close(null)
            theirs.close()
        # It waits for its orders while it is moved, so all that it imports is charged to its own cgroup.
        (self.pid,) = [pid for pid in self._domain.init_leaf.pids() if pid != box.pid]
        self._domain.leaf.adopt(self.pid)
        self.pidfd = process.pidfd_open(self.pid)

    def _fork_from(self, parent: Zygote, log: int) -> None:
        """Have `parent` fork an interpreter into this domain."""
        kinds = [(name, flag) for name, flag in ENTERED if name != "net" or self.spec.network != "host"]
        opened = self._domain.namespaces(tuple(name for name, _ in kinds))
        self._control, theirs = channel()
        try:
            namespaces = [(flag, fd) for (_, flag), fd in zip(kinds, opened, strict=True)]
            parent._forks.zygote([theirs.fileno(), log], self._domain.leaf, namespaces, CAPABILITIES)
        finally:
            theirs.close()
            process.close_all(*opened)
        self._control.settimeout(BIRTH_TIMEOUT)
        try:
            hello = self._control.recv(4096)
        except OSError as e:
            raise ZygoteError(f"no zygote was born of {parent.name} in {BIRTH_TIMEOUT} s") from e
        fault = hello[wire.HEADER.size :]
        if hello[:1] == bytes([wire.FAULT]) and len(fault) == FAULT_SIZE:
            raise error(fault)
        if hello != forks.HELLO:
            raise ZygoteError(f"zygote {parent.name} forked no zygote, or one that ended at once")
        end = time.monotonic() + BIRTH_TIMEOUT
        while len(self._domain.leaf.pids()) != 1:  # the one in between is about to end
            if time.monotonic() > end:
                raise ZygoteError(f"zygote {parent.name} forked something else than one zygote")
            time.sleep(0.0005)
        found = forks.find(self._domain.leaf)
        if found is None:
            raise ZygoteError(f"the zygote that was forked of {parent.name} ended at once")
        self.pid, self.pidfd = found
        self._inner = forks.outermost(self.pid)
        self._domain.leaf.delegate(0)  # nobody is to be born there any more

    def _prepare(self) -> None:
        assert self._control is not None
        self._control.settimeout(None)
        spec = self.spec
        order: dict[str, Any] = {
            "imports": list(spec.imports),
            "path": self._interpreter.path,
            "capabilities": CAPABILITIES,
            "env": {} if self.parent is None else dict(spec.env),
        }
        if spec.handler is not None:
            order["config"] = config_of(str(spec.handler), spec.env, self._interpreter, spec.opt)
        try:
            self._control.send(json.dumps(order).encode())
        except ConnectionError as e:
            raise ZygoteError(f"zygote {self.name} ended before it had its orders") from e
        report = self._receive_report()
        self.imported = _imported(report)
        self.bad = {str(name): str(why) for name, why in report.get("bad", {}).items()}
        if not report.get("ok"):
            left = "shared memory behind" if report.get("threads") == 1 else f"{report.get('threads')} threads running"
            raise ZygoteError(f"imports left {left}: {_reasons(self.bad)}", "unforkable")
        failed = str(report["failed"]) if report.get("failed") else ""
        if failed:
            raise ZygoteError(f"the function's module could not be imported: {failed}", "imports")
        if self.bad and not spec.skip_bad:
            raise ZygoteError(f"imports failed: {_reasons(self.bad)}", "imports")

    def _receive_report(self) -> dict[str, Any]:
        """Wait for the zygote's report while emptying its log, on which it could block otherwise."""
        assert self._control is not None
        output = Tail(self._log, LOG_LIMIT)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._log, select.POLLIN)
        clock = Deadline(self.spec.timeout)
        while True:
            ready = [fd for fd, _ in poll.poll(clock.milliseconds())]
            if not ready:
                raise ZygoteError(f"imports took longer than {self.spec.timeout} s", "slow")
            if self._log in ready and not output.read():
                poll.unregister(self._log)
            if self._control.fileno() in ready:
                try:
                    data = self._control.recv(REPORT_LIMIT)
                except OSError:
                    data = b""
                if not data:
                    output.read()
                    raise self._epitaph(output)
                return _parse_report(data)

    def _epitaph(self, output: Tail) -> ZygoteError:
        """What to raise for an interpreter that ended before it was a zygote."""
        what = "the interpreter ended during imports"
        if self._domain.leaf.oom_kills():
            return ZygoteError(f"{what}: out of memory", "crash")
        status = self._status()
        how = "it is gone" if status is None else describe_status(status)
        killed = status is not None and os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        last = str(output).strip().splitlines()[-3:]
        return ZygoteError(f"{what}: {' | '.join([how, *last])}", "killed" if killed else "crash")

    def _status(self) -> int | None:
        """The wait status of the zygote itself, once it has ended."""
        if self.parent is not None:
            return self._domain.witness.wait_orphan(self._inner, STATUS_TIMEOUT)
        assert self._domain.box is not None
        try:
            return self._domain.box.wait(self._token, STATUS_TIMEOUT).status
        except (DeadlineError, SandboxDeadError):
            return None

    # -- forks --------------------------------------------------------------------------------------------------------

    def fork(self, code: str | os.PathLike[str] | None = None, handler: str | None = None, **options: Any) -> Function:
        """Fork a handler: `code` is a directory with its module, mounted at /var/task; options as for `Function`.

        `packages`, if given, are what the handler sees in place of the zygote's: they must hold all that the zygote has
        imported, in the same versions, and nothing here checks that (olsock.ZygoteTree does). A function zygote forks its
        own function unless told otherwise.

        Raises `ZygoteError` if this zygote cannot fork any more; live handlers are not affected by that. What was settled
        with the zygote (network, seccomp, python, hostname) is no option here: `SpecError`.
        """
        kits, order = self._ask(code, handler, options)
        made = self._attach(kits, order)
        if made is not None:
            return made
        kit = kits.take(order.spec)
        try:
            return self._fork(kits, order, kit)
        except BaseException:
            kit.release()
            raise

    def attach(
        self, code: str | os.PathLike[str] | None = None, handler: str | None = None, **options: Any
    ) -> Function | None:
        """Do what `fork` does if a handler waits for its function (`blanks`), without ever waiting itself; else None."""
        kits, order = self._ask(code, handler, options)
        return self._attach(kits, order, patient=False)

    def _ask(
        self, code: str | os.PathLike[str] | None, handler: str | None, options: dict[str, Any]
    ) -> tuple[Kits, _Order]:
        for name in SETTLED:
            if name in options:
                raise SpecError(name, options[name], "no value here: the zygote settles that for its handlers")
        if code is None:
            code = self.spec.code
        if handler is None:
            handler = "f:f" if self.spec.handler is None else str(self.spec.handler)
        order = self._order(code, handler, options)
        if self._closed or self._kits is None:
            raise ZygoteError(f"zygote {self.name} is closed")
        return self._kits, order

    def _order(self, code: str | os.PathLike[str] | None, handler: str, options: dict[str, Any]) -> _Order:
        """Check and pack what was asked for, or remember: a function is forked again and again, and this costs as much
        as all else that a fork needs here."""
        path = None if code is None else os.fspath(code)
        key: tuple[Any, ...] = (path, handler, *((name, type(it), _fixed(it)) for name, it in options.items()))
        try:
            known = self._orders.get(key)
        except TypeError:  # an option that cannot be a key
            key, known = (), None
        if known is not None and os.path.isdir(known.spec.code):
            return known
        if code is None:
            raise SpecError("code", None, "a directory: it has no default but in a zygote of one function")
        order = self._make_order(FunctionSpec.parse(code=code, handler=handler, **options))
        if key:
            if len(self._orders) >= MAX_ORDERS:
                self._orders.clear()
            self._orders[key] = order
        return order

    def _make_order(self, spec: FunctionSpec) -> _Order:
        interpreter = self._interpreter
        if spec.packages:
            interpreter = Interpreter(self.spec.python, spec.packages)
            self._check_places(spec.packages)
        rest = rlimits(limits(spec.nofile, spec.fsize)) + blob(self._filter)
        return _Order(spec, config(spec, interpreter), rest, spec.packages)

    def _check_places(self, packages: Sequence[str]) -> None:
        """Refuse more directories of packages than the root, whose mount points they need, was made for."""
        root = self
        while root.parent is not None:
            root = root.parent
        places = max(1, len(root.spec.packages))
        if len(packages) > places:
            raise SpecError("packages", packages, f"at most as many as its zygote has places for: {places}")

    def _trees(self, order: _Order) -> list[tuple[str, int]]:
        """What is a function's own among the mounts: where to, and detached trees, which are the caller's to close."""
        trees = own_trees(order.spec)
        try:
            for source, target in zip(order.packages, Interpreter(None, order.packages).path, strict=True):
                trees.append((target, bind_directory(source, "packages")))
        except BaseException:
            process.close_all(*(fd for _, fd in trees))
            raise
        return trees

    def _fork(self, kits: Kits, order: _Order, kit: Kit) -> Function:
        assert kit.ends is not None
        kit.ends.send(order.config)
        trees = self._trees(order)
        try:
            part = forks.function_part([target for target, _ in trees], kit.uid, order.rest)
            child = self._forks.handler(kit, part, trees)
        finally:
            process.close_all(*(fd for _, fd in trees))
        kits.check(kit, child.pid)
        return self._hand_over(kit, child, order)

    def _wait(self) -> _Blank:
        """Fork a handler that waits for its function."""
        assert self._kits is not None
        kit = self._kits.take_any()
        try:
            child = self._forks.handler(kit, None)
        except BaseException:
            kit.release()
            raise
        self._kits.check(kit, child.pid)
        kit.close_fds()
        return _Blank(kit, child)

    def _attach(self, kits: Kits, order: _Order, *, patient: bool = True) -> Function | None:
        """Give a waiting handler its function; None if there is none, or it has died of waiting."""
        blanks = self._blanks
        blank = blanks.take() if blanks is not None and blanks.size else None
        if blanks is None or blank is None:
            return None
        if not forks.wait(blank.kit, patient=patient):
            blanks.put(blank)  # so young that it does not wait yet
            return None
        kit, spec = blank.kit, order.spec
        trees: list[tuple[str, int]] = []
        try:
            kit.leaf.set(spec.limits)
            kits.remember(spec)
            trees = self._trees(order)
            if kit.tmpfs != (spec.tmpfs_size, spec.tmpfs_inodes):
                kits.fill(kit, (spec.tmpfs_size, spec.tmpfs_inodes))
                trees += [("/tmp", kit.tmp), ("/dev/shm", kit.shm)]
                kit.tmp = kit.shm = -1
            part = forks.function_part([target for target, _ in trees], kit.uid, order.rest)
            forks.finish(kit, part, trees, order.config)
        except (ConnectionError, TimeoutError):
            blank.release()
            return None
        except BaseException:
            blank.release()
            raise
        finally:
            process.close_all(*(fd for _, fd in trees))
        made = self._hand_over(kit, blank.child, order)
        made.was_blank = True
        return made

    def _hand_over(self, kit: Kit, child: Child, order: _Order) -> Function:
        """Make a function of a kit and a child."""
        assert kit.ends is not None
        status = partial(self._domain.witness.wait_orphan, child.inner, STATUS_TIMEOUT)
        parts = Parts(order.spec, kit.ends, kit.leaf, child.pid, child.pidfd, status, lambda: None)
        made = Function.forked(parts)
        kit.ends = None

        def release() -> None:
            self._functions.discard(made)
            kit.leaf.kill()
            # The kernel tells of an empty cgroup at most every 10 ms (kernel/cgroup/cgroup.c, CGROUP_FILE_NOTIFY_MIN_INTV);
            # the pidfd tells at once.
            process.wait_readable(child.pidfd, REMOVAL_TIMEOUT)
            kit.release()

        parts.release = release
        self._functions.add(made)
        kit.close_fds()
        return made

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def blanks(self) -> int:
        """How many handlers are kept forked ahead; can be set at any time."""
        return 0 if self._blanks is None else self._blanks.size

    @blanks.setter
    def blanks(self, count: int) -> None:
        if type(count) is not int or not 0 <= count <= 1024:
            raise SpecError("blanks", count, "an int from 0 to 1024")
        if self._blanks is not None and not self._closed:
            self._blanks.resize(count)

    @property
    def waiting(self) -> int:
        """How many handlers wait for their function now."""
        return 0 if self._blanks is None else len(self._blanks)

    @property
    def handlers(self) -> int:
        """How many functions forked from it there are."""
        return len(self._functions)

    @property
    def children(self) -> int:
        """How many zygotes forked from it there are."""
        return len(self._children)

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return not self._closed and self.pidfd >= 0 and not process.wait_readable(self.pidfd, 0)

    def stats(self) -> Stats:
        """What the zygote itself uses, its handlers apart."""
        return self._domain.leaf.stats()

    def memory(self) -> Memory:
        """What of the memory of the zygote itself is its own, and what it shares."""
        return memory.measure(self._domain.leaf.pids())

    def kill(self) -> None:
        """Kill it and all that was forked from it, whatever they are doing; what they had is removed by `close`."""
        self._domain.group.kill()

    def _end(self) -> None:
        with contextlib.ExitStack() as stack:  # from the last line to the first, all of it whatever fails
            if self.parent is not None:
                stack.callback(self.parent._children.discard, self)
            stack.callback(process.close_all, self._log, self.pidfd)
            stack.callback(self._domain.close)
            for each in (self._kits, self._control, self._blanks, *list(self._functions), *list(self._children)):
                if each is not None:
                    stack.callback(each.close)
            # At once, as it ends all the same: nothing below then waits for an answer of somebody who was stopped.
            stack.callback(self.kill)


def _maker(reference: weakref.ref[Zygote]) -> Callable[[], _Blank]:
    """What fills the stock of a zygote without keeping the zygote alive."""

    def make() -> _Blank:
        zygote = reference()
        if zygote is None:
            raise ZygoteError("the zygote was forgotten")
        return zygote._wait()

    return make


def _fixed(value: Any) -> Any:
    """An option's value as something that can be a key, if it is of the usual kinds."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value


def _parse_report(data: bytes) -> dict[str, Any]:
    report = None
    with contextlib.suppress(ValueError, RecursionError):
        report = json.loads(data)
    if not isinstance(report, dict) or not isinstance(report.get("bad", {}), dict):
        raise ZygoteError("the zygote sent no report")
    return report


def _imported(report: dict[str, Any]) -> tuple[Imported, ...]:
    try:
        return readiness.imports(report.get("imports") or [])
    except ValueError as e:
        raise ZygoteError(f"the zygote's report of its imports is not one: {e}") from None


def _reasons(bad: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in bad.items()) or "of unknown origin"
