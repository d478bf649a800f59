"""`olsock-worker fn`: functions of a running worker, deployed, called, listed and deleted."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from olsock_worker.checkouts import checkout, is_remote, name_of
from olsock_worker.commands import complete_function, complete_path, in_group
from olsock_worker.commands import show_json as _print
from olsock_worker.commands import show_table as _table
from olsock_worker.local import Local, LocalError
from olsock_worker.logs import escape
from olsock_worker.packing import handler_of, pack

_ROLE = "arn:aws:iam::000000000000:role/olsock"
_PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
_LOOK = 0.05  # seconds between looks at a function that is being installed


@click.group()
def fn() -> None:
    """Functions of a running worker, over the control API.

    The worker is found by its state directory. Exit status: 0 when done, 1 when refused or when a function failed, 2 for
    wrong usage, 3 when no worker is running.
    """


_command = in_group(fn)


@_command
@click.argument("source", metavar="PATH|GIT_URL[#REF[:FOLDER]]", shell_complete=complete_path)
@click.option("--name", help="Name of the function.  [default: that of the directory, zip or repository]")
@click.option("--handler", help="module.function.  [default: what ol.yaml says, f.f or lambda_function.lambda_handler]")
@click.option("--runtime", help=f"Interpreter.  [default: what ol.yaml says, or {_PYTHON}]")
@click.option("--timeout", type=int, metavar="SECONDS", help="Seconds for a call.")
@click.option("--memory", type=int, metavar="MB", help="Memory limit.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Variable; repeatable. Replaces those there were.")
@click.option("--description", help="What it is for.")
@click.option("--publish", is_flag=True, help="Publish a version, too.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is installed.")
def deploy(worker: Local, as_json: bool, source: str, name: str | None, **given: Any) -> None:
    """Deploy a directory, a zip, or what is in a repository: a new function, or new code for the one of that name."""
    if is_remote(source):
        with contextlib.ExitStack() as stack:
            with _progress(f"fetching {source}"):
                path = stack.enter_context(checkout(source))
            _deploy(worker, as_json, path, name or name_of(source), **given)
        return
    path = Path(source)
    if not path.exists():
        raise click.BadParameter(f"{source}: neither there nor an address of a repository", param_hint="PATH")
    _deploy(worker, as_json, path, name or (path.resolve().name if path.is_dir() else path.stem), **given)


def _deploy(worker: Local, as_json: bool, path: Path, name: str, *, publish: bool, no_wait: bool, **given: Any) -> None:
    code = base64.b64encode(pack(path)).decode()
    settings = _settings(given)
    with _progress(f"deploying {name}"):
        if _exists(worker, name):
            if settings:
                worker.ask("PUT", name, "configuration", settings)
            shown = worker.ask("PUT", name, "code", {"ZipFile": code, "Publish": publish})
        else:
            handler = given["handler"] or handler_of(path)
            if handler is not None:
                settings = {"Runtime": _PYTHON, "Handler": handler, **settings}
            made = {"FunctionName": name, "Role": _ROLE, "Code": {"ZipFile": code}, "Publish": publish}
            shown = worker.ask("POST", body={**made, **settings})
        if not no_wait:
            latest = _settled(worker, name)
            shown = shown if publish else latest
    if as_json:
        _print(shown)
    else:
        click.echo(f"{shown['FunctionArn'].partition(':function:')[2]}  {shown['State']}  {shown['CodeSha256']}")


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that options stand for."""
    named = {"handler": "Handler", "runtime": "Runtime", "timeout": "Timeout", "memory": "MemorySize"}
    named["description"] = "Description"
    settings = {name: given[option] for option, name in named.items() if given[option] is not None}
    if given["env"]:
        pairs = [each.partition("=") for each in given["env"]]
        wrong = [name for name, equals, _ in pairs if not equals]
        if wrong:
            raise click.BadParameter(f"{wrong[0]!r}: expected NAME=VALUE", param_hint="--env")
        settings["Environment"] = {"Variables": {name: value for name, _, value in pairs}}
    return settings


def _exists(worker: Local, name: str) -> bool:
    try:
        worker.ask("GET", name, "configuration")
    except LocalError as error:
        if error.status == 404:
            return False
        raise
    return True


def _settled(worker: Local, name: str) -> Any:
    """Wait until the newest version is served, or cannot be."""
    while True:
        shown = worker.ask("GET", name, "configuration")
        if shown["State"] == "Failed" or shown["LastUpdateStatus"] == "Failed":
            raise LocalError("", 0, f"{name}: {shown.get('StateReason') or shown.get('LastUpdateStatusReason')}")
        if shown["State"] == "Active" and shown["LastUpdateStatus"] == "Successful":
            return shown
        time.sleep(_LOOK)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@_command
