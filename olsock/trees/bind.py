"""Making a plan exact for one closure: bare names get the closure's versions, packages bring what they need."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from olsock.errors import PlanError
from olsock.trees.plan import Node, Plan, is_exact, package_name

_Needs = Mapping[str, Collection[str]]


def bind(
    plan: Plan, packages: Collection[str], requires: _Needs | None = None, modules: _Needs | None = None
) -> tuple[Plan, dict[str, str]]:
    """Return the part of a plan that functions with this closure may use, and why each node left out cannot be.

    `requires` names what a package needs of the closure; a node gets all of it, since its zygote sees its own packages
    only. `modules` names the top-level modules of a package: what a node imports for which the plan names none, as
    OpenLambda's plans do not.
    """
    skipped: dict[str, str] = {}
    binder = _Binder(frozenset(packages), requires or {}, modules or {}, skipped)
    root = replace(plan.root, children=binder.children(plan.root, plan.root.packages, "root"))
    return replace(plan, root=root), skipped


def complete(packages: Collection[str], requires: _Needs, closure: frozenset[str]) -> frozenset[str]:
    """The packages with all that they need, directly or not, of the closure."""
    found: set[str] = set()
    todo = list(packages)
    while todo:
        package = todo.pop()
        if package not in found:
            found.add(package)
            todo += [each for each in requires.get(package, ()) if each in closure]
    return frozenset(found)


class _Binder:
    def __init__(self, closure: frozenset[str], requires: _Needs, modules: _Needs, skipped: dict[str, str]) -> None:
        self.closure, self.requires, self.modules, self.skipped = closure, requires, modules, skipped
        self.versions = {package_name(package): package for package in closure}

    def children(self, parent: Node, bound: frozenset[str], where: str) -> tuple[Node, ...]:
        found = (self.node(child, parent, bound, where) for child in parent.children)
        return tuple(child for child in found if child is not None)

    def node(self, node: Node, parent: Node, above: frozenset[str], where: str) -> Node | None:
        """`node` as this closure has it below a parent that has become `above`; None if it cannot be."""
        asked = sorted(node.added(parent))
        where = f"{where} > {' '.join(asked) or 'imports'}"
        own = []
        for package in asked:
            exact = self.versions.get(package_name(package))
            if exact is None:
                self.skipped[where] = f"{package_name(package)} is not in the closure"
                return None
            if is_exact(package) and exact != package:
                self.skipped[where] = f"the closure has {exact}"
                return None
            own.append(exact)
        packages = above | complete(own, self.requires, self.closure)
        # Imports of the parent's own packages are not repeated: they are loaded already.
        imports = node.imports or tuple(
            sorted({module for package in own if package not in above for module in self.modules.get(package, ())})
        )
        bare = replace(node, children=(), packages=packages, imports=imports)
        try:
            return replace(bare, children=self.children(node, packages, where))
        except PlanError as e:  # more than a node may have, with all that was added
            self.skipped[where] = str(e)
            return None
