"""Learning what functions import: cold starts, starts from zygotes, bounds; and what metadata says that packages need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock.packages.lock import Lock, Pin
from olsock.packages.needs import needs
from olsock.trees import Import, fit
from olsock.trees import learner as learning
from olsock.trees.learner import Learner, owner

pytestmark = pytest.mark.unit

CLOSURE = frozenset({"numpy==2.2.3", "pandas==2.2.3", "flask==3.0"})
OWNERS = {"numpy": "numpy==2.2.3", "pandas": "pandas==2.2.3", "flask": "flask==3.0"}
REQUIRES = {"pandas==2.2.3": frozenset({"numpy==2.2.3"})}


@dataclass
class Row:
    module: str
    package: str
    self_ms: float
    bytes: int = 0


NUMPY, PANDAS = Row("numpy", "numpy", 60.0, 4 << 20), Row("pandas", "pandas", 200.0, 9 << 20)


def test_a_cold_start_tells_everything() -> None:
    learner = Learner()
    learner.observe("f", CLOSURE, "python3.12", imports=[NUMPY, PANDAS], owners=OWNERS, requires=REQUIRES)
    assert learner.known("f") == {"numpy": 60.0, "pandas": 200.0} and learner.known("g") is None
    (usage,) = learner.trace()
    assert usage.imports == {
        "numpy": Import(60.0, 4 << 20, "numpy==2.2.3"),
        "pandas": Import(200.0, 9 << 20, "pandas==2.2.3"),
    }
    assert (usage.count, usage.python, usage.packages, usage.requires) == (1, "python3.12", CLOSURE, REQUIRES)


def test_a_start_from_a_zygote_tells_what_was_used_of_it() -> None:
    """And what that needs: the function's own code does not name numpy."""
    loaded = {
        "numpy": Import(60.0, 0, "numpy==2.2.3"),
        "pandas": Import(200.0, 0, "pandas==2.2.3"),
        "flask": Import(120.0, 0, "flask==3.0"),
    }
    learner = Learner()
    learner.observe(
        "f", CLOSURE, imports=[], used=["pandas"], owners=OWNERS, loaded=loaded, requires=REQUIRES
    )  # fmt: skip
    assert learner.known("f") == {"numpy": 60.0, "pandas": 200.0}


def test_nothing_told_is_not_the_same_as_nothing_imported() -> None:
    learner = Learner()
    learner.observe("silent", CLOSURE)
    learner.observe("bare", CLOSURE, imports=[])
    assert learner.known("silent") is None and learner.known("bare") == {}
    assert [usage.imports for usage in learner.trace()] == [None, {}]


def test_figures_are_means_and_are_shared_by_functions() -> None:
    learner = Learner()
    for name, ms in (("f", 50.0), ("g", 70.0)):
        learner.observe(name, CLOSURE, imports=[Row("numpy", "numpy", ms)], owners=OWNERS)
    assert learner.known("f") == learner.known("g") == {"numpy": 60.0}


def test_another_closure_is_learnt_anew() -> None:
    learner = Learner()
    learner.observe("f", CLOSURE, imports=[NUMPY], owners=OWNERS)
    learner.observe("f", frozenset({"numpy==1.26.4"}), imports=[], owners={"numpy": "numpy==1.26.4"})
    assert learner.known("f") == {} and len(learner.trace()) == 1


def test_what_is_of_no_package_of_the_closure_is_not_believed() -> None:
    learner = Learner()
    learner.observe("f", frozenset({"flask==3.0"}), imports=[NUMPY], owners=OWNERS)
    assert learner.known("f") == {}


def test_namespace_packages_have_several_owners() -> None:
    owners = {"google": "protobuf==5.0", "google.cloud": "b==1", "google.cloud.storage": "storage==2.0"}
    assert owner("google.cloud.storage.blob", owners) == "storage==2.0"
    assert owner("google.protobuf.message", owners) == "protobuf==5.0"
    assert owner("googles", owners) is None and owner("", owners) is None


