"""Heavy packages from a real index, all the way: requirements, lock, closure, what they import, a fitted tree, its zygotes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import olsock
from olsock import trees
from olsock.packages.needs import needs
from olsock.trees.learner import Learner

pytestmark = pytest.mark.system

CODE = """
import sys

import numpy
import pandas
from sklearn.linear_model import LinearRegression

def f(event):
    frame = pandas.DataFrame(event)
    model = LinearRegression().fit(frame[["x"]], frame["y"])
    mapped = {line.split()[-1] for line in open("/proc/self/maps") if "/var/packages/" in line}
    return [round(float(model.predict(pandas.DataFrame({"x": [10]}))[0]), 6), len(mapped) > 10, len(sys.modules)]
"""
EVENT = {"x": [1, 2, 3], "y": [3, 5, 7]}


@pytest.mark.timeout(400)
def test_pandas_and_scikit_learn_from_requirements_to_a_tree(index: None, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "f.py").write_text(CODE)
    with olsock.PackageStore(tmp_path / "store") as store:
        with store.install(store.resolve(["pandas", "scikit-learn"], sys.executable)) as closure:
            assert {"numpy", "pandas", "scikit-learn", "scipy"} <= {
                each.partition("==")[0] for each in closure.packages
            }
            with olsock.Function(code, packages=[closure.directory], memory="512M") as cold:
                assert cold.invoke(EVENT)[:2] == [21.0, True]
                ready = cold.ready
            requires = needs(closure.directory, closure.packages)
            learner = Learner()
            learner.observe("f", closure.packages, imports=ready.imports, owners=closure.owners(), requires=requires)
            (plan,) = trees.fit(learner.trace(), 4, 1 << 30)
            with olsock.ZygoteTree(store, plan=plan, ahead=True) as tree:
                tree.warm(closure)
                assert tree.wait_idle(300)
                with tree.fork(code, closure=closure, memory="512M") as forked:
                    assert forked.forked_from not in (None, "root")
                    assert forked.invoke(EVENT)[:2] == [21.0, True]
                    assert "sklearn" in forked.ready.used
                    assert forked.ready.init_ms < ready.init_ms / 2
