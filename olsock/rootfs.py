"""Root file systems: which host directories, made-up files and mount points a sandbox's root consists of.

Everything here is made by the privileged side as detached trees, before the sandbox runs a line of code, and no path that
a sandbox can write is ever resolved.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from olsock._core import mounts
from olsock._core.mounts import NODEV, NOEXEC, NOSUID, RDONLY
from olsock.errors import KernelError, SpecError, UnsupportedError
from olsock.spawner import Spawner

MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # symbolic links into /usr on a merged system
DEVICES = ("null", "zero", "full", "random", "urandom")
MASKED = ("/proc/interrupts", "/proc/softirqs")
"""What /proc tells an unprivileged id about the host beyond its own namespaces, and no program in a sandbox needs: per-device
interrupt counters, by which one tenant can watch another's input and traffic (Diao et al., IEEE S&P 2016). Each mask costs
10-20 us of every start. The rest of Docker's list is readable by the host's root alone, or (keys, key-users) shows a user
namespace only its own."""

TASK, RUNTIME, PACKAGES, OPT = "/var/task", "/var/runtime", "/var/packages", "/opt"


def runtime_directory() -> str:
    """Where the code is that runs inside sandboxes."""
    return os.fspath(Path(__file__).parent / "runtime")


def interpreter_prefix(python: str) -> str:
    """The directory to bring along so that `python` (an absolute path) works: its installation's prefix."""
    binary = os.path.realpath(python)
    return os.path.dirname(os.path.dirname(binary))


