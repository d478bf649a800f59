"""Zygotes forked from zygotes: what they share with their parent, what is their own, and in which order they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

import olsock
from olsock import host
from olsock.errors import InvocationError, SpecError, ZygoteError
from support.eventually import eventually
from support.places import HANDLERS

pytestmark = [pytest.mark.system, pytest.mark.cgroup]

MIB = 1 << 20
Directory = Callable[..., Path]


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    """Make a directory of modules, readable for everybody as pytest's own are not."""
    made: list[Path] = []

    def make(**modules: str) -> Path:
        made.append(tmp_path / f"directory-{len(made)}")
        made[-1].mkdir()
        for name, source in modules.items():
            (made[-1] / f"{name}.py").write_text(dedent(source))
        return made[-1]

    return make


@pytest.fixture
def code(directory: Directory) -> Path:
    return directory(f="def f(event): return event")


@pytest.fixture
def parent() -> Iterator[olsock.Zygote]:
    with olsock.Zygote(descendants=4, spare=0) as zygote:
        yield zygote


def ask(zygote: olsock.Zygote, code: Path, event: object = None, **options: object) -> object:
    with zygote.fork(code, **options) as fn:
        return fn.invoke(event)


def ids(pid: int) -> int:
    return psutil.Process(pid).uids().real


# -- what it has -------------------------------------------------------------------------------------------------------


def test_it_has_what_the_parent_imported_and_the_parent_has_not_what_it_imports(directory):
    packages = directory(
        counted="import os\nPID = os.getpid()\nstate = []", later="import counted\ncounted.state.append(1)"
    )
    code = directory(f="import sys\ndef f(event): return ['later' in sys.modules, sys.modules['counted'].state]")
    with (
        olsock.Zygote(["counted"], packages=[packages], descendants=1, spare=0) as zygote,
        zygote.child(["later"], spare=0) as child,
    ):
        assert ask(child, code) == [True, [1]]
        assert ask(zygote, code) == [False, []]
        assert "later" in {each.module for each in child.imported}
        assert "later" not in {each.module for each in zygote.imported}


def test_memory_of_the_parent_is_shared(directory, code):
    packages = directory(big="held = bytearray(b'x') * (64 << 20)")
    with (
        olsock.Zygote(["big"], packages=[packages], descendants=1, spare=0) as zygote,
        zygote.child(spare=0) as child,
        child.fork(code) as fn,
    ):
        fn.invoke()
        for memory in (child.memory(), fn.memory()):
            assert memory.unique < 16 * MIB < 64 * MIB < memory.resident
        with olsock.Zygote(["big"], packages=[packages], spare=0) as alone:  # it can tell
            assert alone.memory().unique > 64 * MIB


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_handlers_at_any_depth_are_sandboxed(parent, depth):
    zygote = parent
    for level in range(depth):
        zygote = zygote.child(descendants=depth - level - 1, spare=0)
    with zygote.fork(HANDLERS, "probes:f") as fn:
        status = fn.invoke({"probe": "status"})
        assert fn.invoke({"probe": "pids"}) == [1]
        outside = psutil.Process(fn.pid)
        levels = next(
            line for line in Path(f"/proc/{fn.pid}/status").read_text().splitlines() if line.startswith("NSpid")
        )
        assert len(levels.split()[1:]) == 2 + 1 + depth  # the host's, each zygote's init's, its own
        assert len({outside.uids().real, ids(zygote.pid), ids(parent.pid)}) == 3
    assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["groups"], status["dumpable"]) == ("1", "2", [], 0)
    if "Seccomp_filters" in status:  # Linux 5.9
        assert status["Seccomp_filters"] == "2"
    assert len(set(status["uids"] + status["gids"])) == 1 and status["uids"][0] >= 1000


def test_each_has_ids_and_namespaces_of_its_own(parent, code):
    with (
        parent.child(descendants=1, spare=0) as one,
        parent.child(spare=0) as two,
        one.child(spare=0) as below,
        one.fork(code) as handler,
    ):
        handler.invoke()
        zygotes = (parent, one, two, below)
        assert len({ids(zygote.pid) for zygote in zygotes}) == 4
        for name in ("user", "mnt", "pid", "ipc", "uts", "net"):
            assert len({os.readlink(f"/proc/{zygote.pid}/ns/{name}") for zygote in zygotes}) == 4, name
        assert os.readlink(f"/proc/{handler.pid}/ns/user") == os.readlink(f"/proc/{one.pid}/ns/user")


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(
    ("source", "how"),
    [("os._exit(5)", "exit status 5"), ("os.abort()", "SIGSEGV"), ("ctypes.string_at(0)", "SIGSEGV")],
)  # pid 1 cannot be aborted: olsock/function.py
def test_how_a_handler_ended_is_told_from_any_depth(parent, directory, depth, source, how):
    code = directory(f=f"import os, ctypes\ndef f(event): {source}")
    zygote = parent
    for level in range(depth):
        zygote = zygote.child(descendants=depth - level - 1, spare=0)
    with zygote.fork(code) as fn, pytest.raises(InvocationError, match=how):
        fn.invoke()


