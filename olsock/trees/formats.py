"""Plans as files: our JSON, of which OpenLambda's `{"packages": [...], "children": [...]}` is a part.

    {"version": 1, "trees": [{"python": "python3.12", "root": {"children": [
      {"packages": ["numpy==2.2.3"], "imports": ["numpy"], "ms": 61.5, "bytes": 4100000, "children": []}]}}]}

In files a node names the packages that it adds to its parent's. A file that is a node itself, without "trees", is one
tree for any interpreter. Unknown keys are passed over (OpenLambda's nodes have some).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from olsock.errors import PlanError
from olsock.trees.plan import MAX_DEPTH, MAX_NODES, MAX_NOTE, Node, Plan, parse_package, shown

VERSION = 1
MAX_FILE = 16 << 20
MAX_TREES = 64


def load(path: str | os.PathLike[str]) -> tuple[Plan, ...]:
    """Read a file of plans. `PlanError` names the file, the place in it and what is accepted; `OSError` if unreadable."""
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    try:
        return parse(data)
    except PlanError as e:
        raise PlanError(f"{os.fspath(path)}: {e}") from None


def parse(data: bytes | str) -> tuple[Plan, ...]:
    """Return the plans in a JSON text, either way of writing them."""
    if len(data) > MAX_FILE:
        raise PlanError(f"a plan of more than {MAX_FILE} bytes")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise PlanError(f"not JSON: {e}") from None
    if not isinstance(content, dict):
        raise PlanError("expected a JSON object")
    if "trees" not in content:
        return (Plan(_node(content, "root"), None),)
    if content.get("version") != VERSION:
        raise PlanError(f"version {shown(content.get('version'))}: expected {VERSION}")
    trees = _list(content, "trees", "")
    if len(trees) > MAX_TREES:
        raise PlanError(f"{len(trees)} trees: expected at most {MAX_TREES}")
    return tuple(_plan(tree, f"trees[{number}]") for number, tree in enumerate(trees))


def dump(plans: Sequence[Plan]) -> str:
    """The JSON text of plans, which `parse` reads back as the same ones."""
    trees = [{"python": plan.python, "root": _written(plan.root, None)} for plan in plans]
    return json.dumps({"version": VERSION, "trees": trees}, indent=1)


def _plan(tree: Any, where: str) -> Plan:
    if not isinstance(tree, dict):
        raise PlanError(f"{where}: expected an object")
    python = tree.get("python")
    if python is not None and not isinstance(python, str):
        raise PlanError(f"{where}.python {shown(python)}: expected the name of an interpreter, or null")
    root = tree.get("root")
    try:
        return Plan(_node(root, "root"), python)
    except PlanError as e:
        raise PlanError(f"{where}.{e}") from None


def _node(root: Any, where: str) -> Node:
    left = [MAX_NODES]

    def build(content: Any, above: frozenset[str], where: str, depth: int) -> Node:
        left[0] -= 1
        if left[0] < 0:
            raise PlanError(f"{where}: more than {MAX_NODES} nodes")
        if depth > MAX_DEPTH:
            raise PlanError(f"{where}: more than {MAX_DEPTH} nodes on one path")
        if not isinstance(content, dict):
            raise PlanError(f"{where}: expected an object")
        listed, imports, children = (_list(content, key, where) for key in ("packages", "imports", "children"))
        try:
            packages = above | {parse_package(each) for each in listed}
            # Checked before its children are read, so that messages name the first place that is wrong.
            alone = Node(packages, tuple(imports), (), *_figures(content))
        except PlanError as e:
            raise PlanError(f"{where}: {e}") from None
        below = (build(child, packages, f"{where}.children[{n}]", depth + 1) for n, child in enumerate(children))
        return Node(packages, alone.imports, tuple(below), alone.ms, alone.size, alone.hits, alone.saved_ms, alone.note)

    return build(root, frozenset(), where, 1)


def _list(content: dict[str, Any], key: str, where: str) -> list[Any]:
    value = content.get(key)
    if value is None:
        return []  # Go writes null for an empty list
    if not isinstance(value, list):
        raise PlanError(f"{where}{'.' if where else ''}{key}: expected a list")
    return value


def _figures(content: dict[str, Any]) -> tuple[Any, Any, Any, Any, str]:
    size, note = content.get("bytes", 0), content.get("note", "")
    if isinstance(size, bool) or not isinstance(size, int):
        raise PlanError(f"bytes={shown(size)}: expected a whole number")
    if not isinstance(note, str):
        raise PlanError(f"note={shown(note)}: expected a text")
    return content.get("ms", 0.0), size, content.get("hits", 0.0), content.get("saved_ms", 0.0), note[:MAX_NOTE]


def _written(node: Node, parent: Node | None) -> dict[str, Any]:
    content: dict[str, Any] = {"packages": sorted(node.added(parent)), "imports": list(node.imports)}
    figures = {
        "ms": node.ms,
        "bytes": node.size,
        "hits": node.hits,
        "saved_ms": node.saved_ms,
        "note": node.note,
    }
    content |= {key: value for key, value in figures.items() if value}
    content["children"] = [_written(child, node) for child in node.children]
    return content
