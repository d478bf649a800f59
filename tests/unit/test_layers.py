"""Dependencies point one way, as the table "Layers" of docs/architecture.md says: read from the sources, nothing is imported.

A module may import those of its own row and of the rows above. Imports that only type checkers see do not count.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.documents import ROOT, section, tables

pytestmark = pytest.mark.unit

PACKAGES = {"olsock": ROOT / "olsock", "olsock_worker": ROOT / "worker" / "olsock_worker"}
# What the worker may take of the library besides the names of `olsock` itself.
TAKEN = {"olsock", "olsock.host", "olsock.interpreters", "olsock.leftovers", "olsock.packages", "olsock.spec"}
TAKEN |= {"olsock.nursery", "olsock.nursery.offshoots", "olsock.trees"}  # and all modules of the latter
TAKEN |= {
    "olsock.archives",
    "olsock.bytecode",
    "olsock.packages.requirements",
    "olsock.runtime.wire",
    "olsock._core.mounts",
}


def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run: not those below `if TYPE_CHECKING:` alone."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _statements(node.orelse)
        else:
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def imports(source: str) -> set[str]:
    """Return the full names that a source imports: `a.b` for `from a import b` as well as for `import a.b`."""
    names: set[str] = set()
    for node in _statements(ast.parse(source).body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0 and node.module, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def graph(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return, for each module, the modules of both packages that it imports."""
    result = {}
    for name, path in known.items():
        found = {_module(each, known) for each in imports(path.read_text())}
        result[name] = {each for each in found if each} - {name}
    return result


def _module(name: str, known: Mapping[str, Path]) -> str:
    """The longest beginning of a name that is a module: `from olsock import host` names olsock.host."""
    parts = name.split(".")
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def ranks() -> dict[str, int]:
    """The row of each module in the table; a folder stands for all in it."""
    known = modules()
    found: dict[str, int] = {}
    for rank, row in enumerate(tables(section(ROOT / "docs" / "architecture.md", "Layers"))):
        for path in re.findall(r"`((?:olsock|worker)/[\w/.]+)`", row[1]):
            target = ROOT / path
            for name, source in known.items():
                if source == target or (path.endswith("/") and target in source.parents):
                    assert name not in found, f"{name} is in two rows"
                    found[name] = rank
    return found


KNOWN, GRAPH, RANKS = modules(), graph(modules()), ranks()
APART = {"olsock"} | {name for name in KNOWN if name.startswith("olsock.runtime")}


def test_the_reader_of_imports_reads_them() -> None:
    """Or all below would pass whatever is imported."""
    source = """
import a.b
from c import d, e
TYPE_CHECKING = False
if TYPE_CHECKING:
    import types_only
else:
    import real
def f():
    from g import h
    try:
        import i
    except ImportError:
        import j
"""
    assert imports(source) == {"a.b", "c.d", "c.e", "real", "g.h", "i", "j"}
    assert "olsock.host" in GRAPH["olsock.sandbox"] and "olsock.errors" in GRAPH["olsock.spec"]
    assert "olsock.leftovers" in GRAPH["olsock.cli"], "imports inside of functions count"


def test_every_module_is_in_the_table() -> None:
    assert KNOWN.keys() - APART == RANKS.keys()


@pytest.mark.parametrize("name", sorted(RANKS))
def test_imports_point_up_in_the_table(name: str) -> None:
    below = {each for each in GRAPH[name] - APART if RANKS[each] > RANKS[name]}
    assert not below, f"{name} imports {sorted(below)}, which stand below it"


def test_nothing_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join((*path, name))}"
        if name not in done:
            for each in sorted(GRAPH[name]):
                visit(each, (*path, name))
            done.add(name)

    for name in sorted(GRAPH):
        visit(name, ())


def test_the_library_does_not_know_the_worker() -> None:
    for name in KNOWN:
        if name.split(".")[0] == "olsock":
            assert "olsock_worker" not in KNOWN[name].read_text(), f"{name} names the worker"


def test_the_library_does_not_import_its_own_front_door() -> None:
    """`import olsock` inside of olsock would make a circle of everything; `__init__` only re-exports."""
    assert not [name for name, found in GRAPH.items() if name.startswith("olsock.") and "olsock" in found]
    body = ast.parse(KNOWN["olsock"].read_text()).body
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body)


