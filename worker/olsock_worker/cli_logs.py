"""`olsock-worker fn logs`: what a function has printed and how its calls went, from a worker's files or from the worker."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec

from olsock_worker.commands import remote, state_option, url_option
from olsock_worker.local import Local, LocalError
from olsock_worker.logs import escape
from olsock_worker.records import LogReader, Record, parse, shown

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}(:[0-9]+)?", re.ASCII)
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LOOK = 0.1  # seconds between looks at a log that is followed
_SHOWN = 20  # names of logs that there are


class _RemoteLog:
    """Does what a `LogReader` does, over the network."""

    def __init__(self, worker: Local, name: str) -> None:
        self._worker, self._name, self._next = worker, name, ""
        self.missed = False

    def read(self) -> Iterator[str]:
        """Yield the lines that have come since the last time, oldest first."""
        while True:
            page = self._worker.log(self._name, self._next)
            self.missed = self.missed or page["Missed"]
            self._next = page["Next"]
            if not page["Lines"]:
                return
            yield from page["Lines"]

    def close(self) -> None:
        """Nothing is open."""


def _since(_context: click.Context, _option: click.Parameter, value: str | None) -> str:
    """Turn "5m" or a time into text that sorts as the log's times do."""
    if value is None:
        return ""
    ago = _AGO.fullmatch(value)
    try:
        if ago is not None:
            moment = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        else:
            moment = datetime.fromisoformat(value)
            moment = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r}: expected such as 30s, 5m, 2h, 1d or 2026-01-31T12:00:00Z") from None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--since", metavar="WHEN", callback=_since, help="Such as 5m ago, or a time (UTC).")
@click.option("--request", metavar="ID", help="Of one request.")
@click.option("--instance", type=int, metavar="N", help="Of one instance.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, with the text as it was printed.")
@url_option
@state_option(help="State directory of the worker, which need not run.")
@click.pass_context
def logs(
    context: click.Context,
    name: str,
    follow: bool,
    since: str,
    request: str | None,
    instance: int | None,
    as_json: bool,
    state: str,
) -> None:
    """Print the log of the function NAME, or NAME:VERSION.

    Each line has a time, the id of the request, and who has said it: out/N is the function, in instance N, and platform/N
    the worker. Nothing that a function prints can be a line of the worker's.
    """
    worker = remote(context)
    reader = _open(state, name, follow) if worker is None else _RemoteLog(worker, name)

    def wanted(record: Record) -> bool:
        return (
            record.time >= since
            and request in (None, record.request)
            and (instance is None or instance == record.instance)
        )

    everything = not since and request is None and instance is None
    try:
        while True:
            for line in reader.read():
                record = parse(line)
                if record is None and (as_json or not everything):
                    continue
                if record is None or wanted(record):
                    _print(line, record if as_json else None)
            sys.stdout.flush()
            if reader.missed:
                reader.missed = False
                click.echo("olsock-worker: the log was rotated faster than it was read; lines may be missing", err=True)
            if not follow:
                return
            time.sleep(_LOOK)
    except LocalError as error:
        raise click.ClickException(escape(str(error))) from None
    except KeyboardInterrupt:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise click.ClickException(f"the worker: {error.strerror or error}") from None
    finally:
        reader.close()


def _print(line: str, record: Record | None) -> None:
    if record is None:
        sys.stdout.write(f"{shown(line)}\n")
    else:
        sys.stdout.write(f"{json.dumps(msgspec.structs.asdict(record))}\n")  # as ASCII, which drives no terminal


def _open(state: str, name: str, follow: bool) -> LogReader:
    """Find a log, or say what there is."""
    key = name.removesuffix(":$LATEST")
    if not _NAME.fullmatch(key):
        raise click.BadParameter(f"{name!r}: expected NAME or NAME:VERSION", param_hint="NAME")
    directory = Path(state, "logs")
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        names = sorted(_logs(fd))
    except PermissionError:
        raise click.ClickException(
            f"{directory}: permission denied; the state directory is root's, and --url is for others"
        ) from None
    except FileNotFoundError:
        raise click.ClickException(f"{directory}: there is no such directory; --state names the worker's") from None
    except OSError as error:
        raise click.ClickException(f"{directory}: {error.strerror}") from None
    if key not in names and not follow:
        listed = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
        has = f"there are logs of {shown(listed)}" if names else "there are no logs yet"
        raise click.ClickException(f"{name} has no log in {directory}: {has}")
    return LogReader(fd, key)


def _logs(fd: int) -> Iterator[str]:
    return (each.removesuffix(".log") for each in os.listdir(fd) if each.endswith(".log"))
