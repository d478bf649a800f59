"""Live zygote trees over small packages from the real store: who starts where, what is never shared, and what fails."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import olsock
from olsock import host
from olsock.errors import SpecError
from olsock.nursery import NodeStats, ZygoteTree
from olsock.nursery.slots import Slot
from olsock.trees import Node, Plan, fit, rank
from olsock.trees.formats import parse
from olsock.trees.learner import Learner
from support.eventually import eventually
from support.wheels import wheel

pytestmark = pytest.mark.system

MIB = 1 << 20

# A package that keeps a file of its own mapped, as extension modules are.
MAPPED = """
import mmap, os
with open(os.path.join(os.path.dirname(__file__), "data")) as file:
    MAP = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
VERSION = {version!r}
WORK = sum(range(200_000))  # some milliseconds
"""
PACKAGES: dict[tuple[str, str], tuple[str, list[str]]] = {
    ("base", "1.0"): (MAPPED.format(version="1.0"), []),
    ("base", "2.0"): (MAPPED.format(version="2.0"), []),
    ("top", "1.0"): (MAPPED.format(version="1.0") + "import base\nBASE = base.VERSION", ["base"]),
    ("other", "1.0"): (MAPPED.format(version="1.0"), []),
    ("third", "1.0"): (MAPPED.format(version="1.0"), []),
    ("threads", "1.0"): (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(999,), daemon=True).start()",
        [],
    ),
    ("aborts", "1.0"): ("import os, sys\nif 'other' not in sys.modules: os.abort()", []),
    ("raises", "1.0"): ("raise RuntimeError('not today')", []),
    ("sleeps", "1.0"): ("import time\ntime.sleep(3)", []),
    ("asks", "1.0"): (
        "try:\n    import third\nexcept ImportError:\n    third = None\nVERSION = third and 'with third'",
        ["third; extra == 'more'"],
    ),
    ("bulky", "1.0"): (f"DATA = bytearray(os.urandom(1)) * {40 * MIB}".replace("os.", "__import__('os').", 1), []),
    ("bulkier", "1.0"): (f"DATA = bytearray(b'x') * {40 * MIB}", []),
}

LOOK = """
    import sys
    def f(event):
        for name in event or []:
            __import__(name)
        found = {}
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None) or ""
            if path.startswith("/var/packages"):
                found[name] = [path, getattr(module, "VERSION", None)]
        return found
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[olsock.PackageStore]:
    folder = tmp_path_factory.mktemp("store")
    for (name, version), (source, requires) in PACKAGES.items():
        files = {f"{name}/__init__.py": source, f"{name}/data": os.urandom(5000)}
        wheel(folder / "wheels", name, version, files, requires=requires)
    environment = {"UV_FIND_LINKS": str(folder / "wheels"), "UV_NO_INDEX": "1"}
    with olsock.PackageStore(folder / "packages", network="none", environment=environment) as store:
        store.install(store.resolve(["other"])).close()  # opens what it keeps open
        yield store


@pytest.fixture(scope="module")
def locks(store: olsock.PackageStore) -> Callable[..., olsock.Lock]:
    known: dict[tuple[str, ...], olsock.Lock] = {}

    def lock(*requirements: str) -> olsock.Lock:
        if requirements not in known:
            known[requirements] = store.resolve(requirements)
            store.install(known[requirements]).close()  # so that no test waits for an installation
        return known[requirements]

    return lock


@pytest.fixture
def closure(store: olsock.PackageStore, locks: Any) -> Iterator[Callable[..., olsock.Closure]]:
    opened: list[olsock.Closure] = []

    def make(*requirements: str) -> olsock.Closure:
        opened.append(store.install(locks(*requirements)))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def plant(store: olsock.PackageStore) -> Iterator[Callable[..., ZygoteTree]]:
    trees: list[ZygoteTree] = []

    def make(plan: Plan | None = None, **options: Any) -> ZygoteTree:
        options.setdefault("spare", 0)
        trees.append(ZygoteTree(store, plan=plan, **options))
        assert trees[-1].wait_ready(timeout=30)
        return trees[-1]

    yield make
    for each in trees:
        each.close()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "f.py").write_text(dedent(LOOK))
    return tmp_path / "code"


def node(*packages: str, imports: str = "", children: tuple[Node, ...] = (), ms: float = 10.0, size: int = MIB) -> Node:
    return Node(frozenset(packages), tuple(imports.split()), children, ms, size)


