"""What our commands owe the shell that runs them: exit statuses, open standard streams, an end by signals that cleans up."""

from __future__ import annotations

import math
import os
import signal
import sys
from types import FrameType

import click

# As env(1), timeout(1) and Docker do
EXIT_TIMEOUT, EXIT_FAILED, EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND = 124, 125, 126, 127
EXIT_INTERRUPTED = 130


def seconds(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Check an option that is a duration; a click callback."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise click.BadParameter(f"{value}: expected a number of seconds above 0")
    return value


def fill_stdio() -> None:
    """Open what of 0, 1 and 2 is closed: else the next file of ours, a socket to the spawner, would be the command's."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def end_on_signals() -> None:
    """Leave by an exception, so that the sandbox is removed; whoever asks twice is not heard while that goes on."""

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handled = [each for each in wanted if signal.getsignal(each) != signal.SIG_IGN]  # nohup(1) has asked for that
    for each in handled:
        signal.signal(each, leave)


def pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    """Return what was given as NAME=VALUE to a repeated option."""
    result = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{pair!r}: expected NAME=VALUE", param_hint=option)
        result[name] = value
    return result
