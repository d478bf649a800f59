"""The Python that runs inside: which binary, which root it needs, what it imports from."""

from __future__ import annotations

import os
from collections.abc import Sequence

from olsock import rootfs
from olsock.rootfs import OPT, PACKAGES, RUNTIME, Recipe

ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin"}


class Interpreter:
    """A CPython and directories of packages for it, as they appear in a sandbox."""

    def __init__(self, python: str | None, packages: Sequence[str]) -> None:
        self.binary = os.path.realpath(python) if python else rootfs.host_python()
        self.packages = tuple(packages)
        self.path = [f"{PACKAGES}/{number}" for number in range(len(packages))]

    def recipe(self, network: bool) -> Recipe:
        """The base tree that it runs in. Its mounts are locked: neither handlers nor zygotes can remount them."""
        return Recipe(
            prefixes=(rootfs.interpreter_prefix(self.binary),),
            trees=((rootfs.runtime_directory(), RUNTIME), *zip(self.packages, self.path, strict=True)),
            # There to be mounted over, even where there is none yet: a handler has packages of its own at the same place.
            points=((OPT, True), *(() if self.packages else ((f"{PACKAGES}/0", True),))),
            network=network,
        )

    def command(self, script: str) -> list[str]:
        """The command line of a script of the runtime: isolated from the environment, the user's site and this one's."""
        return [self.binary, "-I", "-S", "-B", f"{RUNTIME}/{script}"]
