"""The command `olsock exec`: one snippet of Python in a fresh sandbox, with the packages it needs imported before."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from olsock.shell import EXIT_TIMEOUT, end_on_signals, fill_stdio, pairs, seconds

if TYPE_CHECKING:
    from olsock.snippets import ExecResult


@click.command("exec")
@click.option("--import", "imports", multiple=True, metavar="MODULE", help="Import before it starts. May be repeated.")
@click.option("--package-dir", "packages", multiple=True, metavar="DIR", help="Installed packages. May be repeated.")
@click.option("--require", "requirements", multiple=True, metavar="REQ", help="Install, such as 'pandas>=2'.")
@click.option("--store", metavar="DIR", help="Where what is required is installed, and kept for the next time.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=JSON", help="Set a variable. May be repeated.")
@click.option("--python", metavar="PATH", help="Interpreter, or a name such as python3.12.  [default: olsock's own]")
@click.option("--timeout", type=float, metavar="SECONDS", callback=seconds, help="End it after that long (status 124).")
@click.option("--memory", metavar="SIZE", help="Memory limit, such as 64M.  [default: 256M]")
@click.option("--cpus", type=float, metavar="N", help="CPUs' worth of time, such as 0.5.  [default: no limit]")
@click.option("--pids", type=int, metavar="N", help="Processes and threads.  [default: 64]")
@click.option("--tmpfs-size", metavar="SIZE", help="Size of /tmp and of /dev/shm.  [default: 64M]")
@click.option("--network", type=click.Choice(["none", "host", "bridge"]), help="What it can reach.  [default: none]")
@click.option("--json", "as_json", is_flag=True, help="Print result, output and usage as JSON, instead of the output.")
@click.argument("file", metavar="FILE")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    file: str,
    imports: tuple[str, ...],
    packages: tuple[str, ...],
    requirements: tuple[str, ...],
    inputs: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run the Python text in FILE (- is stdin) in a fresh sandbox and print what it prints.

    As the interactive interpreter does, the value of a last expression is printed unless it is None. Imports count
    neither as its time nor as its memory. Exit status 0; 1 for an exception, with its traceback on stderr, or for a
    snippet that ended its process; that of sys.exit(); 124 for a timeout, 125 for a failure of olsock itself.

    \b
    Examples:
      echo 'sum(numbers)' | olsock exec - --input 'numbers=[1, 2, 3]'
      olsock exec report.py --import pandas --package-dir /srv/packages --timeout 5
    """
    fill_stdio()
    end_on_signals()
    source = _read(file)
    variables = {name: _parse(name, text) for name, text in pairs(inputs, "--input").items()}
    from olsock.python_pool import PythonPool

    given = {name: value for name, value in options.items() if value is not None}
    with PythonPool(imports, packages=packages, requirements=requirements, size=1, **given) as pool:
        result = pool.exec(source, variables, timeout, filename="<stdin>" if file == "-" else file)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(result), "ok": result.ok}))
    else:
        _show(result)
    ctx.exit(_status(result))


def _read(file: str) -> str:
    try:
        with click.open_file(file, "rb") as stream:
            return importlib.util.decode_source(stream.read())
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise click.BadParameter(f"{file}: not Python text ({error})", param_hint="FILE") from None


def _parse(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{name}={text[:100]}: not JSON ({error})", param_hint="--input") from None


def _show(result: ExecResult) -> None:
    """Print as the interactive interpreter would."""
    _write(sys.stdout, result.stdout)
    _write(sys.stderr, result.stderr)
    if result.repr is not None:
        _write(sys.stdout, f"{result.repr}\n")
    if result.exception is not None and result.exception.type != "SystemExit":
        _write(sys.stderr, result.exception.traceback or f"{result.exception}\n")
    elif result.exception is not None and not re.fullmatch(r"None|-?\d+|", result.exception.message):
        _write(sys.stderr, f"{result.exception.message}\n")
    if result.ended is not None:
        click.echo(f"olsock: {result.ended}", err=True)


def _write(stream: Any, text: str) -> None:
    """Write text of a sandbox, which need not be what our terminal can show."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _status(result: ExecResult) -> int:
    if result.usage.timed_out:
        return EXIT_TIMEOUT
    if result.exception is not None and result.exception.type == "SystemExit":
        message = result.exception.message
        return int(message[-18:]) & 0xFF if re.fullmatch(r"-?\d+", message) else int(message not in ("None", ""))
    return 0 if result.ok else 1
