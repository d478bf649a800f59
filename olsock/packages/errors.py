"""What can go wrong with packages, and how the resolver's words are quoted."""

from __future__ import annotations

import re

from olsock.errors import OlsockError

QUOTED_LINES = 30
QUOTED_BYTES = 4096

_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


class PackageError(OlsockError):
    """Packages cannot be resolved, installed or kept; nothing of the attempt is left. `output` is what the resolver said."""

    def __init__(self, message: str, output: str = "") -> None:
        self.output = output
        super().__init__(f"{message}\n{output}" if output else message)


def quote(said: bytes) -> str:
    """Return the last lines of a program's output as text that is harmless on a terminal and in a log.

    Colours go, other control characters are escaped, and both the lines and the bytes are bounded.
    """
    text = _ANSI.sub("", said[-4 * QUOTED_BYTES :].decode(errors="replace"))
    lines = [_escape(line.rstrip()) for line in re.split(r"\r?\n", text)]
    kept = "\n".join([line for line in lines if line][-QUOTED_LINES:])
    return kept if len(kept) <= QUOTED_BYTES else "..." + kept[-QUOTED_BYTES:]


def _escape(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line.replace("\t", "    "))