BASE = node("base==1.0", imports="base", children=(node("base==1.0", "top==1.0", imports="top"),))
TREE = Plan(Node(children=(BASE, node("base==2.0", imports="base"), node("other==1.0", imports="other", ms=5))))


def where(tree: ZygoteTree, function: olsock.Function) -> tuple[str, ...] | None:
    """The packages of the node that a function was forked from; None for a fresh interpreter."""
    found = [each for each in tree.stats().nodes if each.key == function.forked_from]
    return found[0].packages if found else None


def stats(tree: ZygoteTree, *packages: str) -> NodeStats:
    (found,) = [each for each in tree.stats().nodes if set(each.packages) == set(packages)]
    return found


def begin(tree: ZygoteTree, closure: olsock.Closure, **options: Any) -> None:
    """Have the best node for a closure built, and wait for what comes of it."""
    tree.warm(closure, **options)
    assert tree.wait_idle(60)


def inodes(directory: str) -> set[tuple[int, int]]:
    found = set()
    for path, _, files in os.walk(directory):
        found |= {(info.st_dev, info.st_ino) for info in (os.stat(os.path.join(path, name)) for name in files)}
    return found


def mapped(pid: int) -> set[int]:
    """The inodes of all files that a process has mapped."""
    with open(f"/proc/{pid}/maps") as file:
        return {int(line.split()[4]) for line in file} - {0}


# -- where functions start --------------------------------------------------------------------------------------------


def test_a_function_starts_from_the_root_first_and_then_from_its_node(plant, closure, code):
    tree, own = plant(TREE), closure("top", "base==1.0")
    with tree.fork(code, closure=own) as fn:
        assert fn.forked_from == "root" and fn.invoke() == {}
        assert set(fn.invoke(["top"])) == {"top", "base"}, "its packages are there all the same"
    assert tree.wait_idle(30)
    with tree.fork(code, closure=own) as fn:
        assert where(tree, fn) == ("base==1.0", "top==1.0")
        assert {name: version for name, (_, version) in fn.invoke().items()} == {"base": "1.0", "top": "1.0"}
    node = stats(tree, "base==1.0", "top==1.0")
    assert (node.state, node.hits, node.misses, node.saved_ms) == ("ready", 1, 1, 20.0)
    assert node.memory > 0 and node.pid and tree.stats().memory >= node.memory


def test_versions_run_side_by_side_from_nodes_of_their_own(plant, closure, code):
    tree = plant(TREE)
    for version in ("1.0", "2.0"):
        own = closure(f"base=={version}")
        begin(tree, own)
        with tree.fork(code, closure=own) as fn:
            assert where(tree, fn) == (f"base=={version}",)
            assert fn.invoke()["base"][1] == version


def test_what_a_function_imports_decides(plant, closure, code):
    tree, own = plant(TREE), closure("base==1.0", "other")
    for imports, expected in (({"other": 90.0}, ("other==1.0",)), ({"base": 90.0}, ("base==1.0",)), ({}, ())):
        begin(tree, own, imports=imports)
        with tree.fork(code, closure=own, imports=imports) as fn:
            assert where(tree, fn) == expected


def test_openlambdas_bare_names_get_the_versions_of_each_closure(plant, closure, code):
    (plan,) = parse('{"packages": [], "children": [{"packages": ["top"], "children": []}, {"packages": ["numpy"]}]}')
    tree = plant(plan)
    for version in ("1.0", "2.0"):
        own = closure("top", f"base=={version}")
        begin(tree, own)
        with tree.fork(code, closure=own) as fn:
            assert where(tree, fn) == (f"base=={version}", "top==1.0"), "with what it needs"
            assert fn.invoke()["top"] and fn.invoke()["base"][1] == version
    assert tree.stats().skipped[own.key] == {"root > numpy": "numpy is not in the closure"}


def test_a_package_finds_the_optional_one_that_its_function_has(plant, closure, code):
    """Else the function would be without it, because of what another has in its closure."""
    tree = plant(Plan(Node(children=(node("asks==1.0", imports="asks"),))))
    for wanted, found in ((("asks",), None), (("asks", "third"), "with third")):
        own = closure(*wanted)
        begin(tree, own)
        with tree.fork(code, closure=own) as fn:
            assert where(tree, fn) == tuple(sorted(own.packages)) and fn.invoke()["asks"][1] == found


def test_without_a_closure_there_is_the_root(plant, code):
    with plant(TREE).fork(code) as fn:
        assert fn.forked_from == "root" and fn.invoke() == {}


