"""`olsock-worker fn dead-letters`: events that were given up, shown, tried again and deleted."""

from __future__ import annotations

import json

import click

from olsock_worker.commands import complete_function, in_group, show_json, show_table
from olsock_worker.local import Local, LocalError
from olsock_worker.logs import escape

_COLUMNS = ("RequestId", "FunctionName", "Qualifier", "Reason", "Attempts", "ErrorType", "Died", "PayloadSize")


@click.group()
def dead_letters() -> None:
    """Events that their functions have not taken: listed, shown, tried again, deleted."""


_command = in_group(dead_letters)


@_command
@click.argument("name", required=False, shell_complete=complete_function)
def list_(worker: Local, as_json: bool, name: str | None) -> None:
    """List dead letters, all or those of the function NAME."""
    show_table(list(worker.dead_letters(name)), _COLUMNS, as_json)


@_command
@click.argument("request_id")
def show(worker: Local, as_json: bool, request_id: str) -> None:
    """Show the dead letter of the request REQUEST_ID, with its payload."""
    found = worker.dead_letter("GET", request_id)
    if as_json:
        show_json(found)
        return
    for key, value in found.items():
        plain = isinstance(value, str) and key != "Payload"
        click.echo(f"{key}: {escape(value if plain else json.dumps(value))}")


@_command
@click.argument("request_id", required=False)
@click.option("--all", "everything", is_flag=True, help="All there are now.")
@click.option("--name", help="All of this function.", shell_complete=complete_function)
def retry(worker: Local, as_json: bool, request_id: str | None, everything: bool, name: str | None) -> None:
    """Make an event of the dead letter REQUEST_ID again, as if it had come now."""
    _each(worker, as_json, ("POST", "/retry"), _chosen(worker, request_id, everything, name))


@_command
@click.argument("request_id", required=False)
@click.option("--all", "everything", is_flag=True, help="All there are now.")
@click.option("--name", help="All of this function.", shell_complete=complete_function)
def delete(worker: Local, as_json: bool, request_id: str | None, everything: bool, name: str | None) -> None:
    """Delete the dead letter REQUEST_ID."""
    _each(worker, as_json, ("DELETE", ""), _chosen(worker, request_id, everything, name))


def _chosen(worker: Local, request_id: str | None, everything: bool, name: str | None) -> list[str]:
    """Return the requests that are meant."""
    if sum((request_id is not None, everything, name is not None)) != 1:
        raise click.UsageError("expected one of REQUEST_ID, --all and --name NAME")
    if request_id is not None:
        return [request_id]
    return [each["RequestId"] for each in worker.dead_letters(name)]


def _each(worker: Local, as_json: bool, how: tuple[str, str], identities: list[str]) -> None:
    done = []
    method, part = how
    for identity in identities:
        try:
            worker.dead_letter(method, identity, part)
        except LocalError as error:
            if error.status != 404 or len(identities) == 1:
                raise
            continue  # somebody else was faster
        done.append(identity)
    if as_json:
        show_json([{"RequestId": each} for each in done])
    elif len(identities) != 1:
        click.echo(len(done))
