"""Sandboxes that run programs: create, run, pause, resume, inspect, destroy."""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from olsock import host as hosts
from olsock import network, rootfs
from olsock._core import mounts, process, seccomp
from olsock.blanks import Blank
from olsock.box import Box, Command, Mounts, Setup, limits
from olsock.cgroups import Stats
from olsock.errors import DeadlineError, SandboxDeadError, SpecError
from olsock.interpreter import ENVIRONMENT
from olsock.owned import Owned
from olsock.packets import Exited
from olsock.pipes import DEVNULL, PIPE, Pipes
from olsock.results import Completed, Usage
from olsock.rootfs import Recipe
from olsock.spec import SandboxSpec

OUTPUT_LIMIT = 64 * 1024 * 1024  # bytes of stdout and of stderr that run() keeps
REMOVAL_TIMEOUT = 20.0
MAX_PLANS = 256
LIMITS = ("memory", "swap", "cpus", "pids", "oom_group", "tmpfs_size", "tmpfs_inodes", "nofile", "fsize")
PLAIN = frozenset((*LIMITS, "hostname", "network", "cwd", "user", "time_ns"))  # options that mean the same every time


@dataclass(slots=True)
class _Plan:
    """A sandbox as it was asked for: checked, and what follows from that."""

    spec: SandboxSpec
    recipe: Recipe
    program: bytes
    setup: Setup | None = None  # once made, if it names no descriptors: then it can be used again


_plans: dict[tuple[Any, ...], _Plan] = {}


def _plan(options: dict[str, Any]) -> _Plan:
    """Check the options, or remember: who makes many sandboxes makes them alike, and most of a create in Python is this.

    What could mean something else the next time (directories, files, mappings) is not remembered.
    """
    key = tuple((name, type(value), value) for name, value in options.items())  # True is 1, but no number of CPUs
    try:
        known = _plans.get(key)
    except TypeError:  # an option that cannot be a key
        return _make_plan(options)
    if known is None:
        known = _make_plan(options)
        if PLAIN.issuperset(options):
            if len(_plans) >= MAX_PLANS:
                _plans.clear()
            _plans[key] = known
    return known


def _make_plan(options: dict[str, Any]) -> _Plan:
    spec = SandboxSpec.parse(**options)
    recipe = Recipe(
        directory=None if spec.rootfs == "host" else spec.rootfs,
        prefixes=(rootfs.interpreter_prefix(rootfs.host_python()),),
        points=tuple((bind.target, os.path.isdir(bind.source)) for bind in spec.binds),
        network=spec.network != "none",
        users=(("sandbox", spec.uid, spec.gid),) if spec.uid not in (0, 65534) else (),
        hostname=spec.hostname,
    )
    return _Plan(spec, recipe, b"" if spec.seccomp == "off" else seccomp.compile(spec.seccomp))