@click.argument("name", shell_complete=complete_function)
@click.argument("event", default="{}")
@click.option("--log", is_flag=True, help="Print the end of what it printed on standard error.")
@click.option("--event", "later", is_flag=True, help="Do not wait for an answer: print the id of the request.")
def invoke(worker: Local, as_json: bool, name: str, event: str, log: bool, later: bool) -> None:
    """Call the function NAME, or NAME:QUALIFIER, with EVENT: JSON, or - for standard input, or @FILE.

    With --event the call is kept by the worker and made as soon as it can be. If the function fails it is tried again, and
    in the end it is a dead letter.
    """
    if log and later:
        raise click.UsageError("--log needs an answer, and --event waits for none")
    if event == "-":
        body = sys.stdin.buffer.read()
    else:
        body = Path(event[1:]).read_bytes() if event.startswith("@") else event.encode()
    name, _, qualifier = name.partition(":")
    if later:
        identity = worker.send(name, body, qualifier or None)
        if as_json:
            _print({"RequestId": identity})
        else:
            click.echo(identity)
        return
    headers, data = worker.invoke(name, body, qualifier or None, log)
    printed = base64.b64decode(headers.get("x-amz-log-result", "")).decode(errors="replace")
    failed = "x-amz-function-error" in headers
    if as_json:
        answer = {"FunctionError": headers["x-amz-function-error"]} if failed else {}
        version = headers.get("x-amz-executed-version")
        _print({**answer, "ExecutedVersion": version, "Payload": json.loads(data), **({"Log": printed} if log else {})})
    else:
        for line in printed.splitlines():
            click.echo(escape(line), err=True)
        click.echo(data)
    if failed:
        sys.exit(1)


@_command
def list_(worker: Local, as_json: bool) -> None:
    """List the functions that were deployed over the control API."""
    columns = ("FunctionName", "Runtime", "Handler", "MemorySize", "Timeout", "CodeSize", "LastModified", "State")
    _table(list(worker.every("Functions")), columns, as_json)


@_command
@click.argument("name", shell_complete=complete_function)
def show(worker: Local, as_json: bool, name: str) -> None:
    """Show the function NAME, or NAME:QUALIFIER."""
    name, _, qualifier = name.partition(":")
    found = worker.ask("GET", name, Qualifier=qualifier)
    if as_json:
        _print(found)
        return
    shown = {**found["Configuration"], **{key: found[key] for key in ("Tags", "Concurrency") if key in found}}
    for key, value in shown.items():
        click.echo(f"{key}: {escape(value if isinstance(value, str) else json.dumps(value))}")


@_command
@click.argument("name", shell_complete=complete_function)
def versions(worker: Local, as_json: bool, name: str) -> None:
    """List the versions of the function NAME."""
    columns = ("Version", "Description", "CodeSize", "CodeSha256", "LastModified")
    _table(list(worker.every("Versions", name, "versions")), columns, as_json)


@_command
@click.argument("name", shell_complete=complete_function)
@click.argument("alias", required=False)
@click.argument("version", required=False)
@click.option("--weight", metavar="VERSION=SHARE", help="Another version, and its share of the calls from 0 to 1.")
@click.option("--delete", is_flag=True, help="Delete ALIAS.")
def alias(
    worker: Local, as_json: bool, name: str, alias: str | None, version: str | None, weight: str | None, delete: bool
) -> None:
    """List the aliases of the function NAME, or have ALIAS lead to VERSION, or delete it."""
    if alias is None:
        _table(list(worker.every("Aliases", name, "aliases")), ("Name", "FunctionVersion", "RoutingConfig"), as_json)
    elif delete:
        worker.ask("DELETE", name, f"aliases/{alias}")
    elif version is None:
        _print(worker.ask("GET", name, f"aliases/{alias}"))
    else:
        sent = {"FunctionVersion": version, "RoutingConfig": {"AdditionalVersionWeights": _weights(weight)}}
        try:
            made = worker.ask("PUT", name, f"aliases/{alias}", sent)
        except LocalError as error:
            if error.status != 404 or "alias" not in str(error):
                raise
            made = worker.ask("POST", name, "aliases", {"Name": alias, **sent})
        if as_json:
            _print(made)


def _weights(text: str | None) -> dict[str, float]:
    if text is None:
        return {}
    version, _, share = text.partition("=")
    try:
        return {version: float(share)}
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected VERSION=SHARE", param_hint="--weight") from None


@_command
@click.argument("name", shell_complete=complete_function)
def delete(worker: Local, as_json: bool, name: str) -> None:
    """Delete the function NAME with all that belongs to it, or the one version of NAME:VERSION."""
    name, _, qualifier = name.partition(":")
    worker.ask("DELETE", name, Qualifier=qualifier)
    if as_json:
        _print({"FunctionName": name, **({"Version": qualifier} if qualifier else {})})