def test_what_the_worker_takes_of_the_library() -> None:
    taken = {
        each for name in KNOWN if name.startswith("olsock_worker") for each in GRAPH[name] if each.startswith("olsock.")
    }
    assert {each for each in taken if not each.startswith("olsock.trees.")} <= TAKEN
    private = [name for name in KNOWN if name.startswith("olsock_worker") and "olsock._core.mounts" in GRAPH[name]]
    assert private == ["olsock_worker.beneath"]


def reachable(name: str) -> set[str]:
    """Every module of the worker that importing one brings along."""
    found, todo = set[str](), [name]
    while todo:
        at = todo.pop()
        if at not in found and at.startswith("olsock_worker"):
            found.add(at)
            todo += GRAPH[at]
    return found


def test_broker_and_front_share_no_privileged_or_parsing_code() -> None:
    broker, front = reachable("olsock_worker.worker"), reachable("olsock_worker.front")
    assert "olsock_worker.broker" in broker and "olsock_worker.http" in front
    clients = ("http", "replies", "edge", "routes", "calls", "front", "unpack", "registry", "streams", "websocket")
    clients += ("answers", "conversations", "forwarding", "handshakes", "heads", "responses")
    clients += ("uploads", "catalog", "aws", "store", "events")
    assert not broker & {f"olsock_worker.{name}" for name in clients}
    apart = ("olsock_worker.aws.", "olsock_worker.store.", "olsock_worker.events.")
    assert not {each for each in broker if each.startswith(apart)}
    privileged = ("broker", "installs", "unpacks", "zygotes", "forest", "snapshots")
    privileged += ("handmade", "planner", "worker", "state")
    assert not front & {f"olsock_worker.{name}" for name in privileged}
    outside = {each.split(".")[0] for name in broker for each in imports(KNOWN[name].read_text())}
    assert not outside & {"httptools", "h11", "wsproto", "uvloop", "tarfile", "gzip", "zipfile", "yaml", "apsw"}


# What runs inside sandboxes.


@pytest.mark.parametrize("name", sorted(name for name in KNOWN if name.startswith("olsock.runtime")))
def test_the_runtime_is_the_standard_library_and_itself(name: str) -> None:
    own = {"olsock.runtime", "wire", "handler", "measure", "shortcut", "hooks", "rehearse", "reseed", "_fork", "atfork"}
    own.add("olsock_runtime")
    own |= {f"_olsock_{each.rpartition('.')[2]}" for each in KNOWN if each.startswith("olsock.runtime.")}
    for each in imports(KNOWN[name].read_text()):
        top = each.split(".")[0]
        assert top in sys.stdlib_module_names or top in own or each.startswith("olsock.runtime"), each


def test_the_host_side_shares_only_the_protocol() -> None:
    users = {name: found for name, found in GRAPH.items() if not name.startswith("olsock.runtime")}
    shared = {each for found in users.values() for each in found if each.startswith("olsock.runtime")}
    assert shared == {"olsock.runtime.wire"}


# C.

MAY_INCLUDE = {
    "core": {"core"},
    "child": {"core", "child"},
    "spawner": {"core", "child", "spawner"},
    "fork": {"core", "child", "fork"},
}
FOR_CHILDREN = {
    "error.h",
    "cleanup.h",
    "syscalls.h",
    "thread_id.h",
    "api/error.h",
}  # of core: what is safe after a clone


@pytest.mark.parametrize("folder", sorted(MAY_INCLUDE))
def test_c_includes(folder: str) -> None:
    base = ROOT / "csrc"
    sources = list((base / folder).rglob("*.[ch]"))
    assert sources
    for source in sources:
        for name in re.findall(r'^#include "([^"]+)"', source.read_text(), re.MULTILINE):
            target = (source.parent / name).resolve().relative_to(base)
            assert target.parts[0] in MAY_INCLUDE[folder], f"{source.name} includes {target}"
            if folder != "core" and target.parts[0] == "core":
                assert "/".join(target.parts[1:]) in FOR_CHILDREN, f"{source.name} includes {target}"


def test_one_file_knows_python() -> None:
    users = [path.name for path in (ROOT / "csrc").rglob("*.[ch]") if "<Python.h>" in path.read_text()]
    assert users == ["fork_module.c"]
    assert {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()} >= MAY_INCLUDE.keys()
