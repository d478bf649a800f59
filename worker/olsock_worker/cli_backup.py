"""`olsock-worker backup` and `olsock-worker restore`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import click

from olsock_worker import privileges
from olsock_worker.commands import state_option
from olsock_worker.settings import SettingsError
from olsock_worker.state import StateDirectory

_CHANGED, _TRIES = 75, 10
_PARTS = ("store", "locks")


@click.command()
@state_option()
@click.argument("file", type=click.Path(dir_okay=False))
def backup(state: str, file: str) -> None:
    """Write all that is deployed over the control API in STATE to FILE, while the worker runs or not.

    Functions with all versions, code, aliases, layers, URLs and tags, and the locks of what they require. FILE is root's
    alone: variables of functions may hold secrets. It is there whole, or as it was before.
    """
    _need_root()
    beside = f"{file}.new"
    try:
        with _opened(state) as fds:
            owner = os.fstat(fds[0])
            for attempt in range(_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(beside)
                with open(beside, "wb", opener=_private) as sink:
                    done = _run("backup", (owner.st_uid, owner.st_gid), fds, stdout=sink)
                    os.fsync(sink.fileno())
                if done.returncode != _CHANGED or attempt == _TRIES - 1:
                    break
        if done.returncode:
            raise click.ClickException(_said(done))
        os.replace(beside, file)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
    click.echo(f"{file}: {_said(done)}")


@click.command()
@state_option()
@click.option("--user", metavar="USER", default="", help="Who the front will be: as for `up`.")
@click.argument("file", type=click.Path(dir_okay=False, exists=True))
def restore(state: str, user: str, file: str) -> None:
    """Put what is in FILE into STATE, which must not have a function store. No worker may run there.

    Every byte is checked before anything counts as restored; if something is wrong, nothing was changed.
    """
    _need_root()
    try:
        ids = privileges.account(user)
        directory = StateDirectory(state)
        directory.acquire()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    try:
        opened = directory.directories(*ids)
        try:
            with open(file, "rb") as source:
                done = _run("restore", ids, (opened[3], opened[2]), stdin=source)
        finally:
            for fd in opened:
                os.close(fd)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    finally:
        directory.release()
    if done.returncode:
        raise click.ClickException(f"{file}: {_said(done)}")
    click.echo(f"{state}: {_said(done)}")


def _need_root() -> None:
    if os.geteuid() != 0:
        raise click.ClickException("this needs root: the state directory is root's, and what reads it becomes another")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)  # nobody else has made it


@contextlib.contextmanager
def _opened(state: str) -> Iterator[tuple[int, ...]]:
    """Open the store and the locks of a state directory, in which links are not followed."""
    with contextlib.ExitStack() as stack:
        fds = []
        for part in _PARTS:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            fds.append(os.open(os.path.join(state, part), flags))
            stack.callback(os.close, fds[-1])
        yield tuple(fds)


def _run(
    what: str,
    ids: tuple[int, int],
    fds: tuple[int, ...],
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.CompletedProcess[bytes]:
    """Run the program that does it, which gives root up."""
    return subprocess.run(
        [sys.executable, "-I", "-m", "olsock_worker.backups", what, *map(str, (*ids, *fds))],
        pass_fds=fds,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd="/",
        check=False,
    )


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with status {done.returncode}"
