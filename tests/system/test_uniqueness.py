"""Siblings from one zygote have nothing random in common (attacks 40, 41), though each of them is pid 1.

The control is the same fork without the restoring: what is equal there is what `reseed` is for, and what it has to change.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

import olsock
from olsock import rootfs
from support.require import require

pytestmark = [pytest.mark.system, pytest.mark.attack]

SIBLINGS = 12

SOURCE = """
import sys

def f(event):
    return eval(event, {"sys": sys, **{name: __import__(name) for name in IMPORTS if name in sys.modules}})

IMPORTS = ("random", "secrets", "ssl", "tempfile", "uuid", "os", "numpy", "drawn")
"""

PACKAGE = """
import random, ssl, tempfile, uuid
own = random.Random()  # an instance made at import: nobody can know of it
ssl.RAND_bytes(1); random.random(); uuid.uuid1(); next(tempfile._get_candidate_names())
"""

RESTORED = [
    "ssl.RAND_bytes(16).hex()",
    "random.random()",
    "random.getrandbits(64)",
    "uuid.uuid1().hex[14:]",  # variant, clock sequence and node
    "next(tempfile._get_candidate_names())",
]
NEVER_SHARED = ["secrets.token_hex(16)", "uuid.uuid4().hex", "os.urandom(16).hex()", "random.SystemRandom().random()"]
SHARED = ["drawn.own.random()", "hash('text')"]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "f.py").write_text(dedent(SOURCE))
    return tmp_path / "code"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "drawn.py").write_text(PACKAGE)
    return tmp_path / "packages"


@pytest.fixture
def zygote(packages: Path) -> Iterator[olsock.Zygote]:
    with olsock.Zygote(
        ["random", "secrets", "ssl", "tempfile", "uuid", "drawn"], packages=[packages], spare=0
    ) as zygote:
        yield zygote


@pytest.fixture
def without_restoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: Path) -> Iterator[olsock.Zygote]:
    """A zygote with a runtime whose `reseed.restore` does nothing."""
    runtime = shutil.copytree(rootfs.runtime_directory(), tmp_path / "runtime")
    (runtime / "reseed.py").write_text("def restore(): pass\ndef prepare(window): pass")
    monkeypatch.setattr(rootfs, "runtime_directory", lambda: str(runtime))
    with olsock.Zygote(
        ["random", "secrets", "ssl", "tempfile", "uuid", "drawn"], packages=[packages], spare=0
    ) as zygote:
        yield zygote


def drawn(zygote: olsock.Zygote, code: Path, expression: str, siblings: int = SIBLINGS) -> list[object]:
    values = []
    for _ in range(siblings):
        with zygote.fork(code) as fn:
            values.append(fn.invoke(expression))
    return values


@pytest.mark.parametrize("expression", RESTORED + NEVER_SHARED)
def test_siblings_draw_different_values(zygote, code, expression):
    assert len(set(drawn(zygote, code, expression))) == SIBLINGS


def test_without_restoring_siblings_have_the_same_node(without_restoring, code):
    assert len(set(drawn(without_restoring, code, "uuid.uuid1().hex[20:]", 4))) == 1


# OpenSSL tells a fork by a changed pid. A zygote of ours has pid 2, below its init, so that even this would not show it
# alone; that its children are restored must not hang on that.
SAME_PID = """
import ctypes, os, signal, ssl, sys
assert os.getpid() == 1
ssl.RAND_bytes(1)
for _ in range(4):
    pid = ctypes.CDLL(None).syscall(ctypes.c_long(int(sys.argv[1])), 0x20000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        if sys.argv[2] == "restored":
            ssl.RAND_add(os.urandom(32), 32.0)
        os.write(1, ssl.RAND_bytes(16).hex().encode() + b"\\n")
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize(("how", "different"), [("", 1), ("restored", 4)])
def test_openssl_does_not_notice_a_fork_from_pid_1_to_pid_1(how, different):
    clone = {"x86_64": "56", "aarch64": "220"}[os.uname().machine]
    argv = ["unshare", "--pid", "--fork", sys.executable, "-c", SAME_PID, clone, how]
    values = subprocess.run(argv, capture_output=True, check=True).stdout.split()
    assert (len(values), len(set(values))) == (4, different)


@pytest.mark.parametrize("expression", ["random.random()"])
def test_without_restoring_the_interpreters_own_hook_still_works(without_restoring, code, expression):
    assert len(set(drawn(without_restoring, code, expression, 4))) == 4


@pytest.mark.parametrize("expression", SHARED)
def test_what_cannot_be_restored_is_shared_as_the_documentation_says(zygote, code, expression):
    assert len(set(drawn(zygote, code, expression, 4))) == 1


def test_a_hook_of_ones_own_restores_what_only_the_package_knows(code, packages):
    (packages / "hooked.py").write_text(
        "import os, random\nown = random.Random()\nos.register_at_fork(after_in_child=own.seed)"
    )
    with olsock.Zygote(["hooked"], packages=[packages], spare=0) as zygote:
        assert len(set(drawn(zygote, code, "__import__('hooked').own.random()", 4))) == 4


def test_keys_made_by_siblings_differ(zygote, code):
    # RAND_priv_bytes, which keys come from, has a generator of its own.
    expression = "__import__('ctypes').CDLL(None) and __import__('_ssl').RAND_bytes(8).hex()"
    assert len(set(drawn(zygote, code, expression))) == SIBLINGS
    private = (
        "(lambda c, b: (c.CDLL('libcrypto.so.3').RAND_priv_bytes(b, 16), b.raw.hex())[1])"
        "(__import__('ctypes'), __import__('ctypes').create_string_buffer(16))"
    )
    assert len(set(drawn(zygote, code, private))) == SIBLINGS


@pytest.fixture
def numpys() -> Path:
    """The directory that this interpreter's numpy is in."""
    found = importlib.util.find_spec("numpy")
    require(found and found.origin, "needs numpy")
    assert found and found.origin
    return Path(found.origin).parents[1]


def test_numpys_legacy_generator_is_restored_and_others_are_not(code, packages, numpys):
    # One of a pair of normal deviates is drawn, so that the other would be the next one of every sibling.
    drawing = "import numpy\nown = numpy.random.default_rng()\nnumpy.random.standard_normal()"
    (packages / "made.py").write_text(drawing)
    with olsock.Zygote(["numpy", "made"], packages=[numpys, packages], spare=0, descendants=1) as zygote:
        assert len(set(drawn(zygote, code, "numpy.random.random()", 6))) == 6
        assert len(set(drawn(zygote, code, "numpy.random.standard_normal()", 6))) == 6
        assert len(set(drawn(zygote, code, "numpy.random.default_rng().random()", 6))) == 6
        assert len(set(drawn(zygote, code, "__import__('made').own.random()", 3))) == 1
        # By its memory, not by way of numpy; and what comes of it is as even as it should be.
        assert drawn(zygote, code, "sys.modules['_olsock_reseed']._mersenne is not None", 1) == [True]
        (mean,) = drawn(zygote, code, "numpy.random.random(100_000).mean()", 1)
        assert abs(float(str(mean)) - 0.5) < 0.01
        with zygote.child() as child:
            both = drawn(child, code, "numpy.random.random()", 3) + drawn(zygote, code, "numpy.random.random()", 3)
            assert len(set(both)) == 6


def test_a_generator_of_another_kind_is_restored_too(code, packages, numpys):
    (packages / "made.py").write_text("import numpy\nnumpy.random.set_bit_generator(numpy.random.PCG64(1))")
    with olsock.Zygote(["numpy", "made"], packages=[numpys, packages], spare=0) as zygote:
        assert len(set(drawn(zygote, code, "numpy.random.random()", 6))) == 6
        assert drawn(zygote, code, "sys.modules['_olsock_reseed']._mersenne is None", 1) == [True]


def test_a_cold_handler_has_a_hash_seed_and_an_address_layout_of_its_own(code):
    found = []
    for _ in range(4):
        with olsock.Function(code) as fn:
            found.append((fn.invoke("hash('text')"), fn.invoke("id(sys)")))
    assert len({seed for seed, _ in found}) > 1
    assert len({address for _, address in found}) > 1