@functools.cache
def host_python() -> str:
    """The running interpreter itself, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a base tree is made of. Equal recipes share one tree."""

    directory: str | None = None  # a directory as root instead of the host's /usr
    prefixes: tuple[str, ...] = ()  # interpreters outside /usr
    trees: tuple[tuple[str, str], ...] = ()  # further host directories, read-only: (source, target)
    points: tuple[tuple[str, bool], ...] = ()  # further mount points: (path, is a directory)
    network: bool = False  # resolver, hosts and certificates
    users: tuple[tuple[str, int, int], ...] = (("sandbox", 1000, 1000),)
    hostname: str = "sandbox"

    def host_binds(self) -> list[str]:
        """Host directories that appear at their own paths."""
        if self.directory is not None:
            return []
        found = ["/usr"]
        found += [f"/{name}" for name in MERGED if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")]
        found += [p for p in self.prefixes if not _below(p, "/usr")]
        for path in ("/etc/alternatives", "/etc/ssl/certs") if self.network else ("/etc/alternatives",):
            if os.path.isdir(path):
                found.append(path)
        return found


def _below(path: str, directory: str) -> bool:
    return PurePosixPath(path).is_relative_to(directory)


def _etc(recipe: Recipe) -> dict[str, bytes]:
    """The files of /etc that programs look for."""
    users = [("root", 0, 0), *recipe.users, ("nobody", 65534, 65534)]
    passwd = "".join(f"{name}:x:{uid}:{gid}::/tmp:/bin/sh\n" for name, uid, gid in users)
    group = "".join(f"{name}:x:{gid}:\n" for name, _, gid in users)
    files = {
        "passwd": passwd.encode(),
        "group": group.encode(),
        "hosts": f"127.0.0.1 localhost {recipe.hostname}\n::1 localhost\n".encode(),
        "hostname": f"{recipe.hostname}\n".encode(),
        "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
        "resolv.conf": b"",
    }
    for name in ("ld.so.cache", "ld.so.conf", "localtime"):
        try:
            files[name] = Path("/etc", name).read_bytes()
        except OSError:
            continue
    if recipe.network:
        files["resolv.conf"] = _resolver()
    return files


def _resolver() -> bytes:
    """The host's resolv.conf; where it names a stub on the host's loopback (systemd-resolved), what is behind that."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            content = Path(path).read_bytes()
        except OSError:
            continue
        if b"nameserver 127." not in content:
            return content
    return b""


def _make_directories(root: int, path: str, owner: int) -> None:
    at = ""
    for part in PurePosixPath(path).parts[1:]:
        at = f"{at}/{part}" if at else part
        try:
            os.mkdir(at, 0o755, dir_fd=root)
            os.chown(at, owner, owner, dir_fd=root, follow_symlinks=False)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(at, dir_fd=root, follow_symlinks=False).st_mode):
                raise SpecError("binds", path, f"no mount point below {at!r}, which is not a directory here") from None


def _write_file(root: int, path: str, content: bytes, owner: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644, dir_fd=root)
    try:
        os.write(fd, content)
        os.fchown(fd, owner, owner)
    finally:
        os.close(fd)


def skeleton(recipe: Recipe, *, owner: int = 0) -> int:
    """Return a detached tmpfs: the directories, links and files of a root, owned by the host id `owner`."""
    root = mounts.new("tmpfs", {"size": "16m", "mode": "755", "uid": str(owner), "gid": str(owner)}, 0)
    try:
        targets = [target for _, target in recipe.trees]
        for path in ("/proc", "/dev", "/tmp", "/etc", "/run", TASK, *recipe.host_binds(), *targets):
            _make_directories(root, path, owner)
        os.symlink("../tmp", "var/tmp", dir_fd=root)
        if recipe.directory is None:
            for name in MERGED:
                if os.path.islink(f"/{name}"):
                    os.symlink(os.readlink(f"/{name}"), name, dir_fd=root)
        for name, content in _etc(recipe).items():
            _write_file(root, f"etc/{name}", content, owner)
        for path, is_directory in recipe.points:
            _make_directories(root, path if is_directory else os.path.dirname(path), owner)
            if not is_directory and not _exists(root, path.lstrip("/")):
                _write_file(root, path.lstrip("/"), b"", owner)
    except BaseException:
        os.close(root)
        raise
    return root


def _exists(root: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def device_tree() -> tuple[int, list[tuple[str, int]]]:
    """Return (detached /dev, device nodes to attach below it): binds of the host's, the only way without mknod."""
    dev = mounts.new("tmpfs", {"size": "64k", "mode": "755"}, 0)
    nodes: list[tuple[str, int]] = []
    try:
        os.mkdir("shm", 0o755, dir_fd=dev)
        for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
            os.symlink(f"/proc/self/fd{target}", name, dir_fd=dev)
        for name in DEVICES:
            _write_file(dev, name, b"", 0)
            nodes.append((name, mounts.bind(f"/dev/{name}", NOSUID | NOEXEC, recursive=False)))
        mounts.restrict(dev, RDONLY | NOSUID | NODEV | NOEXEC)
    except BaseException:
        os.close(dev)
        for _, fd in nodes:
            os.close(fd)
        raise
    return dev, nodes


def build_base(spawner: Spawner, recipe: Recipe, place: str) -> None:
    """Attach the read-only tree of `recipe` at `place` in the spawner's namespace, where sandboxes copy it from."""
    with ExitStack() as stack:
        bare = skeleton(recipe)
        stack.callback(os.close, bare)
        mounts.restrict(bare, RDONLY | NOSUID | NODEV)
        if recipe.directory is None:
            spawner.attach(bare, place)
        else:
            if not os.stat(recipe.directory).st_mode & stat.S_IXOTH:
                raise SpecError("rootfs", recipe.directory, "a directory that other users may enter (chmod o+rx)")
            # An overlay without an upper directory: read-only in its superblock, whatever is done to the mount.
            top = mounts.bind(recipe.directory, RDONLY | NOSUID | NODEV, recursive=False)
            stack.callback(os.close, top)
            root = spawner.overlay([top, bare])
            stack.callback(os.close, root)
            spawner.attach(root, place)
        try:
            _attach_rest(spawner, recipe, place)
        except BaseException:
            spawner.detach(place)
            raise


def _attach_rest(spawner: Spawner, recipe: Recipe, place: str) -> None:
    with ExitStack() as stack:
        for source, target in [*((path, path) for path in recipe.host_binds()), *recipe.trees]:
            tree = mounts.bind(source, RDONLY | NOSUID | NODEV)
            stack.callback(os.close, tree)
            spawner.attach(tree, place + target)
        dev, nodes = device_tree()
        for fd in (dev, *(node for _, node in nodes)):
            stack.callback(os.close, fd)
        spawner.attach(dev, f"{place}/dev")
        for name, node in nodes:
            spawner.attach(node, f"{place}/dev/{name}")


@dataclass(slots=True)
class WritableRoot:
    """Trees of a root that its sandbox may write: `root` first, the others at their paths. All detached, all ours to close."""

    root: int
    trees: list[tuple[str, int]]

    def close(self) -> None:
        """Close the fds; what was attached stays attached."""
        for fd in (self.root, *(tree for _, tree in self.trees)):
            os.close(fd)


def build_writable(spawner: Spawner, recipe: Recipe, owner: int, size: int, keep: str | None) -> WritableRoot:
    """Overlay every directory of `recipe`, seen as owned by the host id `owner`; changes go to memory or below `keep`.

    Lower layers are idmapped (mount_setattr(2), 5.19 for overlays): without that, files of the host's root would
    be unwritable for the sandbox's id although the upper layer is its own.
    """
    with ExitStack() as stack:
        userns = spawner.user_namespace([(0, owner, 1)])
        stack.callback(os.close, userns)
        bare = skeleton(recipe, owner=owner)
        stack.callback(os.close, bare)
        lowers = [bare]
        if recipe.directory is not None:
            lowers.insert(0, _mapped(recipe.directory, userns, stack))
        result = WritableRoot(_overlay(spawner, lowers, owner, size, keep, "root", stack), [])
        try:
            for path in recipe.host_binds():
                name = path.strip("/").replace("/", "-")
                lower = _mapped(path, userns, stack)
                result.trees.append((path, _overlay(spawner, [lower], owner, size, keep, name, stack)))
            dev, nodes = device_tree()
            result.trees.append(("/dev", dev))
            result.trees += [(f"/dev/{name}", node) for name, node in nodes]
        except BaseException:
            result.close()
            raise
        return result


def _mapped(path: str, userns: int, stack: ExitStack) -> int:
    fd = mounts.open_tree(mounts.AT_FDCWD, path, clone=True)
    stack.callback(os.close, fd)
    try:
        mounts.restrict(fd, RDONLY | NOSUID | NODEV, recursive=False, userns_fd=userns)
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        raise UnsupportedError(
            f"writable: {path} is on a file system whose ids cannot be mapped (overlayfs and hostfs are among these); "
            "without that its files could not be changed"
        ) from None
    return fd


def _overlay(
    spawner: Spawner, lowers: list[int], owner: int, size: int, keep: str | None, name: str, stack: ExitStack
) -> int:
    if keep is None:
        layer = mounts.tmpfs(size, inodes=max(1024, size // 4096), mode=0o755, uid=0)
        holder = layer
        stack.callback(os.close, layer)
    else:
        holder = _kept_directory(keep, name)
        stack.callback(os.close, holder)
        layer = mounts.bind("", NOSUID | NODEV, dirfd=holder, recursive=False)
        stack.callback(os.close, layer)
    for part in ("upper", "work"):
        try:
            os.mkdir(part, 0o755, dir_fd=holder)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(part, dir_fd=holder, follow_symlinks=False).st_mode):
                raise SpecError("writable", keep, "a directory that olsock made, or an empty one") from None
        os.chown(part, owner, owner, dir_fd=holder, follow_symlinks=False)
    return spawner.overlay(lowers, layer)


def _kept_directory(keep: str, name: str) -> int:
    """Open `<keep>/<name>`, made if need be: ours, 0700, so that no file in it is reachable on the host (attack 17)."""
    try:
        os.makedirs(keep, mode=0o700, exist_ok=True)
        top = os.open(keep, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SpecError("writable", keep, f"a directory that can be made ({error.strerror})") from None
    try:
        try:
            os.mkdir(name, 0o700, dir_fd=top)
        except FileExistsError:
            pass
        return mounts.resolve(top, name, os.O_PATH | os.O_DIRECTORY, mounts.BENEATH | mounts.NO_SYMLINKS)
    finally:
        os.close(top)
