"""The text of a traceback, with the user's frames alone. Loaded when something has failed."""

from __future__ import annotations

import os
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import handler, measure
else:
    import _olsock_handler as handler
    import _olsock_measure as measure

MAX_TRACEBACK = 32 * 1024  # characters
MEASURING = measure.frame()


def text(error: BaseException) -> str:
    """Return what the interpreter would print of `error`, without the frames that called the user's code."""
    frames = error.__traceback__
    while frames is not None and _is_plumbing(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    at = frames
    while at is not None:
        while at.tb_next is not None and at.tb_next.tb_frame.f_code is MEASURING:
            at.tb_next = at.tb_next.tb_next
        at = at.tb_next
    found = handler.plain("".join(traceback.format_exception(type(error), error, frames)))
    if len(found) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2 - 16
        found = f"{found[:half]}\n[... cut ...]\n{found[-half:]}"
    return found


def _is_plumbing(filename: str) -> bool:
    ours = os.path.dirname(filename) == handler.HERE
    return ours or filename.startswith("<frozen importlib") or "/asyncio/" in filename
