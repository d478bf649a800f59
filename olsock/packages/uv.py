"""uv, run in a sandbox: it reads indexes and archives of strangers, and builds run any code.

The sandbox has a network and a directory to write, and of the host just /usr, the interpreter, uv itself and what
`indexes` binds. Its time, its memory, its processes and what it writes are bounded.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence

from olsock import rootfs
from olsock.errors import OlsockError, SandboxDeadError
from olsock.interpreters import Runtime
from olsock.packages import indexes
from olsock.packages.errors import PackageError, quote
from olsock.packages.scratch import FLAGS, Scratch
from olsock.results import Completed
from olsock.sandbox import Sandbox
from olsock.spec import MIB, Bind, Network

UV, WORK = "/opt/uv/uv", "/var/install"  # where they are inside
OUT = "out"  # of WORK: what is installed
OUTPUT = 16 * MIB  # bytes of a lock
FREE = 512 * MIB  # that are left on the disk, or else what runs is ended
WATCH = 0.2  # seconds between looks at what was written
MAX_WRITTEN, MAX_LEVELS = 600_000, 96  # files, and directories in each other, before an installation is ended
MEMORY, PIDS = 4096 * MIB, 1024

_ENVIRONMENT = {
    "UV_CACHE_DIR": f"{WORK}/cache",
    "UV_LINK_MODE": "hardlink",  # out of the cache, which is removed afterwards
    "UV_NO_CONFIG": "1",
    "UV_NO_PROGRESS": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "NO_COLOR": "1",
    "TMPDIR": f"{WORK}/tmp",
    # Files are hard-linked and their times mean nothing: bytecode that is never compared with its source.
    "PYC_INVALIDATION_MODE": "UNCHECKED_HASH",
}


class Uv:
    """Runs uv for one store."""

    def __init__(self, network: Network, environment: Mapping[str, str], timeout: float, limit: int) -> None:
        import uv

        self.network, self.timeout = network, timeout
        self._sources = indexes.of(environment)
        # Where there is no network, an index is only of use if it is a directory.
        elsewhere = network != "none" or any("INDEX" in name for name in self._sources.environment)
        self._no_index = ["--no-index"] if self._sources.no_index or not elsewhere else []
        self._limit = limit  # bytes of one installed distribution
        self._binds = [Bind(os.path.realpath(uv.find_uv_bin()), UV), *self._sources.binds]

    def compile(self, runtime: Runtime, scratch: Scratch, requirements: Sequence[str], *, source: bool) -> str:
        """Resolve requirements and return what uv printed: pins with hashes."""
        argv = ["pip", "compile", "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-find-links"]
        what = f"cannot resolve {_some(requirements)} for {runtime.name}"
        done = self._run(runtime, scratch, [*argv, *_wheels(source), "-"], requirements, what)
        if done.truncated:
            raise PackageError(f"{what}: the resolver printed more than {OUTPUT} bytes")
        return done.stdout.decode(errors="replace")

    def install(self, runtime: Runtime, scratch: Scratch, pin: str, *, source: bool) -> None:
        """Install one pin with its hashes into `OUT` below the scratch directory's part for sandboxes."""
        argv = ["pip", "install", "--no-deps", "--require-hashes", "--target", f"{WORK}/{OUT}", "--compile-bytecode"]
        what = f"cannot install {pin.split(' ')[0]} for {runtime.name}"
        self._run(runtime, scratch, [*argv, *_wheels(source), "-r", "-"], [pin], what)

    def _run(
        self, runtime: Runtime, scratch: Scratch, argv: Sequence[str], lines: Sequence[str], what: str
    ) -> Completed:
        work = scratch.work()
        binds = [*self._binds, Bind(work, WORK, writable=True)]
        prefix = rootfs.interpreter_prefix(runtime.path)
        if prefix != rootfs.interpreter_prefix(rootfs.host_python()) and not f"{prefix}/".startswith("/usr/"):
            binds.append(Bind(prefix, prefix))
        env = {**self._sources.environment, **_ENVIRONMENT}
        options = {"memory": MEMORY, "pids": PIDS, "tmpfs_size": 256 * MIB, "nofile": 8192, "fsize": 2 * self._limit}
        try:
            with Sandbox(network=self.network, binds=binds, env=env, **options) as box:
                with _watched(box, work, 2 * self._limit) as problem:
                    command = [UV, *argv, *self._no_index, "--python", runtime.path]
                    try:
                        text = "".join(f"{line}\n" for line in lines).encode()
                        done = box.run(command, input=text, timeout=self.timeout, output_limit=OUTPUT)
                    except SandboxDeadError:
                        raise PackageError(f"{what}: {problem[0] if problem else 'its sandbox ended'}") from None
        except PackageError:
            raise
        except OlsockError as error:
            raise PackageError(f"{what}: {error}") from error
        if done.usage.timed_out:
            raise PackageError(f"{what} within {self.timeout:g} seconds", quote(done.stderr))
        if done.usage.oom_killed:
            raise PackageError(f"{what} within {MEMORY // MIB} MiB of memory", quote(done.stderr))
        if done.returncode:
            raise PackageError(_explain(what, done.stderr), quote(done.stderr))
        return done


