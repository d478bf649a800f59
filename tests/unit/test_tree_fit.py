"""Fitting zygote trees to traces: budgets, versions, what is chosen; and traces, good and bad."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olsock.errors import PlanError
from olsock.trees import Import, Plan, Usage, fit, rank, read_trace
from olsock.trees.fit import NODE_SIZE, ROOT_SIZE
from olsock.trees.plan import conflicts
from olsock.trees.trace import to_line

pytestmark = pytest.mark.unit

MIB = 1 << 20
NAMES = [f"p{number}" for number in range(7)]


@st.composite
def usages(draw: Any) -> Usage:
    chosen = draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["1", "2"]), max_size=5))
    closure = frozenset(f"{name}=={version}" for name, version in chosen.items())
    imports: dict[str, Import] | None = None
    if draw(st.integers(0, 4)):
        imports = {}
        for name, version in sorted(chosen.items()):
            for module in draw(st.sets(st.sampled_from([name, f"{name}.a", f"{name}.b"]))):
                imports[module] = Import(draw(st.floats(0, 500)), draw(st.integers(0, 40 * MIB)), f"{name}=={version}")
    requires = {}
    if closure and draw(st.booleans()):
        first = min(closure)
        requires[first] = frozenset(draw(st.sets(st.sampled_from(sorted(closure)))))
    python = draw(st.sampled_from(["python3.11", "python3.11", "python3.13"]))
    return Usage(draw(st.sampled_from("abcdef")), closure, python, imports, draw(st.floats(0, 1000)), requires)


def known(usage: Usage) -> dict[str, float] | None:
    return None if usage.imports is None else {name: each.ms for name, each in usage.imports.items()}


@given(st.lists(usages(), max_size=12), st.integers(1, 8), st.integers(ROOT_SIZE, 300 * MIB))
@settings(max_examples=200)
def test_budgets_are_held_and_versions_kept_apart(trace: list[Usage], nodes: int, memory: int) -> None:
    plans = fit(trace, nodes, memory)
    assert 1 <= sum(plan.nodes for plan in plans) <= nodes
    assert sum(plan.size for plan in plans) <= memory
    for plan in plans:
        for path in plan.paths():
            assert not conflicts(path[-1].packages)
            assert not set(path[-1].imports) & {module for node in path[:-1] for module in node.imports}, (
                "nothing twice"
            )


@given(st.lists(usages(), max_size=12), st.integers(1, 8))
@settings(max_examples=200)
def test_what_is_fitted_is_of_use_by_the_same_rule(trace: list[Usage], nodes: int) -> None:
    plans = {plan.python: plan for plan in fit(trace, nodes, 1 << 30)}
    for usage in trace:
        if usage.python in plans:
            found = rank(plans[usage.python], usage.packages, known(usage))
            assert found[0].node.packages <= usage.packages
            assert found[0].saved_ms >= found[-1].saved_ms >= 0
    for plan in plans.values():
        for path in plan.paths():
            of_plan = [usage for usage in trace if (usage.python or None) == plan.python]
            assert len(path) == 1 or any(path[-1].packages <= usage.packages for usage in of_plan), (
                "somebody can use it"
            )


@given(st.lists(usages(), max_size=10), st.integers(1, 8), st.randoms())
def test_the_same_trace_gives_the_same_trees(trace: list[Usage], nodes: int, random: Any) -> None:
    plans = fit(trace, nodes, 1 << 30)
    assert fit(trace, nodes, 1 << 30) == plans
    if len({(each.function, each.python, each.packages) for each in trace}) == len(trace):
        shuffled = list(trace)
        random.shuffle(shuffled)
        assert fit(shuffled, nodes, 1 << 30) == plans


@given(st.lists(usages(), max_size=10))
def test_a_trace_is_read_back(trace: list[Usage]) -> None:
    unique = list({(each.function, each.python, each.packages): each for each in trace}.values())
    lines = b"\n".join(to_line(usage) for usage in unique)
    assert read_trace(io.BytesIO(lines)) == tuple(unique)


def make(
    name: str, imports: dict[str, float], *, extra: tuple[str, ...] = (), count: float = 1.0, **more: Any
) -> Usage:
    """A function that imports "package" or "package.module" of packages "package==version", so many ms each."""
    measured = {}
    for module, ms in imports.items():
        package, version = module.split("@")
        measured[package] = Import(ms, MIB, f"{package.split('.')[0]}=={version}")
    closure = {each.package for each in measured.values() if each.package} | set(extra)
    return Usage(name, frozenset(closure), None, measured, count, **more)


def shape(plan: Plan) -> dict[str, Any]:
    def below(node: Any) -> dict[str, Any]:
        return {" ".join(child.imports): below(child) for child in node.children}

    return below(plan.root)


def test_a_package_comes_with_what_it_needs_in_one_node() -> None:
    needs = {"requires": {"pandas==2": frozenset({"numpy==2", "six==1"})}}
    trace = [make("a", {"numpy@2": 60, "pandas@2": 200, "six@1": 1}, **needs), make("b", {"numpy@2": 60}, count=2)]
    (plan,) = fit(trace, 2, 1 << 30)
    assert shape(plan) == {"numpy pandas": {}} or shape(plan) == {"numpy pandas six": {}}
    assert plan.root.children[0].packages == {"numpy==2", "pandas==2", "six==1"}
    (plan,) = fit(trace, 3, 1 << 30)
    assert sorted(rank(plan, {"numpy==2"}, {"numpy": 60.0})[0].node.imports) == ["numpy"]


def test_versions_get_nodes_of_their_own() -> None:
    (plan,) = fit([make("a", {"numpy@1": 60}), make("b", {"numpy@2": 60})], 10, 1 << 30)
    assert [sorted(node.packages) for node in plan.root.children] == [["numpy==1"], ["numpy==2"]]
    assert [(node.hits, node.saved_ms) for node in plan.root.children] == [(1.0, 60.0), (1.0, 60.0)]


def test_time_counts_and_calls_do() -> None:
    slow, often = make("slow", {"slow@1": 500}), make("often", {"often@1": 2}, count=100)
    assert shape(fit([slow, often], 2, 1 << 30)[0]) == {"slow": {}}
    assert shape(fit([slow, make("often", {"often@1": 6}, count=100)], 2, 1 << 30)[0]) == {"often": {}}


def test_memory_is_left_to_what_saves_more_for_it() -> None:
    large = Usage("large", frozenset({"large==1"}), None, {"large": Import(100, 500 * MIB, "large==1")})
    small = [make(f"small{number}", {f"s{number}@1": 80}) for number in range(4)]
    (plan,) = fit([large, *small], 10, ROOT_SIZE + 4 * (NODE_SIZE + MIB))
    assert len(plan.root.children) == 4 and all("large" not in node.imports for node in plan.root.children)


def test_different_modules_of_one_package_get_nodes_of_their_own() -> None:
    trace = [make(f"f{number}", {"sk@1": 30, f"sk.m{number}@1": 100}) for number in range(5)]
    (plan,) = fit(trace, 20, 1 << 30)
    for usage in trace:
        assert rank(plan, usage.packages, known(usage))[0].saved_ms == 130.0


def test_without_requirements_what_all_have_is_needed() -> None:
    trace = [make("a", {"top@1": 50}, extra=("dep==1", "x==1")), make("b", {"top@1": 50}, extra=("dep==1", "y==1"))]
    (plan,) = fit(trace, 10, 1 << 30)
    assert plan.root.children[0].packages == {"top==1", "dep==1"}


def test_unknown_imports_are_taken_from_others() -> None:
    (plan,) = fit([make("a", {"numpy@2": 60}), Usage("b", frozenset({"numpy==2"}), count=4)], 3, 1 << 30)
    assert plan.root.children[0].hits == 5


def test_interpreters_have_trees_of_their_own() -> None:
    trace = [
        Usage(python, frozenset({"a==1"}), python, {"a": Import(9, 0, "a==1")})
        for python in ("python3.11", "python3.9")
    ]
    plans = fit(trace, 4, 1 << 30)
    assert [(plan.python, plan.nodes) for plan in plans] == [("python3.11", 2), ("python3.9", 2)]
    assert len(fit(trace, 1, 1 << 30)) == 1


def test_an_empty_trace_gives_a_root() -> None:
    assert [plan.nodes for plan in fit([], 40, 1 << 30)] == [1]


@pytest.mark.parametrize(("nodes", "memory"), [(0, 1 << 30), (10_001, 1 << 30), (5, ROOT_SIZE - 1)])
def test_no_room_for_a_root(nodes: int, memory: int) -> None:
    with pytest.raises(PlanError, match="expected"):
        fit([], nodes, memory)


def test_invocations_are_added_up() -> None:
    line = {"function": "f", "packages": ["NumPy==2.0"], "imports": {"numpy": {"ms": 50, "package": "numpy==2.0"}}}
    slower = json.loads(json.dumps(line).replace("50", "70")) | {"time": 1.5, "count": 3}
    (usage,) = read_trace(io.BytesIO(f"{json.dumps(line)}\n\n{json.dumps(slower)}\n".encode()))
    assert usage.packages == {"numpy==2.0"} and usage.count == 4
    assert usage.imports == {"numpy": Import(60.0, 0, "numpy==2.0")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "t:2: Input data was truncated"),
        ("\x00", "t:2: "),
        ("[" * 5000, "t:2: "),
        ("3", "t:2: Expected `object`"),
        ('{"packages": []}', "t:2: Object missing required field `function`"),
        ('{"function": "f", "packages": ["numpy"]}', "t:2: package 'numpy': expected name==version"),
        ('{"function": "f", "packages": ["a==1", "A==2"]}', "t:2: packages: a in two versions"),
        ('{"function": "f", "packages": [], "count": -1}', "t:2: count -1.0"),
        ('{"function": "f", "packages": [], "count": 1e300}', "t:2: count"),
        ('{"function": "f", "packages": [], "imports": {"a b": {"ms": 1}}}', "t:2: module 'a b'"),
        ('{"function": "f", "packages": [], "imports": {"a": {"ms": -1}}}', "t:2: module 'a': ms"),
        ('{"function": "f", "packages": [], "imports": {"a": {"ms": 1, "bytes": -1}}}', "t:2: module 'a': bytes"),
        (
            '{"function": "f", "packages": [], "imports": {"a": {"ms": 1, "package": "a==1"}}}',
            "not among the function's",
        ),
        ('{"function": "f", "packages": [], "imports": 3}', r"t:2: Expected `object \| null`"),
        (" " * (1 << 20), "t:2: longer than"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: str, message: str) -> None:
    good = b'{"function": "f", "packages": []}\n'
    with pytest.raises(PlanError, match=message):
        read_trace(io.BytesIO(good + line.encode() + b"\n"), "t")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_trace_or_refused(data: bytes) -> None:
    try:
        read_trace(io.BytesIO(data))
    except PlanError:
        pass