def test_the_end_of_a_handler_is_not_mistaken_for_anothers(parent, directory):
    code = directory(f="import os\ndef f(event): os._exit(event)")
    with parent.child(spare=0) as one, parent.child(spare=0) as two:
        # In the pid namespaces of their zygotes they have the same numbers.
        functions = [zygote.fork(code) for zygote in (parent, one, two) for _ in range(3)]
        for number, fn in reversed(list(enumerate(functions, 1))):
            with fn, pytest.raises(InvocationError, match=f"exit status {number}$"):
                fn.invoke(number)


def test_environment_of_a_child(directory):
    packages = directory(seen="import os\nX = os.environ.get('X')")
    code = directory(f="import os, seen\ndef f(event): return [seen.X, os.environ.get('X')]")
    with olsock.Zygote(packages=[packages], env={"X": "parent"}, descendants=2, spare=0) as zygote:
        with zygote.child(["seen"], env={"X": "child"}, spare=0) as child:
            assert ask(child, code) == ["child", "child"]
            assert ask(child, code, env={"X": "own"}) == ["child", "own"]
        with zygote.child(["seen"], spare=0) as child:
            assert ask(child, code) == ["parent", "parent"]


def test_children_of_one_parent_do_not_draw_the_same_bytes(directory):
    packages = directory(
        drawn="""
        import random, ssl, tempfile, uuid
        SECRETS = [ssl.RAND_bytes(8).hex(), random.random(), tempfile.mktemp(), str(uuid.uuid4())]
        """
    )
    code = directory(f="import drawn\ndef f(event): return drawn.SECRETS")
    with olsock.Zygote(["ssl", "random", "tempfile", "uuid"], packages=[packages], descendants=2, spare=0) as zygote:
        with zygote.child(["drawn"], spare=0) as one, zygote.child(["drawn"], spare=0) as two:
            drawn = [ask(child, code) for child in (one, two)]
    assert all(a != b for a, b in zip(*drawn, strict=True))


def test_imports_that_fail_are_told(parent, directory):
    packages = directory(
        broken="1/0",
        exits="import os; print('last words', flush=True); os._exit(7)",
        dies="import ctypes; ctypes.string_at(0)",
        threads="import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        slow="import time; time.sleep(1000)",
    )
    for module, message in {
        "broken": "ZeroDivisionError",
        "exits": "exit status 7 | last words",
        "dies": "SIGSEGV",
        "threads": "threads running",
    }.items():
        with pytest.raises(ZygoteError) as caught:
            parent.child([module], packages=[packages], spare=0)
        assert message in str(caught.value)
    with pytest.raises(ZygoteError, match="longer than 0.2 s"):
        parent.child(["slow"], packages=[packages], timeout=0.2)
    with parent.child(["broken", "json"], packages=[packages], skip_bad=True, spare=0) as child:
        assert set(child.bad) == {"broken"}


@pytest.mark.parametrize("name", ["network", "python", "separate_stderr"])
def test_what_a_child_has_of_its_parent_is_no_option(parent, name):
    with pytest.raises(SpecError) as caught:
        parent.child(**{name: getattr(parent.spec, name)})
    assert caught.value.field == name


@pytest.mark.parametrize("network", ["none", "host"])
def test_network_is_the_parents(directory, network):
    code = directory(f="import os\ndef f(event): return os.readlink('/proc/self/ns/net')")
    with olsock.Zygote(network=network, descendants=1, spare=0) as zygote, zygote.child(spare=0) as child:
        assert (ask(child, code) == os.readlink("/proc/self/ns/net")) is (network == "host")


# -- packages ----------------------------------------------------------------------------------------------------------


def test_packages_of_a_child_are_in_place_of_the_parents(directory):
    first, second = directory(both="WHO = 1", first=""), directory(both="WHO = 2", second="")
    code = directory(f="import os, both\ndef f(event): return [sorted(os.listdir('/var/packages/0')), both.WHO]")
    with olsock.Zygote(packages=[first], descendants=2, spare=0) as zygote:
        with zygote.child(packages=[second], spare=0) as child, child.fork(code) as fn:
            listed, who = fn.invoke()
            assert ("second.py" in listed, "first.py" in listed, who) == (True, False, 2)
        with zygote.child(spare=0) as child, child.fork(code) as fn:
            listed, who = fn.invoke()
            assert ("second.py" in listed, "first.py" in listed, who) == (False, True, 1)


