"""Detached mounts: made, copied, restricted and attached by fd. Every function that returns an int returns a new fd."""

from __future__ import annotations

import os
from collections.abc import Mapping

from olsock._core._olsock import ffi, lib
from olsock._core.check import call

# linux/mount.h
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
PRIVATE = 1 << 18
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_EMPTY_PATH, _AT_NO_AUTOMOUNT = 0x1, 0x8000, 0x1000, 0x800

# linux/openat2.h
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 0x1, 0x2, 0x4, 0x8, 0x10

AT_FDCWD = -100


def open_tree(dirfd: int, path: str | bytes, *, clone: bool = False, recursive: bool = False) -> int:
    """Open a mount (an O_PATH fd), or with `clone` a detached copy of it; an empty path means `dirfd` itself."""
    flags = _AT_NO_AUTOMOUNT | (_OPEN_TREE_CLONE if clone else 0) | (_AT_RECURSIVE if recursive else 0)
    raw = os.fsencode(path)
    return call(lib.ols_open_tree, dirfd, raw, flags | (0 if raw else _AT_EMPTY_PATH))


def restrict(fd: int, attributes: int, *, clear: int = 0, recursive: bool = True, userns_fd: int = -1) -> None:
    """Set mount attributes on a detached tree and cut it off from propagation; `userns_fd` also maps its ids."""
    call(lib.ols_mount_setattr, fd, b"", recursive, attributes, clear, PRIVATE, userns_fd)


def bind(path: str | bytes, attributes: int, *, dirfd: int = AT_FDCWD, recursive: bool = True) -> int:
    """Return a detached bind of `path` with `attributes` on every mount of it."""
    fd = open_tree(dirfd, path, clone=True, recursive=recursive)
    try:
        restrict(fd, attributes, recursive=recursive)
    except BaseException:
        os.close(fd)
        raise
    return fd


def new(type_: str, options: Mapping[str, str | None], attributes: int) -> int:
    """Mount a new file system, detached. An option whose value is None is a flag."""
    keys = [ffi.new("char[]", key.encode()) for key in options]
    values = [ffi.NULL if value is None else ffi.new("char[]", value.encode()) for value in options.values()]
    return call(
        lib.ols_fs_mount,
        type_.encode(),
        ffi.new("char *[]", keys),
        ffi.new("char *[]", values),
        len(keys),
        attributes,
    )


def tmpfs(
    size: int, *, inodes: int, mode: int = 0o1777, uid: int = 0, gid: int = 0, attributes: int = NOSUID | NODEV
) -> int:
    """Return a detached tmpfs of at most `size` bytes and `inodes` files; `uid` and `gid` are the host's ids."""
    options = {"size": str(size), "nr_inodes": str(inodes), "mode": f"{mode:o}", "uid": str(uid), "gid": str(gid)}
    return new("tmpfs", options, attributes)


def attach(fd: int, to_dirfd: int, to_path: str | bytes = b"") -> None:
    """Attach a detached tree; an empty path means the directory or file `to_dirfd` itself."""
    call(lib.ols_move_mount, fd, to_dirfd, os.fsencode(to_path))


def resolve(dirfd: int, path: str | bytes, flags: int, how: int) -> int:
    """openat2(2): open `path` below `dirfd` under the resolution rules `how` (BENEATH, NO_SYMLINKS, ...)."""
    return call(lib.ols_openat2, dirfd, os.fsencode(path), flags, 0, how)