def test_the_same_version_from_another_file_is_another_package(plant, closure, code, tmp_path):
    """name==version is not enough: what was locked by other hashes may be other code."""
    tree, own = plant(TREE), closure("other")
    begin(tree, own)
    wheel(tmp_path / "wheels", "other", "1.0", {"other/__init__.py": "VERSION = 'forged'"})
    environment = {"UV_FIND_LINKS": str(tmp_path / "wheels"), "UV_NO_INDEX": "1"}
    with olsock.PackageStore(tmp_path / "packages", network="none", environment=environment) as store:
        with store.install(store.resolve(["other"])) as forged, tree.fork(code, closure=forged) as fn:
            assert forged.packages == own.packages and fn.forked_from == "root"
            assert fn.invoke(["other"])["other"][1] == "forged"


def test_many_threads_start_functions_at_once(plant, closure, code):
    tree = plant(TREE, spare=2)
    closures = [closure("top", "base==1.0"), closure("base==2.0"), closure("other")]

    def start(number: int) -> bool:
        own = closures[number % 3]
        with tree.fork(code, closure=own) as fn:
            return {own.owners()[name] for name in fn.invoke()} <= own.packages

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(start, range(60)))
    assert sum(each.hits for each in tree.stats().nodes) + tree.stats().cold_starts == 60


def test_no_more_zygotes_than_there_may_be(plant, closure, code):
    tree = plant(TREE, cells=1)
    for own in (closure("base==2.0"), closure("other")):
        begin(tree, own)
    assert stats(tree, "base==2.0").state == "ready"
    assert "as many zygotes as there may be" in stats(tree, "other==1.0").reason
    with tree.fork(code, closure=closure("other")) as fn:
        assert fn.forked_from == "root"


# -- the subset rule --------------------------------------------------------------------------------------------------

SETS = st.sets(st.sampled_from(["base==1.0", "base==2.0", "top", "other", "third"])).filter(
    lambda chosen: not {"base==1.0", "base==2.0"} <= chosen
)


@pytest.mark.attack
def test_no_code_is_exposed_to_a_package_outside_of_its_closure(plant, closure, code):
    """In `sys.modules`, and in what is mapped: looked at from outside, by inode, as the store links files."""
    third = node("base==1.0", "top==1.0", "third==1.0", imports="third")
    deep = node(
        "base==1.0", imports="base", children=(node("base==1.0", "top==1.0", imports="top", children=(third,)),)
    )
    tree = plant(Plan(Node(children=(deep, *TREE.root.children[1:], node("third==1.0", imports="third")))))
    everything = closure("base==1.0", "top", "other", "third"), closure("base==2.0", "other")
    all_files = {inode for each in everything for _, inode in inodes(each.directory)}
    seen: set[tuple[str, ...] | None] = set()

    @given(SETS)
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def look(wanted: set[str]) -> None:
        own = closure(*sorted(wanted))
        begin(tree, own)
        with tree.fork(code, closure=own) as fn:
            seen.add(where(tree, fn))
            loaded = fn.invoke()
            assert {own.owners()[name.partition(".")[0]] for name in loaded} <= own.packages
            for path, _ in loaded.values():
                assert os.path.exists(path.replace("/var/packages/0", own.directory, 1))
            maps = mapped(fn.pid) & all_files
            assert maps <= {inode for _, inode in inodes(own.directory)}
            assert len(maps) == len(loaded), "the control: what is loaded is mapped"

    look()
    assert len(seen) >= 4, "the nodes were used"


@pytest.mark.attack
def test_a_node_sees_its_own_packages_only(plant, closure):
    tree, own = plant(TREE), closure("top", "base==1.0", "other")
    begin(tree, own, imports={"base": 50.0})
    pid = stats(tree, "base==1.0").pid
    assert sorted(name for name in os.listdir(f"/proc/{pid}/root/var/packages/0") if "-" not in name) == ["base"]


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "state", "reason"),
    [
        ("threads", "bad", "started 1 thread"),
        ("raises", "bad", "RuntimeError: not today"),
        ("aborts", "bad", "interpreter ended during imports"),
    ],
)
def test_a_bad_node_is_told_of_and_its_functions_run_from_its_parent(plant, closure, code, package, state, reason):
    bad = node("base==1.0", f"{package}==1.0", imports=package)
    tree = plant(Plan(Node(children=(node("base==1.0", imports="base", children=(bad,)),))))
    own = closure("base==1.0", package)
    begin(tree, own)
    found = stats(tree, "base==1.0", f"{package}==1.0")
    assert found.state == state and reason in found.reason
    with tree.fork(code, closure=own) as fn:
        assert where(tree, fn) == ("base==1.0",) and set(fn.invoke()) == {"base"}
    assert package in tree.snapshot().root.children[0].children[0].note or found.state in (
        tree.snapshot().root.children[0].children[0].note
    )


