"""What a function asks for: lines of requirements.txt, of a script's metadata (PEP 723) or of pyproject.toml.

Only names, versions, extras, markers and hashes are requirements here. What names a place instead (another file, a path,
an address, an index) is refused: the operator says where packages come from, not the function.
"""

from __future__ import annotations

import re
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from olsock.errors import SpecError

MAX_FILE = 1 << 20  # bytes
MAX_LINE = 1 << 16  # characters, with hundreds of hashes
MAX_REQUIREMENTS = 2000

ACCEPTED = 'a requirement such as "numpy", "requests[socks]>=2.31" or "tomli; python_version < \'3.11\'"'

_parsing = threading.Lock()
_HASH = re.compile(r"(?:^|\s)--hash(?:=|\s+)(\S+)")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_COMMENT = re.compile(r"(?:^|\s+)#.*$")
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # as PEP 723 has it


@dataclass(frozen=True, slots=True)
class Wanted:
    """One requirement. With hashes, only a file with one of them will do."""

    text: str  # canonical, without hashes
    name: str
    hashes: frozenset[str] = frozenset()  # "sha256:..."

    def __str__(self) -> str:
        return " ".join([self.text, *(f"--hash={each}" for each in sorted(self.hashes))])


def parse(line: str, field: str = "requirement") -> Wanted:
    """Return a requirement from one line of text; `SpecError` says what is wrong with it, and `field` where it stood."""
    if not isinstance(line, str) or len(line) > MAX_LINE:
        raise SpecError(field, str(line)[:200], f"a line of text of at most {MAX_LINE} characters")
    hashes = [_sha256(each, field) for each in _HASH.findall(line)]
    bare = _HASH.sub("", line).strip()
    if not bare or not bare.isprintable():
        raise SpecError(field, line[:200], ACCEPTED)
    if bare.startswith("-"):
        raise SpecError(field, bare[:200], ACCEPTED + "; options are not (the worker's configuration names indexes)")
    if bare.endswith((".whl", ".zip", ".tar.gz")):
        raise SpecError(field, bare[:200], ACCEPTED + "; a file is none")
    if "${" in bare:
        raise SpecError(field, bare[:200], ACCEPTED + "; variables are not expanded")
    try:
        found = parse_one(bare)
    except (InvalidRequirement, RecursionError):
        raise SpecError(field, bare[:200], ACCEPTED + "; paths and addresses are none") from None
    if found.url is not None:
        raise SpecError(field, bare[:200], ACCEPTED + "; it is taken from an index, not from an address")
    found.name = canonicalize_name(found.name)
    found.extras = {canonicalize_name(extra) for extra in found.extras}
    return Wanted(str(found), found.name, frozenset(hashes))


def parse_one(text: str) -> Requirement:
    """Parse a requirement, one thread at a time: markers go through `ast.literal_eval`, which is not safe in several
    (CPython issue 106905, in 3.11 and before). Raises `InvalidRequirement`."""
    with _parsing:
        return Requirement(text)


def parse_all(lines: Iterable[str], field: str = "requirements") -> tuple[Wanted, ...]:
    """Return every requirement once, sorted: the same set of lines is the same value."""
    if isinstance(lines, str | bytes):
        raise SpecError(field, lines, "a list of requirements")
    found: dict[str, Wanted] = {}
    for number, line in enumerate(lines):
        if number >= MAX_REQUIREMENTS:
            raise SpecError(field, f"{number} lines and more", f"at most {MAX_REQUIREMENTS}")
        each = parse(line, field)
        known = found.setdefault(each.text, each)
        if known.hashes != each.hashes:
            raise SpecError(field, each.text, "hashes once, or the same each time")
    return tuple(found[text] for text in sorted(found))


def collect(read: Callable[[str], bytes | None], handler_file: str) -> tuple[str, ...]:
    """Return what the code of a function asks for, as canonical lines; empty if it says nothing.

    `read` returns the bytes of a file beside the handler, or None. The first of these that exists counts, alone:
    requirements.txt, the script metadata (PEP 723) of the handler's file, the dependencies of pyproject.toml.
    """
    for name, extract in (
        ("requirements.txt", _requirements_txt),
        (handler_file, _script),
        ("pyproject.toml", _pyproject),
    ):
        content = read(name)
        lines = None if content is None else extract(name, _text(name, content))
        if lines is not None:
            return tuple(str(each) for each in lines)
    return ()


def _text(name: str, content: bytes) -> str:
    if len(content) > MAX_FILE:
        raise SpecError(name, f"{len(content)} bytes", f"at most {MAX_FILE} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(name, content[error.start : error.start + 8], "UTF-8") from None


def _sha256(value: str, field: str) -> str:
    if not _SHA256.fullmatch(value):
        raise SpecError(field, f"--hash={value[:100]}", "--hash=sha256:<64 hexadecimal digits>")
    return value


def _requirements_txt(name: str, text: str) -> tuple[Wanted, ...]:
    found: dict[str, Wanted] = {}
    for number, line in _logical_lines(text):
        each = parse(line, f"{name} line {number}")
        known = found.setdefault(each.text, each)
        if known.hashes != each.hashes:
            raise SpecError(f"{name} line {number}", each.text, "hashes once, or the same each time")
    return parse_all([str(each) for each in found.values()], name)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines as pip reads them: a backslash at the end goes on, # after white space is a comment, empty ones do not count."""
    joined, first = "", 0
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        first = first or number
        line = _COMMENT.sub("", line)
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        whole, at = (joined + line).strip(), first
        joined, first = "", 0
        if whole:
            yield at, whole
    if joined.strip():
        yield first, joined.strip()


def _script(name: str, text: str) -> tuple[Wanted, ...] | None:
    if "# /// " not in text:
        return None
    text = text.replace("\r\n", "\n")
    blocks = [match for match in _BLOCK.finditer(text) if match["type"] == "script"]
    if not blocks:
        return None
    if len(blocks) > 1:
        raise SpecError(name, f"{len(blocks)} script blocks", "one (PEP 723)")
    content = "".join(
        line[2:] if line.startswith("# ") else line[1:] for line in blocks[0]["content"].splitlines(keepends=True)
    )
    return _listed(name, _toml(name, content).get("dependencies", []))


def _pyproject(name: str, text: str) -> tuple[Wanted, ...] | None:
    project = _toml(name, text).get("project")
    if not isinstance(project, dict):
        return None
    if "dependencies" in project.get("dynamic", []):
        raise SpecError(name, "dynamic dependencies", "dependencies that stand in the file: it is not built")
    if "dependencies" not in project:
        return None
    return _listed(name, project["dependencies"])


def _toml(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(name, str(error)[:200], "TOML") from None


def _listed(name: str, value: Any) -> tuple[Wanted, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SpecError(f"{name} dependencies", str(value)[:200], "a list of texts")
    return parse_all(value, f"{name} dependencies")