@pytest.mark.parametrize("blanks", [0, 1])
@pytest.mark.parametrize("nested", [False, True])
def test_lazily_imported_submodules_come_from_the_functions_own_packages(directory, nested, blanks):
    """And what the zygote saw was not there when it looked is looked for again."""
    zygotes, functions = directory(), directory(extra="WHERE = __file__")
    for packages, version in ((zygotes, 1), (functions, 2)):
        (packages / "lazy").mkdir()
        (packages / "lazy" / "__init__.py").write_text("")
        (packages / "lazy" / "part.py").write_text(f"VERSION = {version}")
    (zygotes / "looks.py").write_text("import lazy\ntry: import extra\nexcept ImportError: pass\nelse: 1/0")
    code = directory(f="import lazy.part\ndef f(event):\n    import extra\n    return [lazy.part.VERSION, extra.WHERE]")
    own = directory(f="import lazy.part\ndef f(event): return lazy.part.VERSION")
    with olsock.Zygote(["looks"], packages=[zygotes], descendants=1, blanks=0 if nested else blanks) as zygote:
        from_here = zygote.child(blanks=blanks) if nested else zygote
        assert eventually(lambda: from_here.waiting == blanks)
        assert ask(from_here, code, packages=[functions]) == [2, "/var/packages/0/extra.py"]
        assert ask(from_here, own) == 1


@pytest.mark.parametrize("nested", [False, True])
def test_a_zygote_without_packages_forks_functions_that_have_some(directory, nested):
    functions = directory(extra="X = 1")
    code = directory(f="import extra\ndef f(event): return extra.X")
    with olsock.Zygote(["json"], descendants=1, spare=0) as zygote:
        assert ask(zygote, code, packages=[functions]) == 1
        if nested:
            with zygote.child(["decimal"], packages=[functions], spare=0) as child:
                assert ask(child, code) == 1
        with zygote.fork(code) as fn, pytest.raises(InvocationError, match="extra"):
            fn.invoke()


def test_packages_for_which_there_is_no_place_are_refused(parent, directory, code):
    packages = [directory(), directory()]
    for make in (lambda: parent.child(packages=packages), lambda: parent.fork(code, packages=packages)):
        with pytest.raises(SpecError, match="places for: 1") as caught:
            make()
        assert caught.value.field == "packages"
    with olsock.Zygote(packages=packages, descendants=1, spare=0) as zygote, zygote.child(packages=packages) as child:
        assert ask(child, code, 1) == 1


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_of_its_handlers_hold(parent, directory):
    code = directory(
        f="""
        import os, threading
        kept = []
        def f(event):
            if event:
                kept.append(bytearray(b"x") * (event << 20))
                return
            for made in range(40):
                try: threading.Thread(target=threading.Event().wait, daemon=True).start()
                except RuntimeError: break
            return made
        """
    )
    with parent.child(descendants=1, spare=0) as child, child.child(spare=0) as below:
        for zygote in (child, below):
            with zygote.fork(code, pids=7) as few, zygote.fork(code) as many:
                assert (few.invoke(0), many.invoke(0)) == (6, 39)
            with zygote.fork(code, memory="64M") as small, zygote.fork(code, memory="256M") as large:
                large.invoke(100)
                assert large.stats().memory_bytes > 100 * MIB
                with pytest.raises(InvocationError) as caught:
                    small.invoke(100)
                assert caught.value.kind == "oom"
                large.invoke(1)
            with zygote.fork(code) as fn:
                fn.invoke(1)
                fn.pause()
                fn.resume()
                fn.invoke(1)


def test_limits_of_its_own_hold(parent, directory):
    packages = directory(big="x = bytearray(b'x') * (100 << 20)")
    with pytest.raises(ZygoteError, match="out of memory"):
        parent.child(["big"], packages=[packages], memory="48M", spare=0)
    with parent.child(["big"], packages=[packages], memory="256M", spare=0) as child:
        assert child.stats().memory_bytes > 100 * MIB
        assert parent.stats().memory_bytes < 50 * MIB


# -- how many ----------------------------------------------------------------------------------------------------------


