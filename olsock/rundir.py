"""/run/olsock: what the processes of this library on one host know of each other. Gone with a boot, as it should be."""

from __future__ import annotations

import errno
import os
import stat

from olsock.errors import KernelError

RUN = "/run/olsock"


def open_run(path: str = RUN) -> int:
    """Return a new fd of the run directory, made if need be, and only if nobody but its owner, us, can write it."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except OSError as error:
        raise KernelError("mkdir", path, error.errno or errno.EIO, "needs root") from None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", path, error.errno or errno.EIO) from None
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        os.close(fd)
        raise KernelError("use", path, errno.EPERM, "it belongs to somebody else, or others may write it")
    return fd
