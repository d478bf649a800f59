"""What we compare with: bubblewrap, runc and crun with the same program and namespaces, and a bare fork server.

Each is started in the cheapest way there is, a posix_spawn with /dev/null for its streams, so the comparison errs in
its favour: our own figure includes pipes for the program's output.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
TRUE = "/usr/bin/true"
MEMORY = 512 * 1024 * 1024  # the defaults of olsock.Sandbox
PIDS = 64
NOFILE = 1024
FIRST_ID, IDS = 1_500_000_000, 65_536  # for the user namespace of runc's container; only numbers, nobody owns them


class PeerError(Exception):
    """A peer does not run here; the message is its own."""


def links() -> list[tuple[str, str]]:
    """Names at the root that lead into /usr, as a sandbox on a merged-usr host needs them."""
    names = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
    return [(os.readlink(f"/{name}"), f"/{name}") for name in names if os.path.islink(f"/{name}")]


class Command:
    """A program that makes a sandbox, runs /bin/true in it and cleans up, all before it ends."""

    def __init__(self, argv: Callable[[], list[str]], why_not: Callable[[str], str] = str) -> None:
        """Prove that it works, by running it once; `argv` is called anew for each run."""
        self._argv = argv
        self._null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        done = subprocess.run(argv(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise PeerError(why_not((done.stderr or done.stdout).strip()[-200:] or f"exit status {done.returncode}"))

    def run(self) -> None:
        """Start it and wait for its end."""
        argv = self._argv()
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=self._null)
        if status := os.waitpid(pid, 0)[1]:
            raise PeerError(f"{argv[0]} ended with wait status {status}")


def bubblewrap() -> Command:
    """bwrap with the namespaces, the mounts and the absence of capabilities of a default sandbox; it has no cgroup."""
    options = "--unshare-all --die-with-parent --new-session --cap-drop ALL --hostname sandbox --uid 1000 --gid 1000"
    mounts = "--ro-bind /usr /usr --ro-bind /etc/alternatives /etc/alternatives --proc /proc --dev /dev --tmpfs /tmp"
    symlinks = itertools.chain.from_iterable(("--symlink", target, name) for target, name in links())
    argv = [_find("bwrap"), *options.split(), *mounts.split(), *symlinks, "--chdir", "/tmp", TRUE]
    return Command(lambda: argv)


def oci(runtime: str, folder: Path) -> Command:
    """runc or crun with the namespaces, mounts and limits of a default sandbox; without a seccomp filter."""
    program = _find(runtime)
    bundle = folder / f"{runtime}-bundle"
    root = bundle / "rootfs"
    for name in ("usr", "etc/alternatives", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for target, name in links():
        (root / name[1:]).symlink_to(target)
    for each in (bundle, root):
        each.chmod(0o755)
    (bundle / "config.json").write_text(json.dumps(_config()))
    numbers = itertools.count(1)
    prefix = f"olsock-bench-{os.getpid()}"

    def argv() -> list[str]:
        where = ["--root", str(folder / f"{runtime}-state"), "run", "--bundle", str(bundle)]
        return [program, *where, f"{prefix}-{next(numbers)}"]

    return Command(argv, _crun_excuse if runtime == "crun" else str)


def _crun_excuse(text: str) -> str:
    if "hybrid" in text or "cgroup" in text:
        return f"crun refuses this host: it supports no hybrid cgroups ({text})"
    return text


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise PeerError(f"{program} is not installed")
    return path


def _mount(destination: str, kind: str, *options: str, source: str = "none") -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _config() -> dict[str, Any]:
    quiet = ("nosuid", "nodev")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 1000, "gid": 1000},
            "args": [TRUE],
            "env": ["PATH=/usr/bin"],
            "cwd": "/tmp",
            "capabilities": {},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": NOFILE, "soft": NOFILE}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "sandbox",
        "mounts": [
            _mount("/usr", "bind", "rbind", "ro", *quiet, source="/usr"),
            _mount("/etc/alternatives", "bind", "rbind", "ro", *quiet, source="/etc/alternatives"),
            _mount("/proc", "proc", *quiet, "noexec"),
            _mount("/dev", "tmpfs", "nosuid", "mode=755", "size=64k"),
            _mount("/dev/shm", "tmpfs", *quiet, "mode=1777", "size=16m"),
            _mount("/tmp", "tmpfs", *quiet, "mode=1777", "size=64m"),
        ],
        "linux": {
            "namespaces": [{"type": t} for t in ("user", "mount", "pid", "ipc", "uts", "network", "cgroup")],
            "uidMappings": [{"containerID": 0, "hostID": FIRST_ID, "size": IDS}],
            "gidMappings": [{"containerID": 0, "hostID": FIRST_ID, "size": IDS}],
            "resources": {"memory": {"limit": MEMORY}, "pids": {"limit": PIDS}},
            "maskedPaths": ["/proc/keys", "/proc/key-users", "/proc/interrupts", "/proc/softirqs"],
        },
    }


class ForkServer:
    """A process with the same imports as a zygote, which does nothing but os.fork(); its children answer one byte."""

    def __init__(self, imports: Sequence[str], packages: Path | None) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = {"imports": list(imports), "path": [] if packages is None else [str(packages)]}
        single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-B",
                    str(HERE / "forkserver.py"),
                    str(theirs.fileno()),
                    json.dumps(order),
                ],
                pass_fds=[theirs.fileno()],
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **single},
            )
        self._socket.settimeout(120)
        if self._socket.recv(1) != b"R":
            raise PeerError("the fork server did not start")

    def fork(self) -> None:
        """Ask for a child and wait for its byte."""
        self._socket.send(b"f")
        if self._socket.recv(1) != b"c":
            raise PeerError("the fork server broke")

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def packages() -> Path:
    """A directory with numpy and pandas for functions: the demo's if it has run, else one made here, once."""
    name = f"demo-packages-{sys.implementation.cache_tag}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "olsock", name)
    target = HERE.parent / ".cache" / "bench-packages" / name
    for each in (home, target):
        if each.is_dir():
            return each
    fresh = target.with_name(f"{name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, fresh, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--target", str(fresh)]
        if subprocess.run([*pip, "numpy", "pandas"], check=False).returncode:
            raise PeerError("pip could not install numpy and pandas: is a package index reachable?")
        fresh.chmod(0o755)
        fresh.rename(target)
        stack.pop_all()
    return target
