"""The store: each distribution installed once for each kind of interpreter, and closures merged from them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import msgspec
from packaging.utils import canonicalize_name, canonicalize_version

from olsock import interpreters, rootfs
from olsock.errors import KernelError, SpecError
from olsock.interpreters import Runtime
from olsock.owned import Owned
from olsock.packages import closures, eviction, intake, layout, requirements
from olsock.packages.closures import Closure, Part
from olsock.packages.errors import PackageError, quote
from olsock.packages.eviction import Contents
from olsock.packages.layout import ClosureRecord, Layout, PackageRecord, Tag
from olsock.packages.lock import Lock, Pin, parse_pins
from olsock.packages.scratch import FLAGS, WORK, Scratch, hold, locked
from olsock.packages.uv import OUT, Uv
from olsock.spec import GIB, MIB, Size, parse_size

AT_ONCE = 4  # installations of one lock
TIMEOUT = 300.0

_NEW = "new"  # a closure that is being made


@dataclass(slots=True)
class _Held:
    """An installed distribution that is not evicted until `fd` is closed."""

    name: str
    fd: int
    record: PackageRecord


class PackageStore(Owned):
    """Distributions below one directory, shared by all processes that open it.

    Resolving and installing happen in sandboxes with `network` ("bridge" or "host"; "none" will do for directories of
    wheels). Of `environment` (the process's own if None), `UV_*`, `SSL_CERT_FILE` and `SSL_CERT_DIR` say where packages
    come from. Only wheels are installed unless `allow_source`: builds run the package's own code, in its sandbox, which
    then also sees those settings. `max_bytes` bounds the store, `max_package` one distribution, `timeout` (seconds) a
    resolution and each installation. Needs root; may be used by several threads.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_bytes: Size = "10G",
        max_package: Size = "4G",
        allow_source: bool = False,
        network: Literal["bridge", "host", "none"] = "bridge",
        environment: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """Open the store, made if need be; removes what processes that were killed left half done."""
        if network not in ("bridge", "host", "none"):
            raise SpecError("network", network, "'bridge', 'host' or 'none'")
        if type(timeout) not in (int, float) or not (math.isfinite(timeout) and timeout > 0):
            raise SpecError("timeout", timeout, "a number of seconds")
        if type(allow_source) is not bool:
            raise SpecError("allow_source", allow_source, "True or False")
        self.max_bytes = parse_size(max_bytes, "max_bytes", least=MIB, unlimited=False) or 10 * GIB
        self.max_package = parse_size(max_package, "max_package", least=MIB, unlimited=False) or 4 * GIB
        self.allow_source = allow_source
        self._uv = Uv(network, os.environ if environment is None else environment, timeout, self.max_package)
        self._layout = Layout(os.fspath(directory))
        self.directory = self._layout.path
        self._own()

    def resolve(self, requirements: Sequence[str], python: str | os.PathLike[str] | None = None) -> Lock:
        """Return the exact distributions that requirements mean for an interpreter, with their hashes.

        `python` is a path, or a name such as "python3.11"; None is the interpreter that runs this. Raises `SpecError` for
        what is no requirement, and `PackageError`, which quotes the resolver, if there is no solution.
        """
        wanted = _wanted(requirements)
        runtime = interpreters.get(rootfs.host_python() if python is None else python)
        texts = tuple(str(each) for each in wanted)
        if not wanted:
            return Lock(runtime.tag, (), ())
        with self._layout.scratch() as scratch:
            printed = self._uv.compile(runtime, scratch, [each.text for each in wanted], source=self.allow_source)
        try:
            pins = parse_pins(printed)
        except ValueError as error:
            raise PackageError(f"the resolver printed something else than pins: {error}") from None
        return Lock(runtime.tag, texts, tuple(_restrict(pin, wanted) for pin in pins))

    def install(self, lock: Lock, python: str | os.PathLike[str] | None = None) -> Closure:
        """Install what is missing of a lock, each distribution once whoever asks for it, and return its closure, held.

        `python` is an interpreter of the lock's tag; None is any of this host's. Raises `PackageError`, with nothing left
        behind but distributions that were installed completely.
        """
        tag = self._layout.tag(lock.tag)
        given = None if python is None else _given(lock.tag, python)
        closure = self._existing(tag, lock)
        if closure is not None:
            return closure
        runtime = given or _any(lock.tag)
        with contextlib.ExitStack() as stack:
            held = self._packages(tag, lock, runtime, stack)
            left = eviction.evict(self._layout, self.max_bytes)
            if left <= self.max_bytes:
                return self._merge(tag, lock, held)
        eviction.evict(self._layout, self.max_bytes)  # what was just installed, and is not held any more
        raise PackageError(
            f"the package cache would hold {left} bytes, all of them in use, and may hold {self.max_bytes}: raise max_bytes"
        )

    def contents(self) -> Contents:
        """Count the packages, the closures and the bytes of the store."""
        return eviction.measure(self._layout)

    def evict(self, max_bytes: Size) -> int:
        """Remove the least valuable until `max_bytes` are left; return how many are, more if they are in use."""
        return eviction.evict(self._layout, parse_size(max_bytes, "max_bytes", unlimited=False) or 0)

    def _end(self) -> None:
        self._layout.close()

    def _existing(self, tag: Tag, lock: Lock) -> Closure | None:
        fd = hold(tag.closures, lock.key)
        if fd is None:
            return None
        record = tag.closure(lock.key)
        if record is None:
            os.close(fd)
            raise PackageError(f"{tag.path}/closures/{lock.key}.json cannot be read: remove that directory")
        return Closure(f"{tag.path}/{layout.CLOSURES}/{lock.key}", fd, lock, record)

    def _packages(self, tag: Tag, lock: Lock, runtime: Runtime, stack: contextlib.ExitStack) -> list[_Held]:
        """Hold every distribution of a lock, those that are missing once they are installed."""
        held, missing = [], []
        for pin in lock.pins:
            found = self._installed(tag, self._digest(pin))
            if found is None:
                missing.append(pin)
            else:
                stack.callback(os.close, found.fd)
                held.append(found)
        if missing:
            with ThreadPoolExecutor(min(AT_ONCE, len(missing)), "olsock-install") as pool:
                running = [pool.submit(self._install, tag, pin, runtime) for pin in missing]
                try:
                    held += [each.result() for each in running]
                finally:
                    for each in running:
                        each.cancel()
                    for each in running:  # also those after a failure, which go on until here
                        if not each.cancelled() and each.exception() is None:
                            stack.callback(os.close, each.result().fd)
        return held

    def _digest(self, pin: Pin) -> str:
        """What decides which file a pin means: its hashes, and whether it may be built."""
        return hashlib.sha256(f"{'any' if self.allow_source else 'wheel'}\n{pin.text}".encode()).hexdigest()[:32]

    def _installed(self, tag: Tag, digest: str) -> _Held | None:
        name = tag.pin(digest)
        fd = None if name is None else hold(tag.fd, name)
        if name is None or fd is None:
            return None
        record = tag.package(name)
        if record is None:
            os.close(fd)
            return None
        return _Held(name, fd, record)

    def _install(self, tag: Tag, pin: Pin, runtime: Runtime) -> _Held:
        """Install one distribution unless that has been done meanwhile; others who want it wait here."""
        digest = self._digest(pin)
        with locked(tag.locks, digest):
            found = self._installed(tag, digest)
            if found is not None:
                return found
            with self._layout.scratch() as scratch:
                line = " ".join([str(pin), *(f"--hash={each}" for each in pin.hashes)])
                self._uv.install(runtime, scratch, line, source=self.allow_source)
                return self._publish(tag, pin, digest, scratch)

    def _publish(self, tag: Tag, pin: Pin, digest: str, scratch: Scratch) -> _Held:
        """Take over what the sandbox wrote and give it its name."""
        out = f"{WORK}/{OUT}"
        work_fd = os.open(WORK, FLAGS, dir_fd=scratch.fd)
        try:
            tree = intake.take(work_fd, OUT, self.max_package)
        finally:
            os.close(work_fd)
        _check(pin, tree)
        fd = hold(scratch.fd, out)
        assert fd is not None
        try:
            record = PackageRecord(str(pin), tree.bytes, closures.modules(fd))
            _sync(fd)
            name = f"{pin.name}-{pin.version}-{tree.digest[:32]}"
            with self._layout.mutex():
                known = hold(tag.fd, name)
                if known is None:
                    layout.publish_file(scratch, tag.records, f"{name}.json", msgspec.json.encode(record))
                    os.rename(out, name, src_dir_fd=scratch.fd, dst_dir_fd=tag.fd)
                else:  # the same content under other hashes
                    os.close(fd)
                    fd = known
                layout.publish_file(scratch, tag.pins, digest, name.encode())
        except BaseException:
            os.close(fd)
            raise
        return _Held(name, fd, record)

    def _merge(self, tag: Tag, lock: Lock, held: Sequence[_Held]) -> Closure:
        with locked(tag.locks, f"closure-{lock.key}"):
            found = self._existing(tag, lock)
            if found is not None:
                return found
            with self._layout.scratch() as scratch:
                os.mkdir(_NEW, 0o755, dir_fd=scratch.fd)
                fd = hold(scratch.fd, _NEW)
                assert fd is not None
                try:
                    parts = [Part(each.record.distribution, each.fd, each.record.modules) for each in held]
                    merge, owners = closures.merge(parts, fd)
                    names = sorted(each.name for each in held)
                    record = ClosureRecord(names, owners, merge.conflicts, merge.bytes)
                    with self._layout.mutex():
                        layout.publish_file(scratch, tag.closures, f"{lock.key}.json", msgspec.json.encode(record))
                        os.rename(_NEW, lock.key, src_dir_fd=scratch.fd, dst_dir_fd=tag.closures)
                except BaseException:
                    os.close(fd)
                    raise
        return Closure(f"{tag.path}/{layout.CLOSURES}/{lock.key}", fd, lock, record)


def _wanted(lines: Sequence[str]) -> tuple[requirements.Wanted, ...]:
    return requirements.parse_all(lines)


def _restrict(pin: Pin, wanted: Sequence[requirements.Wanted]) -> Pin:
    """Leave only the hashes that the requirements allow, if they name any."""
    hashes = set(pin.hashes)
    for each in wanted:
        if each.name == pin.name and each.hashes:
            hashes &= each.hashes
    if not hashes:
        raise PackageError(f"no file of {pin} has a hash that the requirements give")
    return Pin(pin.name, pin.version, tuple(sorted(hashes)))


def _given(tag: str, python: str | os.PathLike[str]) -> Runtime:
    given = interpreters.get(python)
    if given.tag != tag:
        raise SpecError("python", os.fspath(python), f"an interpreter of {tag}, as the lock is; this is {given.tag}")
    return given


def _any(tag: str) -> Runtime:
    own = interpreters.probe(rootfs.host_python())
    for runtime in (own, *interpreters.find().values()):
        if runtime is not None and runtime.tag == tag:
            return runtime
    raise PackageError(f"no interpreter of this host is {tag}, which the lock is for")


def _check(pin: Pin, tree: intake.Tree) -> None:
    """That there is exactly the distribution that was asked for."""
    found = [path for path in tree.directories if "/" not in path and path.endswith(".dist-info")]
    parts = [path.removesuffix(".dist-info").rpartition("-") for path in found]
    names = [(canonicalize_name(name), canonicalize_version(version)) for name, _, version in parts]
    if names != [(pin.name, canonicalize_version(pin.version))]:
        raise PackageError(f"{pin} was installed as {quote(', '.join(found).encode()) or 'nothing'}")


def _sync(fd: int) -> None:
    """Have all that was written on the disk, in one go: a file each would take a hundred times as long."""
    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        raise KernelError("syncfs", "the package store", ctypes.get_errno())
