"""Names and ARNs of functions. Region and account mean nothing here: ours are made up, and any are understood."""

from __future__ import annotations

import re

from olsock_worker.aws.errors import invalid
from olsock_worker.configurations import ACCOUNT, REGION
from olsock_worker.store.records import LATEST

_NAME = re.compile(
    r"(?:arn:aws[a-zA-Z-]*:lambda:[a-z0-9-]{1,32}:\d{12}:function:|\d{12}:function:|function:)?"
    r"([a-zA-Z0-9][a-zA-Z0-9._-]{0,63})(?::(\$LATEST|[a-zA-Z0-9_-]{1,128}))?",
    re.ASCII,
)
_LAYER = re.compile(
    r"(?:arn:aws[a-zA-Z-]*:lambda:[a-z0-9-]{1,32}:\d{12}:layer:)?([a-zA-Z0-9_-]{1,140})(?::(\d{1,15}))?", re.ASCII
)
_NEW = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}", re.ASCII)
_ALIAS = re.compile(r"(?!\d+$)[a-zA-Z0-9_-]{1,128}", re.ASCII)
_QUALIFIER = re.compile(r"\$LATEST|[a-zA-Z0-9_-]{1,128}", re.ASCII)


def parse(text: str, qualifier: str | None = None) -> tuple[str, str | None]:
    """Return a function's name, and the qualifier that is in it or beside it."""
    found = _NAME.fullmatch(text)
    if found is None:
        raise invalid(f"FunctionName {text[:200]!r}: expected a name or an ARN of a function")
    if qualifier is not None and not _QUALIFIER.fullmatch(qualifier):
        raise invalid(
            f"Qualifier {qualifier[:200]!r}: expected {LATEST}, the number of a version or the name of an alias"
        )
    if found[2] and qualifier and found[2] != qualifier:
        raise invalid("The derived qualifier from the function name does not match the specified qualifier.")
    return found[1], found[2] or qualifier


def plain(text: str) -> str:
    """Return a function's name where no qualifier may be given."""
    name, qualifier = parse(text)
    if qualifier is not None:
        raise invalid(f"FunctionName {text[:200]!r}: no qualifier is accepted here")
    return name


def new(text: str) -> str:
    """Return the name of a function that is to be made."""
    name = plain(text)
    if not _NEW.fullmatch(name):
        raise invalid(
            f"FunctionName {name!r}: expected up to 64 letters, digits, - and _, the first a letter or a digit"
        )
    return name


def alias(text: str) -> str:
    """Return the name of an alias."""
    if not _ALIAS.fullmatch(text):
        raise invalid(f"Name {text[:200]!r}: expected up to 128 letters, digits, - and _, and not digits alone")
    return text


def layer(text: str) -> str:
    """Return the name of a layer."""
    found = _LAYER.fullmatch(text)
    if found is None or found[2]:
        raise invalid(f"LayerName {text[:200]!r}: expected up to 140 letters, digits, - and _, or the ARN of a layer")
    return found[1]


def layer_version(text: str) -> tuple[str, int]:
    """Return the name and the number in the ARN of a version of a layer."""
    found = _LAYER.fullmatch(text)
    if found is None or not found[2] or not text.startswith("arn:"):
        raise invalid(f"{text[:200]!r} is not the ARN of a version of a layer")
    return found[1], int(found[2])


def layer_arn(name: str, number: int | None = None) -> str:
    """Return the ARN of a layer, or of one of its versions."""
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:layer:{name}" + (f":{number}" if number is not None else "")


def arn(name: str, qualifier: str | None = None) -> str:
    """Return the ARN of a function, or of one of its versions or aliases."""
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}" + (f":{qualifier}" if qualifier else "")
