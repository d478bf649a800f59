"""The command `olsock`: try a sandbox, look at the host, find and remove what a crash left."""

from __future__ import annotations

import base64
import dataclasses
import errno
import json
import os
import sys
import time
from importlib.metadata import EntryPoints, entry_points
from typing import Any

import click

from olsock import cli_exec
from olsock.cli_tree import tree
from olsock.errors import KernelError, OlsockError
from olsock.shell import (
    EXIT_CANNOT_EXECUTE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_FOUND,
    EXIT_TIMEOUT,
    end_on_signals,
    fill_stdio,
    pairs,
    seconds,
)


def _others() -> EntryPoints:
    return entry_points(group="olsock.commands")


class Guarded(click.Group):
    """Turns errors that olsock raises on purpose into one line and an exit status: users see no traceback of ours.

    Packages that are installed beside it bring commands of their own by entry points of the group `olsock.commands`, with
    exit statuses of their own.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, ours and others'."""
        return sorted({*super().list_commands(ctx), *_others().names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; those of others are imported only when they are asked for."""
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in _others().names:
            found = _others()[cmd_name].load()
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OlsockError as e:
            click.echo(f"olsock: {e}", err=True)
            ctx.exit(EXIT_FAILED)
        except OSError as e:
            if e.errno == errno.EPIPE:
                raise  # whoever read our output has gone: click ends quietly
            click.echo(f"olsock: {e}", err=True)
            ctx.exit(EXIT_FAILED)
        except click.UsageError as e:
            if ctx.invoked_subcommand in _others().names:
                raise
            e.show()
            ctx.exit(EXIT_FAILED)  # not click's 2, which is a status that commands have themselves
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=Guarded, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="olsock")
def main() -> None:
    """Lean Linux sandboxes for programs and Python functions.

    Everything needs root, except `doctor`, which says what else is missing.
    """


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--memory", metavar="SIZE", help='Memory limit, such as 128M; "none" for no limit.  [default: 512M]')
@click.option("--swap", metavar="SIZE", help="Swap beside it.  [default: 0]")
@click.option("--cpus", type=float, metavar="N", help="CPUs' worth of time, such as 0.5.  [default: no limit]")
@click.option("--pids", type=int, metavar="N", help="Processes and threads.  [default: 64]")
@click.option("--nofile", type=int, metavar="N", help="Open files of a process.  [default: 1024]")
@click.option("--fsize", metavar="SIZE", help="Largest file that may be written.  [default: no limit]")
@click.option("--tmpfs-size", metavar="SIZE", help="Size of /tmp and of /dev/shm.  [default: 64M]")
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    callback=seconds,
    help="Kill the command after that long (exit status 124).",
)
@click.option("--network", type=click.Choice(["none", "host", "bridge"]), help="What it can reach.  [default: none]")
@click.option("--rootfs", metavar="DIR", help="A directory as root, read-only.  [default: the host's /usr]")
@click.option("--writable", is_flag=True, help="Let the root be written; changes are thrown away.")
@click.option("--keep", metavar="DIR", help="As --writable, but keep the changes in DIR.")
@click.option("--bind", "binds", multiple=True, metavar="SRC:DST[:rw]", help="Show SRC at DST. May be repeated.")
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="Set a variable. May be repeated.")
@click.option("--cwd", metavar="DIR", help="Directory to start in.  [default: /tmp]")
@click.option("--user", metavar="USER", help='"root", "nobody", an id or uid:gid, inside the sandbox.  [default: 1000]')
@click.option("--hostname", metavar="NAME", help="Host name inside.  [default: sandbox]")
@click.option("--seccomp", metavar="PROFILE", help='A profile (path), or "off".  [default: default]')
@click.option("--json", "as_json", is_flag=True, help="Print result, output and usage as JSON, instead of the output.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARG]...")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    command: tuple[str, ...],
    timeout: float | None,
    keep: str | None,
    as_json: bool,
    env: tuple[str, ...],
    **options: Any,
) -> None:
    """Run COMMAND in a fresh sandbox and pass its exit status on.

    By default it sees the host's /usr read-only and an empty /tmp, has no network and no privileges. A command that a
    signal ended gives 128 + the signal; 124 is a timeout, 126 and 127 a command that cannot be executed or found, 125
    a failure of olsock itself, wrong usage included. Ctrl-C, SIGTERM and SIGHUP end the command and remove the sandbox
    (128 + the signal).

    \b
    Examples:
      olsock run -- python3 -c 'print(6 * 7)'
      olsock run --memory 64M --cpus 0.5 --timeout 5 --bind "$PWD:/work" --cwd /work -- python3 script.py
    """
    fill_stdio()
    end_on_signals()
    from olsock.sandbox import Sandbox

    # By identity: 0 is equal to False, and is to be refused, not left out.
    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    if given.get("memory") == "none":
        given["memory"] = None
    if keep is not None:
        given["writable"] = keep
    given["env"] = pairs(env, "--env")
    with Sandbox(**given) as box:
        try:
            status = _run_json(box, command, timeout) if as_json else _run_through(box, command, timeout)
        except KernelError as e:
            if e.step != "execve":
                raise
            click.echo(f"olsock: {e}", err=True)
            status = EXIT_NOT_FOUND if e.errno == errno.ENOENT else EXIT_CANNOT_EXECUTE
    ctx.exit(status)


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _run_through(box: Any, command: tuple[str, ...], timeout: float | None) -> int:
    """Run with our own stdin, stdout and stderr."""
    from olsock.errors import DeadlineError

    with box.popen(command, stdin=0, stdout=1, stderr=2) as child:
        try:
            return _status(child.wait(timeout))
        except DeadlineError:
            click.echo(f"olsock: the command took longer than {timeout} s and was killed", err=True)
            return EXIT_TIMEOUT


def _run_json(box: Any, command: tuple[str, ...], timeout: float | None) -> int:
    data = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    done = box.run(command, input=data, timeout=timeout)
    result = dataclasses.asdict(done)
    result["usage"]["cpu_seconds"] = done.usage.cpu_seconds
    for stream in ("stdout", "stderr"):
        raw = result[stream]
        try:
            result[stream] = raw.decode()
        except UnicodeDecodeError:
            result[stream] = {"base64": base64.b64encode(raw).decode()}
    click.echo(json.dumps(result))
    return EXIT_TIMEOUT if done.usage.timed_out else _status(done.returncode)


main.add_command(cli_exec.command)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what this host offers, which layers a sandbox will have, and what to do about each gap.

    Exit status 0 if default sandboxes can be made here, 1 if not.
    """
    from olsock import doctor as examination

    report = examination.examine()
    click.echo(examination.to_json(report) if as_json else examination.render(report))
    ctx.exit(0 if report.usable else 1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects as JSON.")
def ps(as_json: bool) -> None:
    """List the processes that use olsock on this host, and dead ones that left something."""
    from olsock import leftovers

    entries = leftovers.list_instances()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(entry) for entry in entries]))
        return
    click.echo(f"{'INSTANCE':<24} {'STATE':<6} {'PID':>8} {'SANDBOXES':>9}  {'STARTED':<19}  COMMAND")
    for entry in entries:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.started))
        state = "alive" if entry.alive else "dead"
        command = os.path.basename(entry.argv0)
        click.echo(f"{entry.name:<24} {state:<6} {entry.pid:>8} {entry.sandboxes:>9}  {started:<19}  {command}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects as JSON.")
@click.pass_context
def clean(ctx: click.Context, as_json: bool) -> None:
    """Remove what dead processes left: processes, cgroups, directories, network interfaces. Never what lives.

    Exit status 1 if something could not be removed.
    """
    from olsock import leftovers

    removals = leftovers.clean()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(removal) for removal in removals]))
    for removal in () if as_json else removals:
        click.echo(f"{'failed' if removal.problem else 'removed'} {removal}")
    if not removals and not as_json:
        click.echo("nothing to remove")
    ctx.exit(1 if any(removal.problem for removal in removals) else 0)


main.add_command(tree)


if __name__ == "__main__":
    main()