def test_what_can_be_imported_of_a_node_is(plant, closure, code):
    tree = plant(Plan(Node(children=(node("raises==1.0", "other==1.0", imports="raises other"),))))
    own = closure("raises", "other")
    begin(tree, own)
    found = stats(tree, "other==1.0", "raises==1.0")
    assert found.state == "ready" and "raises left out: RuntimeError: not today" in found.reason
    with tree.fork(code, closure=own) as fn:
        assert where(tree, fn) == found.packages and set(fn.invoke()) == {"other"}


def test_below_a_bad_node_the_others_are_built_from_what_is_above_it(plant, closure, code):
    below = node("aborts==1.0", "other==1.0", imports="other")
    tree = plant(Plan(Node(children=(node("aborts==1.0", imports="aborts", children=(below,)),))))
    own = closure("aborts", "other")
    begin(tree, own)
    with tree.fork(code, closure=own) as fn:
        assert where(tree, fn) == ("aborts==1.0", "other==1.0") and set(fn.invoke()) == {"other"}


def test_a_request_never_waits_for_a_node_that_is_built(plant, closure, code):
    slow = node("base==1.0", "sleeps==1.0", imports="sleeps", ms=3000)
    tree = plant(Plan(Node(children=(node("base==1.0", imports="base", children=(slow,)),))))
    own = closure("base==1.0", "sleeps")
    tree.warm(own)
    assert eventually(lambda: [each.state for each in tree.stats().nodes] == ["ready", "ready", "building"])
    started = 0
    while stats(tree, "base==1.0", "sleeps==1.0").state == "building":
        with tree.fork(code, closure=own) as fn:
            assert set(fn.invoke()) == {"base"} or where(tree, fn) != ("base==1.0",)
            started += 1
    assert started > 20, "many, in the three seconds that the import sleeps"
    assert tree.wait_idle(30)
    with tree.fork(code, closure=own) as fn:
        assert set(fn.invoke()) == {"base", "sleeps"}


def test_before_the_root_is_ready_a_fresh_interpreter_starts(store, closure, code):
    own = closure("base==1.0")
    with ZygoteTree(store, plan=TREE, spare=0) as tree, tree.fork(code, closure=own) as fn:
        assert fn.forked_from is None and fn.invoke(["base"])["base"][1] == "1.0"
        assert tree.stats().cold_starts == 1


@pytest.mark.fault
def test_a_dead_zygote_is_built_again_and_its_functions_live_on(plant, closure, code):
    tree, own = plant(TREE), closure("base==1.0")
    begin(tree, own)
    with tree.fork(code, closure=own) as fn:
        pid = stats(tree, "base==1.0").pid
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: stats(tree, "base==1.0").pid not in (None, pid))
        assert set(fn.invoke()) == {"base"}
        assert tree.stats().retired == 1
    assert eventually(lambda: tree.stats().retired == 0), "with its last function"
    with tree.fork(code, closure=own) as fn:
        assert where(tree, fn) == ("base==1.0",)


@pytest.mark.fault
def test_a_dead_root_takes_nothing_with_it(plant, closure, code):
    tree, own = plant(TREE), closure("base==1.0")
    begin(tree, own)
    with tree.fork(code, closure=own) as fn:
        root = stats(tree).pid
        os.kill(root, signal.SIGKILL)
        assert eventually(lambda: stats(tree).pid not in (None, root))
        assert set(fn.invoke()) == {"base"}
    with tree.fork(code, closure=own) as fn:
        assert where(tree, fn) == ("base==1.0",), "which lives on, below a root that does not"
    with tree.fork(code, closure=closure("other")) as fn:
        assert fn.forked_from == "root" and tree.wait_idle(30)


def test_what_keeps_dying_is_given_up_and_the_root_never():
    slot = Slot("x", Node(), None, None)
    waits = []
    for _ in range(6):
        slot.failed("it died", root=False)
        waits.append(slot.not_before - time.monotonic())
    assert slot.state == "given up" and slot.reason == "given up after 6 failures in a row; the last: it died"
    assert all(later > 1.5 * earlier for earlier, later in pairwise(waits))
    for _ in range(50):
        slot.failed("it died", root=True)
    assert slot.state == "cold" and 50 < slot.not_before - time.monotonic() <= 60


