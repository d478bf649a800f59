"""Plans of zygote trees: what is refused, files, exact versions, and the choice of a node."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from olsock.errors import PlanError
from olsock.trees import Match, Node, Plan, bind, rank
from olsock.trees.formats import dump, parse
from olsock.trees.render import render
from olsock.trees.svg import draw

pytestmark = pytest.mark.unit

NAMES = [f"p{number}" for number in range(8)]
VERSIONS = ["1.0", "2.0", "3.0b1"]
packages = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VERSIONS), max_size=6).map(
    lambda chosen: frozenset(f"{name}=={version}" for name, version in chosen.items())
)
modules = st.lists(st.sampled_from([*NAMES, *(f"{name}.sub" for name in NAMES)]), max_size=4, unique=True).map(tuple)
milliseconds = st.floats(0, 1000, allow_nan=False).map(lambda ms: round(ms, 3))
usage = st.none() | st.dictionaries(st.sampled_from([*NAMES, *(f"{n}.sub" for n in NAMES)]), milliseconds, max_size=8)


@st.composite
def plans(draw: Callable[..., Any]) -> Plan:
    """Trees of up to four levels, in which no path has two versions of a package."""

    def below(above: frozenset[str], depth: int) -> Iterator[Node]:
        for _ in range(draw(st.integers(0, 3 if depth < 4 else 0))):
            taken = {each.split("==")[0] for each in above}
            own = {each for each in draw(packages) if each.split("==")[0] not in taken}
            have = above | own
            note = draw(st.text(max_size=20))
            yield Node(have, draw(modules), tuple(below(have, depth + 1)), draw(milliseconds), draw(st.integers(0, 1 << 30)),
                       draw(milliseconds), draw(milliseconds), note)  # fmt: skip

    root = Node(frozenset(), draw(modules), tuple(below(frozenset(), 1)), draw(milliseconds))
    return Plan(root, draw(st.sampled_from([None, "python3.12", "/usr/bin/python3"])))


@given(st.lists(plans(), max_size=3))
def test_what_is_written_is_read_back(written: list[Plan]) -> None:
    assert parse(dump(written)) == tuple(written)


@given(plans(), packages, usage)
def test_a_function_starts_from_no_package_outside_of_its_closure(
    plan: Plan, closure: frozenset[str], imports: dict[str, float] | None
) -> None:
    found = rank(plan, closure, imports)
    assert all(node.packages <= closure for match in found for node in match.path)
    usable = [path for path in plan.paths() if path[-1].packages <= closure]
    assert sorted(map(id, (match.node for match in found))) == sorted(id(path[-1]) for path in usable), (
        "and none is lost"
    )


@given(plans(), packages, usage)
def test_the_best_node_is_never_worse_than_the_root_nor_than_any_other(
    plan: Plan, closure: frozenset[str], imports: dict[str, float] | None
) -> None:
    found = rank(plan, closure, imports)
    root = next(match for match in found if match.node is plan.root)
    assert found[0].saved_ms >= root.saved_ms
    assert found[0].saved_ms == max(match.saved_ms for match in found)


@given(plans(), packages)
def test_binding_gives_nodes_of_this_closure_only(plan: Plan, closure: frozenset[str]) -> None:
    requires = {package: closure for package in closure if package.startswith("p1")}
    bound, skipped = bind(plan, closure, requires)
    for *above, node in bound.paths():
        assert node.packages <= closure
        assert all(requires.get(package, frozenset()) <= node.packages for package in node.packages)
        assert not above or above[-1].packages <= node.packages
    assert bound.nodes + len(skipped) <= plan.nodes


TREE = Plan(
    Node(
        children=(
            Node(
                frozenset({"numpy==2.2.3"}),
                ("numpy",),
                (Node(frozenset({"numpy==2.2.3", "pandas==2.2.3"}), ("pandas",), ms=200),),
                ms=60,
            ),
            Node(frozenset({"flask==3.0"}), ("flask",), ms=120),
        )
    )
)


def best(closure: set[str], imports: dict[str, float] | None = None, plan: Plan = TREE) -> Match:
    return rank(plan, closure, imports)[0]


def test_what_saves_most_is_chosen() -> None:
    everything = {"numpy==2.2.3", "pandas==2.2.3", "flask==3.0", "six==1.16"}
    assert best(everything).node.imports == ("pandas",)
    assert best(everything, {"flask": 120.0, "numpy": 60.0}).node.imports == ("flask",)
    assert best(everything, {"numpy": 60.0}).node.imports == ("numpy",), "with less in it, as the rest is not wanted"
    assert best(everything, {}).node is TREE.root
    assert best({"numpy==2.2.3", "flask==3.0"}).node.imports == ("flask",)
    assert best({"numpy==1.26.4", "pandas==2.2.3"}).node is TREE.root, "another version is another package"


def test_submodules_count_half_below_a_package_and_whole_if_named() -> None:
    package = frozenset({"sklearn==1.6"})
    deep = Node(package, ("sklearn", "sklearn.svm"))
    plan = Plan(Node(children=(Node(package, ("sklearn",), (deep,)),)))
    assert best(set(package), {"sklearn": 10.0, "sklearn.svm": 40.0}, plan).saved_ms == 50.0
    assert rank(plan, package, {"sklearn.svm": 40.0})[1].saved_ms == 20.0


def test_without_any_figures_the_number_of_modules_decides() -> None:
    plan = Plan(Node(children=(Node(frozenset({"a==1"}), ("a",)), Node(frozenset({"b==1"}), ("b", "c")))))
    assert best({"a==1", "b==1"}, None, plan).node.imports == ("b", "c")


OPENLAMBDA = """{"packages": [], "split_generation": 0, "children": [
  {"packages": ["numpy"], "children": [{"packages": ["pandas"], "children": null}]},
  {"packages": ["Python_DateUtil"], "children": []}, {"packages": ["matplotlib"], "children": []}]}"""


def test_openlambdas_trees_are_read_and_bound_to_versions() -> None:
    (plan,) = parse(OPENLAMBDA)
    assert [sorted(path[-1].packages) for path in plan.paths()] == [
        [], ["numpy"], ["numpy", "pandas"], ["python-dateutil"], ["matplotlib"],
    ]  # fmt: skip
    closure = {"numpy==2.2.3", "pandas==2.2.3", "python-dateutil==2.9.0", "six==1.16"}
    assert best(closure, None, plan).node is plan.root, "a bare name is no package of a closure until it is bound"
    requires = {"pandas==2.2.3": ["numpy==2.2.3", "python-dateutil==2.9.0"], "python-dateutil==2.9.0": ["six==1.16"]}
    tops = {"numpy==2.2.3": ["numpy"], "pandas==2.2.3": ["pandas"], "python-dateutil==2.9.0": ["dateutil"]}
    bound, skipped = bind(plan, closure, requires, tops)
    assert skipped == {"root > matplotlib": "matplotlib is not in the closure"}
    numpy, dateutil = bound.root.children
    assert (numpy.packages, numpy.imports) == ({"numpy==2.2.3"}, ("numpy",))
    assert (numpy.children[0].packages, numpy.children[0].imports) == (closure, ("pandas",))
    assert (dateutil.packages, dateutil.imports) == ({"python-dateutil==2.9.0", "six==1.16"}, ("dateutil",))


def test_a_pinned_node_of_another_version_is_left_out_with_what_is_below() -> None:
    bound, skipped = bind(TREE, {"numpy==1.26.4", "pandas==2.2.3", "flask==3.0"})
    assert [node.imports for node in bound.root.children] == [("flask",)]
    assert skipped == {"root > numpy==2.2.3": "the closure has numpy==1.26.4"}


def test_binding_leaves_a_complete_plan_as_it_is() -> None:
    closure = {"numpy==2.2.3", "pandas==2.2.3", "flask==3.0"}
    assert bind(TREE, closure, {"pandas==2.2.3": ["numpy==2.2.3"]}) == (TREE, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a JSON object"),
        ('{"trees": [], "version": 2}', "version 2: expected 1"),
        ('{"trees": {}, "version": 1}', "trees: expected a list"),
        ('{"trees": [3], "version": 1}', r"trees\[0\]: expected an object"),
        ('{"trees": [{"python": 3, "root": {}}], "version": 1}', "python 3"),
        ('{"packages": ["numpy"]}', "the root has packages"),
        ('{"children": [7]}', r"root.children\[0\]: expected an object"),
        ('{"children": [{"packages": ["../x"]}]}', r"root.children\[0\]: package '../x': expected a name"),
        ('{"children": [{"packages": [{}]}]}', "package"),
        ('{"children": [{"packages": ["a==1"], "children": [{"packages": ["a==2"]}]}]}', "a: in two versions"),
        ('{"imports": ["os; import x"]}', "dotted name"),
        ('{"ms": -1}', "ms=-1"),
        ('{"ms": NaN}', "ms=nan"),
        ('{"bytes": 1.5}', "bytes=1.5"),
        ('{"note": 5}', "note=5"),
        ('{"children": [' * 100 + "]}" * 100, "nodes on one path"),
        ('{"children": [' + ",".join(["{}"] * 10_001) + "]}", "more than 10000 nodes"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse(text)


KEYS = ["packages", "imports", "children", "trees", "version", "root", "python", "ms", "bytes", "note"]
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
)


@given(anything)
def test_any_json_is_a_plan_or_refused(content: Any) -> None:
    try:
        parse(json.dumps(content))
    except PlanError:
        pass


def test_a_child_has_what_its_parent_has() -> None:
    with pytest.raises(PlanError, match="lacks packages of its parent: a==1"):
        Node(frozenset({"a==1"}), children=(Node(frozenset({"b==1"})),))


@given(plans())
def test_pictures_are_xml_and_need_nothing_else(plan: Plan) -> None:
    import xml.etree.ElementTree as ElementTree

    picture = draw([plan])
    root = ElementTree.fromstring(picture)
    names = {each.tag.rpartition("}")[2] for each in root.iter()}
    assert names <= {"svg", "title", "rect", "text", "path", "g"}
    assert not any(
        name in ("href", "src", "style") or name.startswith("on") for each in root.iter() for name in each.attrib
    )
    assert sum(each.tag.endswith("}g") for each in root.iter()) == plan.nodes


def test_names_neither_steer_a_terminal_nor_a_picture() -> None:
    plan = Plan(Node(note="\x1b[2J[bold]<script>&\u202e"))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(render([plan]))
    text = console.export_text()
    assert "\x1b" not in text and "\u202e" not in text and "[bold]<script>&" in text
    assert "<script>" not in draw([plan])


def test_a_drawn_tree_has_the_figures() -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(
            render([Plan(Node(children=(Node(frozenset({"numpy==2.2.3"}), ("numpy",), (), 61.5, 4 << 20, 12, 738),)))])
        )
    assert "numpy==2.2.3  imports numpy  4.0 MiB, 61.5 ms of imports, 12 hits, 738 ms saved" in console.export_text()
