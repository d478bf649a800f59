"""The command `olsock-worker`."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import sys
from pathlib import Path
from urllib.parse import quote

import click

from olsock_worker.cli_backup import backup, restore
from olsock_worker.cli_dead_letters import dead_letters
from olsock_worker.cli_fn import fn
from olsock_worker.cli_logs import logs
from olsock_worker.commands import state_option
from olsock_worker.settings import STATE, SettingsError, load
from olsock_worker.state import Running, running

_PIPE_WIDTH = 240


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="olsock", prog_name="olsock-worker")
def main() -> None:
    """Serve Python functions over HTTP, each from a sandbox of its own.

    A function is a directory REGISTRY/<name>/ with an f.py that defines f(event), or the same as an archive,
    REGISTRY/<name>.tar.gz.
    POST /run/<name> calls it with the JSON body and returns the result as JSON.

    \b
    Examples:
      mkdir -p registry/hello
      echo 'def f(event): return {"hello": event.get("name")}' > registry/hello/f.py
      olsock-worker up --registry registry --state state
      curl -d '{"name": "you"}' http://127.0.0.1:5000/run/hello
    """


@main.command()
@click.option(
    "--config", metavar="FILE", type=click.Path(dir_okay=False), help="TOML file of settings; options win over it."
)
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, metavar="PORT", help="Port to listen on; 0 takes a free one.  [default: 5000]")
@click.option(
    "--registry", metavar="DIR", type=click.Path(), help="Directory of functions.  [default: /var/lib/olsock/registry]"
)
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(),
    envvar="OLSOCK_WORKER_STATE",
    help=f"State directory.  [default: {STATE}]",
)
@click.option(
    "--user",
    metavar="USER",
    help="Who the unprivileged front is.  [default: olsock if it exists, else an id of olsock's own]",
)
@click.option(
    "--packages",
    metavar="DIR",
    multiple=True,
    type=click.Path(),
    help="Directory of packages for functions, read-only. Repeatable.",
)
@click.option("--python", metavar="FILE", help="Interpreter for functions.  [default: the worker's own]")
def up(config: str | None, packages: tuple[str, ...], **options: str | int | None) -> None:
    """Run a worker in the foreground until SIGTERM.

    Must be started as root. It splits at once: the broker keeps root and only makes sandboxes; the front, which reads
    requests, becomes an unprivileged user without capabilities. Logs are JSON lines on standard error; what functions
    print is in STATE/logs/<name>.log: see `olsock-worker fn logs`.

    SIGTERM or Ctrl-C drains: no new connections, running requests finish (at most `drain` seconds), exit status 0.
    A second one cuts them off and exits with status 1. What a killed worker left behind is removed by the next `up`.

    \b
    The commonest settings that are not options, with their defaults (--config, TOML); docs/worker.md has all:
      registry_check = 5.0     seconds between looks at the registry
      grace = 0.02             seconds an idle instance stays warm before it is frozen
      drain = 30.0             seconds that running requests get at the end
      start_timeout = 20.0     seconds for making a sandbox
      instances = 256          most instances at one time
      concurrent_executions = 1000   calls that run or wait, of all functions together
      memory_budget = "0"      sum of their memory limits; 0 is twice the host's memory
      memory_floor = "0"       idle ones go while less is available; 0 is 1/16 of the host's memory
      zygote_memory = "1G"     limit of one zygote; blanks = 4 forked ahead of each at most
      tree = ""                file of zygote trees; without one they are learnt (tree_learn = true,
                               tree_memory = "1G", tree_nodes = 40, tree_interval = 30.0)
      package_store = ""       where packages are installed; "" is STATE/packages (package_bytes = "10G",
                               package_network = "bridge", allow_source = false, install_timeout = 300.0, installs = 2)
      pythons = []             interpreters for functions, beside those that are found
      code = "256M"            unpacked size of one function; code_files = 10000
      log_bytes = "4M"         size of one log file; log_files = 4
      access_log = false       a line for every request
    \b
      [function]               what an ol.yaml may override
      memory = "128M"          pids = 64, cpus (unlimited), tmpfs_size = "64M", timeout = 30.0,
                               init_timeout = 10.0, invocation_log = true,
                               concurrency = 32, queue = 256, zygote = "auto" | "wait" | "off"
    \b
      [http]
      body = "6M"              largest request; reply = "6M"; bodies = "256M" held at one time
      header_bytes = 32768     header_count = 100, header_timeout = 10.0, body_timeout = 60.0,
                               write_timeout = 60.0, idle_timeout = 75.0, connections = 1024, pipeline = 64
    \b
      [events]                 asynchronous invocations
      payload = "256K"         count = 1000000, bytes = "1G", retries = 2, age = 21600.0, running = 128
    """
    from olsock_worker import worker

    overrides: dict[str, object] = dict(options)
    for name in ("registry", "state"):
        if overrides[name] is not None:
            overrides[name] = os.path.abspath(str(overrides[name]))
    if packages:
        overrides["packages"] = [os.path.abspath(package) for package in packages]
    try:
        sys.exit(worker.up(load(config, overrides)))
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@state_option()
def status(state: str) -> None:
    """Print what the worker of STATE says about itself.

    The exit status is 0 if it is ready, 1 if it is starting or draining, 3 if none is running.
    """
    worker = _running(state)
    if not worker.port:
        click.echo("starting")
        sys.exit(1)
    code, data = _get(worker, "/status")
    click.echo(data, nl=False)
    sys.exit(0 if code == 200 else 1)


@main.command()
@state_option()
@click.argument("name")
def lock(state: str, name: str) -> None:
    """Print what the requirements of the function NAME were resolved to.

    The text is a requirements file with exact versions and hashes. It is empty for a function that requires nothing.
    """
    status, data = _get(_running(state), f"/status?function={quote(name, safe='')}")
    if status != 200:
        raise click.ClickException(f"{name}: there is no such function")
    shown = json.loads(data)
    if "version" not in shown:
        raise click.ClickException(f"{name}: {shown.get('error', 'it is being installed')}")
    click.echo(shown.get("lock", ""), nl=False)


@main.command()
@state_option()
@click.option("--svg", metavar="FILE", type=click.Path(dir_okay=False), help="Write a picture there instead.")
def tree(state: str, svg: str | None) -> None:
    """Draw the zygote trees of the worker of STATE: memory, hits, and the milliseconds that they have saved.

    `olsock tree show STATE/tree.json` draws what was fitted to the worker's history.
    """
    from rich.console import Console

    from olsock.trees.render import render
    from olsock.trees.svg import draw
    from olsock_worker.picture import plans

    _, data = _get(_running(state), "/status")
    found = plans(json.loads(data)["zygotes"])
    if svg is not None:
        Path(svg).write_text(draw(found), encoding="utf-8")
        return
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width: lines are not to be cut for one
        console = Console(highlight=False, width=_PIPE_WIDTH)
    console.print(render(found))


fn.add_command(logs)
main.add_command(fn)
fn.add_command(dead_letters)
main.add_command(backup)
main.add_command(restore)


@main.command()
@state_option()
@click.option(
    "--timeout", type=float, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait for its end."
)
@click.option("--force", is_flag=True, help="Do not wait for running requests.")
def down(state: str, timeout: float, force: bool) -> None:
    """Stop the worker of STATE and wait for its end.

    It drains first, unless --force is given. The exit status is 0 once it is gone, 3 if none was running.
    """
    worker = _running(state)
    try:
        pidfd = os.pidfd_open(worker.pid)
    except ProcessLookupError:
        return
    try:
        # The lock is still held, so this pid is still the worker's and not a stranger's.
        if running(state) is None:
            return
        for _ in range(2 if force else 1):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if select.select([pidfd], [], [], 0.5 if force else timeout)[0]:
                return
        if force and select.select([pidfd], [], [], timeout)[0]:
            return
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
    raise click.ClickException(f"pid {worker.pid} still runs after {timeout:g} s; --force cuts its requests off")


def _get(worker: Running, path: str) -> tuple[int, bytes]:
    """Ask a worker for one of its own pages; return the status and the body."""
    connection = http.client.HTTPConnection(worker.control_host, worker.control_port, timeout=5.0)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise click.ClickException(
            f"pid {worker.pid} does not answer on {worker.control_host}:{worker.control_port}: {error}"
        ) from None


def _running(state: str) -> Running:
    try:
        worker = running(state)
    except PermissionError:
        raise click.ClickException(f"{state}: permission denied; the state directory is root's") from None
    if worker is None:
        click.echo(f"no worker is running in {state}", err=True)
        sys.exit(3)
    return worker