@pytest.mark.fault
def test_zygotes_killed_while_the_tree_grows(plant, closure, code):
    """A hundred times, at any moment: functions start all the while, and afterwards nothing is left behind."""
    tree = plant(TREE, builders=2)
    closures = [closure("top", "base==1.0"), closure("base==2.0"), closure("other"), closure("base==1.0", "other")]
    kills, done = [0], threading.Event()

    def kill() -> None:
        end = time.monotonic() + 60
        while kills[0] < 100 and time.monotonic() < end:
            # The root only now and then: it is built again after pauses that grow, and all others after it.
            root = stats(tree)
            for pid in zygotes() - ({root.pid} - {None} if kills[0] not in (30, 60) else set()):
                if root.state == "ready":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        kills[0] += 1
                        break
            time.sleep(0.01)
        done.set()

    killer = threading.Thread(target=kill)
    killer.start()
    starts = 0
    while not done.is_set():
        own = closures[starts % len(closures)]
        # A plan without a node forgives its failures, so that there is always something to grow and to kill.
        if starts % 20 == 19:
            tree.replace(Plan(Node()))
            tree.replace(TREE)
        starts += 1
        with tree.fork(code, closure=own) as fn:
            assert {own.owners()[name] for name in fn.invoke()} <= own.packages
    killer.join()
    assert kills[0] == 100 and starts > 100
    tree.replace(Plan(Node()))
    tree.replace(TREE)

    def best() -> bool:
        with tree.fork(code, closure=closures[1]) as fn:
            return where(tree, fn) == ("base==2.0",)

    assert eventually(best, timeout=90)


def zygotes() -> set[int]:
    """The zygotes of this process, those that are being built too: what is in cgroups of that name, on version 2."""
    found: set[int] = set()
    for path, _, _ in os.walk(host.current().tree.paths[0]):
        if path.endswith("/zygote"):
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in Path(path, "cgroup.procs").read_text().split()}
    return found


# -- plans, memory ----------------------------------------------------------------------------------------------------


def test_replanning_keeps_what_is_in_both_plans(plant, closure, code):
    tree, base, other = plant(TREE), closure("base==1.0"), closure("other")
    begin(tree, base)
    begin(tree, other)
    kept, pid = stats(tree, "base==1.0").pid, stats(tree, "other==1.0").pid
    with tree.fork(code, closure=other) as fn:
        tree.replace(Plan(Node(children=(node("base==1.0", imports="base"), node("third==1.0", imports="third")))))
        assert stats(tree, "base==1.0").pid == kept
        assert not [each for each in tree.stats().nodes if "other==1.0" in each.packages]
        assert fn.invoke() and tree.stats().retired == 1, "until its last handler is gone"
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}") and not tree.stats().retired)
    with pytest.raises(SpecError, match="a root that imports"):
        tree.replace(Plan(Node(imports=("json",))))


def test_a_new_plan_can_be_built_ahead(plant, closure, code):
    tree, own = plant(None, ahead=True), closure("base==1.0")
    tree.fork(code, closure=own).close()
    tree.replace(TREE)
    assert tree.wait_idle(30)
    with tree.fork(code, closure=own) as fn:
        assert where(tree, fn) == ("base==1.0",)


def test_only_leaves_are_evicted(plant, closure, code):
    tree, own = plant(TREE), closure("top", "base==1.0")
    begin(tree, own)
    leaf, parent = stats(tree, "base==1.0", "top==1.0"), stats(tree, "base==1.0")
    assert (leaf.leaf, parent.leaf, stats(tree).leaf) == (True, False, False)
    for key in (parent.key, "root", "nonsense"):
        with pytest.raises(SpecError, match="the key of a leaf"):
            tree.evict(key)
    with tree.fork(code, closure=own) as fn:
        assert tree.evict(leaf.key) == leaf.memory
        assert fn.invoke() and os.path.exists(f"/proc/{leaf.pid}")
    assert eventually(lambda: not os.path.exists(f"/proc/{leaf.pid}"))
    assert eventually(lambda: stats(tree, "base==1.0").leaf)
    assert tree.evict(parent.key) == parent.memory


