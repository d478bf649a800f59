"""Trees for a terminal: a line for each node, with memory, hits and milliseconds saved."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from olsock.trees.plan import Node, Plan

NAMES = 4  # packages or modules that a line names; of the rest it says how many
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def render(plans: Sequence[Plan]) -> RenderableType:
    """All trees, one below the other."""
    return Group(*(_tree(plan) for plan in plans)) if plans else Text("no trees")


def _tree(plan: Plan) -> Tree:
    nodes, size = plan.nodes, plan.size
    title = Text.assemble(
        (plain(plan.python or "any python"), "bold"), f"  {nodes} node{'s' if nodes != 1 else ''}, {mib(size)}"
    )
    top = Tree(title, guide_style="dim")
    _add(top, plan.root, None)
    return top


def _add(tree: Tree, node: Node, parent: Node | None) -> None:
    branch = tree.add(_line(node, parent))
    for child in node.children:
        _add(branch, child, node)


def _line(node: Node, parent: Node | None) -> Text:
    line = Text(label(node, parent), style="cyan" if parent else "bold cyan")
    imports = few(node.imports)
    if imports:
        line.append(f"  imports {imports}", style="default")
    if figures := ", ".join(numbers(node)):
        line.append(f"  {figures}", style="green")
    if node.note:
        line.append(f"  {plain(node.note)}", style="yellow")
    return line


def label(node: Node, parent: Node | None) -> str:
    """What a node adds to its parent, in a few words."""
    if parent is None:
        return "root"
    return few(sorted(node.added(parent))) or "more of the same"


def numbers(node: Node) -> list[str]:
    """The figures of a node that are known."""
    found = []
    if node.size:
        found.append(mib(node.size))
    if node.ms:
        found.append(f"{node.ms:,.1f} ms of imports")
    if node.hits:
        found.append(f"{node.hits:,.0f} hits")
    if node.saved_ms:
        found.append(f"{node.saved_ms:,.0f} ms saved")
    return found


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" +{len(names) - NAMES}" if len(names) > NAMES else ""
    return " ".join(plain(name) for name in names[:NAMES]) + more


def mib(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / (1 << 20):,.1f} MiB"


def plain(text: str) -> str:
    """The text without what would steer a terminal or turn the direction of writing."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
