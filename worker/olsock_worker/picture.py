"""The zygote trees of a running worker as plans, to be drawn as `olsock tree show` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from olsock.trees import Node, Plan
from olsock.trees.plan import MAX_NOTE


def plans(zygotes: Sequence[Mapping[str, Any]]) -> tuple[Plan, ...]:
    """Return a plan for each interpreter from the `zygotes` of a `/status` page. Function zygotes are nodes with a note."""
    below: dict[str, list[Mapping[str, Any]]] = {}
    for zygote in zygotes:
        below.setdefault(zygote.get("above", ""), []).append(zygote)
    roots = [each for each in below.get("", ()) if each["kind"] == "node" and each.get("runtime")]
    return tuple(Plan(_node(root, frozenset(), below), root["runtime"].split()[0]) for root in roots)


def _node(
    zygote: Mapping[str, Any], packages: frozenset[str], below: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Node:
    packages |= frozenset(zygote.get("packages", ()))
    state = "" if zygote["state"] == "ready" else zygote["state"]
    of = f"function {zygote['name']}" if zygote.get("name") else ""
    waiting = f"{zygote['blanks']} waiting" if zygote.get("blanks") else ""
    note = ": ".join(filter(None, (of, state, waiting, zygote.get("detail", ""))))
    return Node(
        packages=packages,
        imports=tuple(zygote["imports"]),
        children=tuple(_node(child, packages, below) for child in below.get(zygote["key"], ())),
        ms=zygote.get("build_ms", 0.0),
        size=zygote["memory"],
        hits=float(zygote["hits"]),
        saved_ms=zygote["saved_ms"],
        note=" ".join(note.split())[:MAX_NOTE],
    )
