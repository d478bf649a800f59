"""What commands about a running worker have in common: how they find it, how they fail, and how they print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from olsock_worker.local import Local, LocalError, Remote
from olsock_worker.logs import escape
from olsock_worker.packing import PackingError
from olsock_worker.settings import STATE
from olsock_worker.state import running

_PIPE_WIDTH = 240
_URL = "olsock_worker.url"  # in what a command's context has of ours
_Given = ParamSpec("_Given")
_Command = TypeVar("_Command", bound=Callable[..., Any])


def state_option(
    name: str = "state", help: str = "State directory of the worker.", callback: Callable[..., object] | None = None
) -> Callable[[_Command], _Command]:
    """Return the option `--state`, by which a worker is found; its value is the parameter `name`."""
    return click.option(
        *("--state", name),
        metavar="DIR",
        default=STATE,
        show_default=True,
        envvar="OLSOCK_WORKER_STATE",
        callback=callback,
        help=help,
    )


def in_group(group: click.Group) -> Callable[[Callable[_Given, None]], click.Command]:
    """Return what makes commands of a group."""

    def make(work: Callable[_Given, None]) -> click.Command:
        return _command(group, work)

    return make


def _command(group: click.Group, work: Callable[_Given, None]) -> click.Command:
    """Make a command with the options that all have, and errors as people read them."""

    @wraps(work)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
        try:
            work(*args, **kwargs)
        except (LocalError, PackingError) as error:
            raise click.ClickException(escape(str(error))) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'the worker'}: {error.strerror or error}") from None

    state = state_option("worker", callback=_found)
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return group.command(name=work.__name__.rstrip("_").replace("_", "-"))(state(url_option(as_json(run))))


def _remember(context: click.Context, _parameter: click.Parameter, url: str | None) -> None:
    context.meta[_URL] = url


# Read before `--state`, in place of which it counts.
url_option = click.option(
    "--url",
    metavar="URL",
    envvar="OLSOCK_WORKER_URL",
    is_eager=True,
    expose_value=False,
    callback=_remember,
    help="Use the worker at this address instead, with the bearer token in OLSOCK_WORKER_TOKEN.",
)


def remote(context: click.Context) -> Remote | None:
    """Return the worker that `--url` names, if there is one."""
    url = context.meta.get(_URL)
    if not url:
        return None
    try:
        return Remote(url, os.environ.get("OLSOCK_WORKER_TOKEN", ""))
    except LocalError as error:
        raise click.ClickException(escape(str(error))) from None


def _found(context: click.Context, _parameter: click.Parameter, state: str) -> Local:
    found = remote(context)
    if found is None and context.resilient_parsing:  # a shell completes a line: whether there is a worker shows later
        return Local(state)
    return found or _worker(state)


def _worker(state: str) -> Local:
    try:
        found = running(state)
    except PermissionError:
        raise click.ClickException(
            f"{state}: permission denied; the state directory is root's, and --url is for others"
        ) from None
    if found is None or not found.port:
        click.echo(f"no worker is running in {state}" if found is None else "the worker is starting", err=True)
        sys.exit(3)
    return Local(state)


def complete_path(_context: click.Context, _parameter: click.Parameter, _incomplete: str) -> list[CompletionItem]:
    """Have the shell complete a path."""
    return [CompletionItem("", type="file")]


def complete_function(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a function by asking the worker; without one, or without the right to, by nothing."""
    worker = context.params.get("worker") or Local(os.environ.get("OLSOCK_WORKER_STATE") or STATE)
    try:
        names = [each["FunctionName"] for each in worker.every("Functions")]
    except (LocalError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def show_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))


def show_table(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    """Print rows: as a table, or all that they have as JSON."""
    if as_json:
        show_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        values = (row.get(column, "") for column in columns)
        table.add_row(*(escape(value if isinstance(value, str) else json.dumps(value)) for value in values))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a file or a pipe has no width: lines are not to be cut for one
        console = Console(highlight=False, markup=False, width=_PIPE_WIDTH)
    console.print(table)
