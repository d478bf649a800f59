"""A repository on the command line, as a directory to deploy."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from olsock_worker.packing import PackingError

_REMOTE = re.compile(r"(?:https?|ssh|git|file)://[^#\s]+|git\+[a-z]+://[^#\s]+|[\w.-]+@[\w.-]+:[^#\s]+")
_PARTS = re.compile(r"(?P<url>[^#]+)(?:#(?P<ref>[\w./-]*)(?::(?P<folder>[^:]*))?)?")
_SECONDS = 600


class CheckoutError(PackingError):
    """A repository cannot be had; the message says why."""


def is_remote(text: str) -> bool:
    """Say whether an argument names a repository rather than a path."""
    return _REMOTE.match(text) is not None


def name_of(text: str) -> str:
    """Return what a function of that repository is called: as its folder, or as the repository."""
    parts = _split(text)
    return re.sub(r"\.git$", "", (parts["folder"] or parts["url"]).rstrip("/").rpartition("/")[2].rpartition(":")[2])


@contextlib.contextmanager
def checkout(text: str) -> Iterator[Path]:
    """Give the directory that `URL`, `URL#REF` or `URL#REF:FOLDER` stands for, while the context lasts.

    Only the one commit is fetched, no hook is run, nobody is asked for a password. Raises `CheckoutError`.
    """
    parts = _split(text)
    with tempfile.TemporaryDirectory(prefix="olsock-checkout-") as directory:
        root = Path(directory, "tree")
        _git("init", "--quiet", "--template=", os.fspath(root))
        url = parts["url"].removeprefix("git+")
        _git("-C", os.fspath(root), "fetch", "--quiet", "--depth=1", "--no-tags", "--", url, parts["ref"] or "HEAD")
        _git("-C", os.fspath(root), "checkout", "--quiet", "--detach", "FETCH_HEAD")
        found = Path(os.path.realpath(root / (parts["folder"] or ".")))
        if not found.is_relative_to(os.path.realpath(root)) or not found.is_dir():
            raise CheckoutError(f"{text}: there is no directory {parts['folder']!r} in it")
        yield found


def _split(text: str) -> dict[str, str]:
    found = _PARTS.fullmatch(text)
    if found is None:
        raise CheckoutError(f"{text}: expected URL, URL#REF or URL#REF:FOLDER")
    return {name: value or "" for name, value in found.groupdict().items()}


def _git(*arguments: str) -> None:
    # What the repository or its address says must not become a program to run.
    safe = ("-c", "protocol.ext.allow=never", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1"}
    try:
        done = subprocess.run(
            ["git", *safe, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise CheckoutError("git is not installed: deploy a directory or a zip instead") from None
    except subprocess.TimeoutExpired:
        raise CheckoutError(f"git {arguments[0]} took more than {_SECONDS} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise CheckoutError(f"git: {said[-1] if said else f'exit status {done.returncode}'}")