def test_fading_forgets() -> None:
    learner = Learner()
    learner.observe("f", CLOSURE)
    assert learner.observations == 1
    assert [usage.count for usage in learner.trace(0.5)] == [1.0] and learner.observations == 0
    for _ in range(5):
        learner.trace(0.5)
    assert learner.trace() == ()
    learner.observe("f", CLOSURE)
    learner.forget("f")
    assert learner.trace() == ()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MAX_MODULES", 50)
    monkeypatch.setattr(learning, "MAX_KNOWN", 100)
    learner = Learner(max_functions=10)
    for number in range(40):
        rows = [Row(f"numpy.m{number}_{each}", "numpy", 1.0) for each in range(80)]
        learner.observe(f"f{number}", CLOSURE, imports=rows, owners=OWNERS)
    assert len(learner.trace()) == 10 and len(learner._modules) <= 100
    assert len(learner.known("f39") or ()) <= 50 and learner.known("f0") is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sets(st.sampled_from(sorted(OWNERS))), st.floats(0, 500)), max_size=20
    )
)
def test_whatever_is_learnt_can_be_fitted(starts: list[tuple[str, set[str], float]]) -> None:
    learner = Learner()
    for name, imported, ms in starts:
        rows = [Row(each, each, ms, 1 << 20) for each in sorted(imported)]
        learner.observe(name, CLOSURE, imports=rows, owners=OWNERS, requires=REQUIRES)
    (plan,) = fit(learner.trace(), 4, 1 << 30)
    assert all(path[-1].packages <= CLOSURE for path in plan.paths())


# What packages need.


def install(folder: Path, name: str, version: str, metadata: str | bytes) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    (info / "METADATA").write_bytes(head + (metadata.encode() if isinstance(metadata, str) else metadata))


def test_needs_are_read_from_metadata(tmp_path: Path) -> None:
    lines = [
        "Requires-Dist: NumPy>=1.26; python_version >= '3.12'",
        "Requires-Dist: Python_DateUtil (>=2.8)",
        "requires-dist: tzdata",
        "Requires-Dist: flask; extra == 'web'",
        "Requires-Dist: missing",
        "Requires-Dist: @@ no requirement",
        "",
        "Requires-Dist: six",
    ]
    install(tmp_path, "pandas", "2.2.3", "\n".join(lines))
    install(tmp_path, "python_dateutil", "2.9.0", "Requires-Dist: six\n")
    install(tmp_path, "flask", "3.0", b"Requires-Dist: \xff\xfe\n" * 10)
    closure = {"pandas==2.2.3", "numpy==2.2.3", "python-dateutil==2.9.0", "tzdata==1", "six==1.16", "flask==3.0"}
    assert needs(tmp_path, closure) == {
        # flask as well, though only an extra asks for it: it is there to be found
        "pandas==2.2.3": {"numpy==2.2.3", "python-dateutil==2.9.0", "tzdata==1", "flask==3.0"},
        "python-dateutil==2.9.0": {"six==1.16"},
        "flask==3.0": frozenset(),
    }


def test_metadata_is_not_followed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("Requires-Dist: six\n")
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}-1.dist-info").mkdir()
    (tmp_path / "a-1.dist-info" / "METADATA").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "b-1.dist-info" / "METADATA").mkdir()
    assert needs(tmp_path, {"a==1", "b==1", "c==1", "six==1"}) == {"a==1": set(), "b==1": set(), "c==1": set()}


def test_a_lock_can_be_restricted() -> None:
    pins = [Pin(name, "1.0", (f"sha256:{digit * 64}",)) for name, digit in (("a", "1"), ("b", "2"))]
    lock = Lock("cpython-311", ("a", "b"), tuple(pins))
    some = lock.restrict({"a==1.0", "c==1.0"})
    assert some.pins == (pins[0],) and some.packages == {"a==1.0"} and some.key != lock.key
    assert lock.restrict(lock.packages).key == lock.key