class Sandbox(Owned):
    """An isolated place to run programs in, by default without network, privileges or anything of the host but /usr.

    Takes the options of `SandboxSpec`. Every layer is on unless an option turns it off; a layer that this host cannot
    give raises `UnsupportedError` or `KernelError` and leaves nothing behind. Needs root.
    """

    def __init__(self, **options: Any) -> None:
        """Create it. Raises `SpecError` for an option that makes no sense, before anything is made."""
        self._ooms = 0
        self._lease: network.Lease | None = None
        self._make(hosts.current(), options)

    def _make(self, host: hosts.Host, options: dict[str, Any]) -> None:
        plan = _plan(options)
        spec = self.spec = plan.spec
        if plan.setup is not None and plan.setup.root == host.bases.place(plan.recipe):
            self._blank = host.blanks.take(spec.limits, plan.setup)
        elif spec.writable:
            self._blank = self._make_writable(host, plan)
        else:
            self._blank = self._take(host, plan)
        self.name = self._blank.leaf.name
        try:
            if spec.network == "bridge":
                self._lease = network.connect(self._blank.box.pid, self.name, host.instance.name)
        except BaseException:
            self._blank.remove()
            raise
        self._own()

    def _take(self, host: hosts.Host, plan: _Plan) -> Blank:
        over = Mounts.private(self.spec)
        opened: list[int] = []
        try:
            self._bind(over, opened)
            setup = self._setup(host.bases.place(plan.recipe), over, plan.program)
            if not opened:
                plan.setup = setup
            return host.blanks.take(self.spec.limits, setup)
        finally:
            process.close_all(*opened)

    def _make_writable(self, host: hosts.Host, plan: _Plan) -> Blank:
        """A writable root belongs to the sandbox's own ids, so it is made for a clone that is there already."""
        spec, over = self.spec, Mounts()
        opened: list[int] = []
        blank = host.blanks.clone(spec.limits, network=spec.network != "host")
        try:
            keep = spec.writable if isinstance(spec.writable, str) else None
            owner = blank.block.base + spec.uid
            made = rootfs.build_writable(host.spawner, plan.recipe, owner, spec.tmpfs_size, keep)
            opened += [made.root, *(fd for _, fd in made.trees)]
            for target, fd in made.trees:
                over.tree(target, fd)
            over.add(Mounts.private(spec))
            self._bind(over, opened)
            blank.box.setup(self._setup(made.root, over, plan.program))
        except BaseException:
            blank.remove()
            raise
        finally:
            process.close_all(*opened)
        return blank

    def _bind(self, over: Mounts, opened: list[int]) -> None:
        for bind in self.spec.binds:
            attributes = mounts.NOSUID | mounts.NODEV | (0 if bind.writable else mounts.RDONLY)
            opened.append(mounts.bind(bind.source, attributes))
            over.tree(bind.target, opened[-1])

    def _setup(self, root: str | int, over: Mounts, program: bytes) -> Setup:
        spec = self.spec
        return Setup(
            root=root,
            mounts=over,
            hostname=spec.hostname,
            rlimits=limits(spec.nofile, spec.fsize),
            filter=program,
            network=spec.network != "host",
            time=spec.time_ns,
        )

    def run(
        self,
        argv: Sequence[str | bytes],
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = False,
        output_limit: int = OUTPUT_LIMIT,
    ) -> Completed:
        """Run a program to its end and return what it wrote, as `subprocess.run` does.

        `timeout` is in seconds; a program that takes longer is killed and the result says `usage.timed_out`. Output past
        `output_limit` bytes a stream is dropped and the result says `truncated`. With `check`, anything but exit status 0
        raises `CommandError`.
        """
        with self.popen(argv, stdin=DEVNULL if input is None else PIPE, env=env, cwd=cwd) as child:
            done = child.complete(input or b"", timeout, output_limit)
        if check:
            done.check_returncode()
        return done

    def popen(
        self,
        argv: Sequence[str | bytes],
        *,
        stdin: int = DEVNULL,
        stdout: int = PIPE,
        stderr: int = PIPE,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Start a program and return it running; stdin, stdout and stderr are PIPE, DEVNULL, STDOUT or an fd."""
        if isinstance(argv, str | bytes) or not argv:
            raise SpecError("argv", argv, "a non-empty list of strings")
        box = self._living()
        spec = self.spec
        command = Command(argv, self._environment(env), cwd or spec.cwd, spec.uid, spec.gid)
        pipes = Pipes(stdin, stdout, stderr)
        try:
            token, pid = box.spawn(command, pipes.theirs)
        except BaseException:
            pipes.close()
            raise
        finally:
            pipes.close_theirs()
        return Process(self, box, token, pid, list(argv), pipes)

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        base = dict(ENVIRONMENT)
        prefix = rootfs.interpreter_prefix(rootfs.host_python())
        if not prefix.startswith("/usr") and self.spec.rootfs == "host":
            base["PATH"] = f"{prefix}/bin:{base['PATH']}"
        return {**base, **self.spec.env, **(env or {})}

    def _count_ooms(self) -> int:
        """How many processes were killed for memory so far. Kept: a program's start need not read it again."""
        self._ooms = self._blank.leaf.oom_kills()
        return self._ooms

    def _living(self) -> Box:
        if self._closed:
            raise SandboxDeadError(f"sandbox {self.name} is closed")
        return self._blank.box

    @property
    def pid(self) -> int:
        """The host's pid of the sandbox's init."""
        return self._living().pid

    @property
    def alive(self) -> bool:
        """Whether the sandbox can still run programs."""
        return not self._closed and self._blank.box.alive

    def pause(self) -> None:
        """Freeze every process of the sandbox; returns once all of them have stopped."""
        self._living()
        self._blank.leaf.freeze()

    def resume(self) -> None:
        """Let a paused sandbox go on."""
        self._living()
        self._blank.leaf.thaw()

    def stats(self) -> Stats:
        """What the sandbox uses and has used."""
        self._living()
        return self._blank.leaf.stats()

    def _end(self) -> None:
        if self._lease is not None:
            self._lease.close()
        self._blank.remove()


class Process:
    """A running program of a sandbox. As a context manager it is killed and waited for at the end."""

    def __init__(self, sandbox: Sandbox, box: Box, token: int, pid: int, args: list[str | bytes], pipes: Pipes) -> None:
        self.args, self.pid = args, pid  # the pid is the sandbox's own
        self._sandbox, self._box, self._token, self._pipes = sandbox, box, token, pipes
        self._ooms = sandbox._ooms
        self._exited: Exited | None = None

    @property
    def stdin(self) -> IO[bytes] | None:
        """The pipe to the program's stdin, if one was asked for."""
        return self._pipes.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        """The pipe from the program's stdout, if one was asked for."""
        return self._pipes.stdout

    @property
    def stderr(self) -> IO[bytes] | None:
        """The pipe from the program's stderr, if one was asked for."""
        return self._pipes.stderr

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs or was not waited for."""
        return None if self._exited is None else os.waitstatus_to_exitcode(self._exited.status)

    def poll(self) -> int | None:
        """Return the exit status if the program has ended, without waiting."""
        try:
            return self.wait(0)
        except DeadlineError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; `DeadlineError` after `timeout` seconds, `SandboxDeadError` if the sandbox ended first."""
        if self._exited is None:
            self._exited = self._box.wait(self._token, timeout)
            self._box.forget(self._token)
        return os.waitstatus_to_exitcode(self._exited.status)

    def send_signal(self, number: int) -> None:
        """Signal the program and what it started in its process group."""
        if self._exited is None:
            self._box.signal(self._token, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signals.SIGKILL)

    def complete(self, input: bytes, timeout: float | None, output_limit: int = OUTPUT_LIMIT) -> Completed:
        """Feed `input`, read all output, wait; a program that is not done after `timeout` seconds is killed."""
        news = (self._box.fileno(), self._box.watch(self._token))
        try:
            timed_out = not self._pipes.communicate(input, timeout, output_limit, news, self.poll)
        finally:
            self._box.unwatch(self._token)
        if timed_out:
            self.kill()
            self._pipes.drain(output_limit)
        self.wait(None if not timed_out else REMOVAL_TIMEOUT)
        self._pipes.close()
        assert self._exited is not None and self.returncode is not None
        return Completed(
            args=self.args,
            returncode=self.returncode,
            stdout=bytes(self._pipes.output),
            stderr=bytes(self._pipes.errors),
            truncated=self._pipes.truncated,
            usage=self._usage(self._exited, timed_out),
        )

    def _usage(self, exited: Exited, timed_out: bool) -> Usage:
        return Usage(
            user_seconds=exited.user_usec / 1e6,
            system_seconds=exited.system_usec / 1e6,
            peak_memory=exited.peak_kib * 1024,
            oom_killed=self._sandbox._count_ooms() > self._ooms,
            timed_out=timed_out,
        )

    def close(self) -> None:
        """Kill it if it runs, wait, close the pipes. Idempotent."""
        if self._exited is None:
            try:
                self.kill()
                self.wait(REMOVAL_TIMEOUT)
            except SandboxDeadError:
                pass
        self._pipes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
