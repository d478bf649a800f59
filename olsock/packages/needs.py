"""What installed distributions need of each other, as their metadata says, read from the directory of a closure.

The text comes from whoever published a package: it is bounded, and a line that cannot be read needs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from packaging.requirements import InvalidRequirement
from packaging.utils import canonicalize_name

from olsock.packages.requirements import parse_one

MAX_METADATA = 1 << 20  # bytes of one file; what follows the head is a description
MAX_LINES = 5000
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def needs(directory: str | os.PathLike[str], packages: Collection[str]) -> dict[str, frozenset[str]]:
    """Return, for each of the packages ("name==version") in a directory, which of the others it needs directly.

    What an extra adds counts as well, where it is there: many packages look at import whether they can have it, and would
    do without for good in a process that has imported them before it appeared. Other markers hold, as whoever resolved them
    has put the package there.
    """
    versions = {package.partition("==")[0]: package for package in packages}
    found = {}
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".dist-info"))
    for name in names:
        package = versions.get(canonicalize_name(name.removesuffix(".dist-info").rpartition("-")[0]))
        if package is not None:
            wanted = _required(os.path.join(directory, name, "METADATA"))
            found[package] = frozenset(versions[each] for each in wanted if each in versions) - {package}
    return found


def _required(path: str) -> Iterator[str]:
    """The normalised names in a METADATA file's Requires-Dist lines."""
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return
    try:
        data = os.pread(fd, MAX_METADATA, 0)
    except OSError:  # a directory
        return
    finally:
        os.close(fd)
    for line in data.decode(errors="replace").splitlines()[:MAX_LINES]:
        if not line:
            return
        head, _, text = line.partition(":")
        if head.lower() != "requires-dist":
            continue
        try:
            yield canonicalize_name(parse_one(text.strip()).name)
        except InvalidRequirement:
            continue