def test_memory_is_held_by_evicting_what_is_worth_least(plant, closure, code):
    bulky = tuple(node(f"{name}==1.0", imports=name, size=40 * MIB) for name in ("bulky", "bulkier"))
    tree = plant(Plan(Node(children=bulky)), memory="72M")
    first, second = closure("bulky"), closure("bulkier")
    begin(tree, first)
    for _ in range(5):
        tree.fork(code, closure=first).close()
    tree.fork(code, closure=second).close()
    assert eventually(lambda: "no memory" in stats(tree, "bulkier==1.0").reason), "it is worth less than what is there"
    assert stats(tree, "bulky==1.0").state == "ready" and tree.stats().memory <= 72 * MIB


def test_what_is_larger_than_planned_makes_others_go(plant, closure, code):
    bulky = tuple(node(f"{name}==1.0", imports=name, size=0) for name in ("bulky", "bulkier"))
    tree = plant(Plan(Node(children=bulky)), memory="72M")
    for own in (closure("bulky"), closure("bulkier")):
        for _ in range(3):
            tree.fork(code, closure=own).close()
            assert tree.wait_idle(30), tree.stats()
    assert tree.stats().memory <= 72 * MIB
    assert sorted(each.state for each in tree.stats().nodes) == ["cold", "ready", "ready"]


# -- learning ---------------------------------------------------------------------------------------------------------


def test_what_is_learnt_from_starts_makes_the_tree(plant, closure, code, tmp_path):
    tree, learner, own = plant(None), Learner(), closure("top", "base==1.0", "other")
    folder = tmp_path / "learnt"
    folder.mkdir()
    (folder / "f.py").write_text("import top\ndef f(event): return top.BASE")
    for _ in range(2):
        with tree.fork(folder, closure=own, imports=learner.known("f")) as fn:
            ready = fn.ready
            facts = tree.facts(own)
            learner.observe(
                "f", own.packages, imports=ready.imports, used=ready.used, owners=facts.owners,
                loaded=tree.loaded(fn.forked_from), requires=facts.requires,
            )  # fmt: skip
            assert fn.invoke() == "1.0"
    known = learner.known("f")
    assert set(known) == {"top", "base"}
    (plan,) = fit(learner.trace(), 5, 1 << 30)
    assert rank(plan, own.packages, known)[0].node.packages == {"top==1.0", "base==1.0"}, "and `other` is not in it"
    tree.replace(plan)
    begin(tree, own, imports=known)
    with tree.fork(folder, closure=own, imports=known) as fn:
        assert where(tree, fn) == ("base==1.0", "top==1.0")
        ready = fn.ready
        assert not ready.imports and fn.invoke() == "1.0"
        before = learner.known("f")
        learner.observe(
            "f", own.packages, imports=ready.imports, used=ready.used, owners=facts.owners,
            loaded=tree.loaded(fn.forked_from), requires=facts.requires,
        )  # fmt: skip
        assert set(learner.known("f")) == set(before), "a start that imports nothing unlearns nothing"


# -- misuse -----------------------------------------------------------------------------------------------------------


def test_closing_ends_everything_also_while_something_is_built(store, closure, code):
    slow = Plan(Node(children=(node("sleeps==1.0", imports="sleeps"),)))
    own = closure("sleeps")
    with ZygoteTree(store, plan=slow, spare=0) as tree:
        assert tree.wait_ready(timeout=30)
        tree.warm(own)
        fn = tree.fork(code, closure=own)
        assert eventually(lambda: stats(tree, "sleeps==1.0").state == "building")
        began = time.monotonic()
    assert time.monotonic() - began < 2.5, "the import was not waited for"
    assert not fn.alive
    with pytest.raises(olsock.ZygoteError, match="closed"):
        tree.fork(code)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"memory": "1M"}, "memory"), ({"cells": 0}, "cells"), ({"builders": 0}, "builders"), ({"rootfs": "/"}, "rootfs")],
)
def test_settings_that_make_no_sense(store, options, field):
    with pytest.raises(SpecError, match=field):
        ZygoteTree(store, **options)


def test_the_listener_is_told(store, closure):
    told: list[tuple[str, str]] = []
    own = closure("other")
    with ZygoteTree(store, plan=TREE, spare=0, listener=lambda each: told.append((each.key, each.state))) as tree:
        assert tree.wait_ready(timeout=30)
        begin(tree, own)
        assert eventually(lambda: len(told) >= 4)
    assert ("root", "ready") in told and {state for key, state in told if key != "root"} == {"building", "ready"}