def test_more_children_than_were_planned_for_are_refused_and_room_is_given_back(code):
    with olsock.Zygote(descendants=3, spare=0) as zygote:
        one, two = zygote.child(descendants=1, spare=0), zygote.child(spare=0)
        for make in (zygote.child, two.child, lambda: one.child(descendants=1)):
            with pytest.raises(ZygoteError, match="descendants"):
                make()
        below = one.child(spare=0)
        with pytest.raises(ZygoteError, match="descendants"):
            one.child()
        one.close()  # and the one below it
        assert not below.alive
        for _ in range(3):
            with zygote.child(spare=0), zygote.child(spare=0) as last:
                assert ask(last, code, 1) == 1
        assert ask(two, code, 2) == 2
    with olsock.Zygote(spare=0) as zygote, pytest.raises(ZygoteError, match="descendants"):
        zygote.child()


def test_a_child_that_could_not_be_made_takes_no_room(directory):
    packages = directory(broken="1/0")
    with olsock.Zygote(packages=[packages], descendants=1, spare=0) as zygote:
        for _ in range(3):
            with pytest.raises(ZygoteError, match="ZeroDivisionError"):
                zygote.child(["broken"])
        zygote.child(spare=0)


def test_children_from_many_threads(parent, code):
    def once(number: int) -> object:
        with parent.child(spare=0) as child:
            return ask(child, code, number)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(once, range(12))) == list(range(12))


# -- the end -----------------------------------------------------------------------------------------------------------


def test_close_of_a_parent_closes_what_was_forked_of_it(parent, code):
    child = parent.child(descendants=1, spare=0)
    below = child.child(spare=0)
    functions = [zygote.fork(code) for zygote in (parent, child, below)]
    parent.close()
    assert not [each for each in (parent, child, below, *functions) if each.alive]
    for zygote in (parent, child, below):
        zygote.close()
        with pytest.raises(ZygoteError, match="closed"):
            zygote.fork(code)
        with pytest.raises(ZygoteError, match="closed"):
            zygote.child()


def test_close_of_a_child_leaves_the_parent_and_its_other_children(parent, code):
    with parent.child(spare=0) as one, parent.child(spare=0) as two, parent.fork(code) as fn, two.fork(code) as other:
        one.close()
        assert (fn.invoke(1), other.invoke(2)) == (1, 2)
        assert (ask(parent, code, 3), ask(two, code, 4)) == (3, 4)


def test_a_child_that_is_forgotten_is_closed(parent):
    child = parent.child(spare=0)
    pid = child.pid
    del child
    assert eventually(lambda: not psutil.pid_exists(pid))
    assert eventually(lambda: not parent._children)


def test_a_parent_that_is_closed_while_children_are_born():
    for _ in range(5):
        zygote = olsock.Zygote(descendants=8, spare=0)
        made: list[olsock.Zygote] = []
        with ThreadPoolExecutor(3) as pool:
            ends = [pool.submit(bear, zygote, made) for _ in range(3)]
            assert eventually(lambda made=made: len(made) > 1)
            zygote.close()
        assert all(isinstance(end.exception(), olsock.OlsockError) for end in ends), ends
        assert not [child for child in made if child.alive]
        for child in made:
            child.close()


def bear(zygote: olsock.Zygote, made: list[olsock.Zygote]) -> None:
    while True:
        made.append(zygote.child(spare=0))


def test_handlers_live_on_without_the_child_that_forked_them(parent, directory):
    code = directory(f="import os\ndef f(event):\n    if event == 'exit': os._exit(6)\n    return event")
    with parent.child(spare=0) as child, child.fork(code) as fn:
        assert fn.invoke(1) == 1
        os.kill(child.pid, signal.SIGKILL)
        assert eventually(lambda: not child.alive)
        assert fn.invoke(2) == 2
        with pytest.raises(ZygoteError, match="gone"):
            child.fork(code)
        assert ask(parent, code, 3) == 3
        with pytest.raises(InvocationError, match="exit status 6"):
            fn.invoke("exit")


def test_a_child_goes_on_forking_without_its_parent(parent, directory):
    code = directory(f="import os\ndef f(event):\n    if event == 'exit': os._exit(6)\n    return event")
    with parent.child(descendants=1, spare=0) as child:
        os.kill(parent.pid, signal.SIGKILL)
        assert eventually(lambda: not parent.alive)
        assert ask(child, code, 1) == 1
        with child.child(spare=0) as below:
            assert ask(below, code, 2) == 2
            with below.fork(code) as fn, pytest.raises(InvocationError, match="exit status 6"):
                fn.invoke("exit")
        with pytest.raises(ZygoteError, match="gone"):
            parent.child()


def test_nothing_is_left_of_many(parent, code):
    before = sorted(os.listdir(f"{host.current().tree.paths[0]}/{parent.name}"))
    for _ in range(10):
        with parent.child(descendants=1, spare=1) as child, child.child(blanks=2) as below:
            assert ask(below, code, 1) == 1
    assert sorted(os.listdir(f"{host.current().tree.paths[0]}/{parent.name}")) == before