def _wheels(source: bool) -> list[str]:
    return [] if source else ["--only-binary", ":all:"]


def _some(requirements: Sequence[str]) -> str:
    names = [line.split(" --hash")[0] for line in requirements]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _explain(what: str, said: bytes) -> str:
    """A hint where the resolver's own words do not tell what to do here."""
    if any(
        word in said for word in (b"no usable wheels", b"no wheels", b"Building source distributions", b"is disabled")
    ):
        return f"{what}: only wheels are installed here, unless allow_source=True"
    if any(word in said for word in (b"dns error", b"error sending request", b"Failed to fetch", b"onnect")):
        return f"{what}: the package index cannot be reached"
    return what


@contextlib.contextmanager
def _watched(box: Sandbox, work: str, limit: int) -> Iterator[list[str]]:
    """End the sandbox when it has written more than `limit` bytes, or has all but filled the disk; say so in the list."""
    problem: list[str] = []
    over = threading.Event()
    fd = os.open(work, FLAGS)

    def watch() -> None:
        while not over.wait(WATCH):
            why = _problem(fd, limit)
            if why:
                problem.append(why)
                box.close()
                return

    thread = threading.Thread(target=watch, name="olsock-install-watch", daemon=True)
    thread.start()
    try:
        yield problem
    finally:
        over.set()
        thread.join()
        os.close(fd)


def _problem(fd: int, limit: int) -> str:
    free = os.fstatvfs(fd)
    if free.f_bavail * free.f_frsize < FREE:  # files that were removed while open are seen here alone
        return f"less than {FREE // MIB} MiB are free on the disk"
    size, files = written(fd, limit)
    if size > limit:
        return f"it wrote more than {limit} bytes"
    return f"it wrote more than {MAX_WRITTEN} files, or too deep" if files > MAX_WRITTEN else ""


def written(fd: int, limit: int) -> tuple[int, int]:
    """Return (bytes on the disk, files) below a directory that a sandbox is changing meanwhile; stops past a limit.

    Each directory is opened from the one above it, without following links, so this never leaves the tree. More levels
    than `MAX_LEVELS` count as too many files.
    """
    seen: set[int] = set()
    size, names = _level(fd, seen)
    stack = [(os.dup(fd), names)]
    try:
        while stack and size <= limit and len(seen) <= MAX_WRITTEN:
            at, names = stack[-1]
            if not names:
                os.close(stack.pop()[0])
                continue
            if len(stack) > MAX_LEVELS:
                return size, MAX_WRITTEN + 1
            try:
                below = os.open(names.pop(), FLAGS, dir_fd=at)
            except OSError:  # it is gone again
                continue
            more, names = _level(below, seen)
            stack.append((below, names))
            size += more
    finally:
        for at, _ in stack:
            os.close(at)
    return size, len(seen)


def _level(at: int, seen: set[int]) -> tuple[int, list[str]]:
    """Bytes of the files in a directory that were not seen yet, and the names of the directories in it."""
    size, below = 0, []
    with contextlib.suppress(OSError), os.scandir(at) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if found.st_ino not in seen:
                    seen.add(found.st_ino)
                    size += found.st_blocks * 512
                    if stat.S_ISDIR(found.st_mode):
                        below.append(entry.name)
    return size, below
