"""Zygotes forked from zygotes, and handlers that wait half made: what hostile ones can do to those above and beside them.

What a parent does to its own children is no attack: its code is part of theirs, as its memory is.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import olsock
from olsock import host
from olsock._core import seccomp
from olsock.errors import InvocationError, ZygoteError
from support.eventually import eventually
from support.places import HANDLERS, outside

pytestmark = pytest.mark.attack

CAPABILITIES = f"{(1 << 21) | (1 << 6) | (1 << 7):016x}"  # SYS_ADMIN, SETGID, SETUID


def ask(zygote: olsock.Zygote, probe: str, *args: Any) -> Any:
    with zygote.fork(HANDLERS, "probes:f") as fn:
        return fn.invoke({"probe": probe, "args": args}, timeout=60)


def result(zygote: olsock.Zygote, name: str) -> Any:
    return ask(zygote, "nested", name)


def mark(**options: Any) -> olsock.Zygote:
    return olsock.Zygote(
        ["nested"], packages=[HANDLERS], env={"NESTED": "mark"}, descendants=4, spare=0, memory="256M", **options
    )


def hostile_child(parent: olsock.Zygote, how: str = "look", **env: str) -> olsock.Zygote:
    # A module of another name, so that it is run again: the parent has imported the first.
    return parent.child(["nested_child"], env={"NESTED": how, **env}, spare=0, timeout=60)


@pytest.fixture(params=["filtered", "unfiltered"])
def filtered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the zygotes' filter, and without it: what holds in the second case does not hang on the filter."""
    if request.param == "unfiltered":
        compile_ = seccomp.compile
        monkeypatch.setattr(seccomp, "compile", lambda name: b"" if name == "zygote" else compile_(name))
    return request.param == "filtered"


@pytest.fixture
def family(filtered: bool) -> Iterator[tuple[olsock.Zygote, olsock.Zygote]]:
    """A parent that keeps things, and a child that looks for them; others that must not notice anything."""
    with (
        mark() as parent,
        parent.child(spare=0) as sibling,
        parent.fork(HANDLERS, "probes:f") as one,
        sibling.fork(HANDLERS, "probes:f") as two,
    ):
        answers = [fn.invoke({"probe": "pids"}) for fn in (one, two)]
        with hostile_child(parent) as child:
            yield parent, child
        assert [fn.invoke({"probe": "pids"}) for fn in (one, two)] == answers == [[1], [1]]
        assert [ask(zygote, "pids") for zygote in (parent, sibling)] == [[1], [1]]


# -- a hostile child ---------------------------------------------------------------------------------------------------


def test_what_a_child_has(family, filtered):
    _, child = family
    status = result(child, "status")
    assert (status["CapEff"], status["CapPrm"], status["CapInh"]) == (CAPABILITIES, CAPABILITIES, "0" * 16)
    assert (status["CapBnd"], status["CapAmb"]) == ("0" * 16, "0" * 16)
    assert (status["NoNewPrivs"], status["dumpable"], status["groups"]) == ("1", 0, [])
    assert status["Seccomp"] == ("2" if filtered else "0")
    assert result(child, "pids") == [1, 2]
    assert result(child, "fds") == {"0": "device 1:3", "1": "pipe", "2": "pipe", "3": "socket"}
    assert int(result(child, "program"), 16) == 0
    with olsock.Zygote(["nested"], packages=[HANDLERS], env={"NESTED": "look"}, spare=0) as alone:
        assert result(alone, "status")["securebits"] == status["securebits"]


def test_a_child_sees_signals_and_spies_on_nobody(family):
    parent, child = family
    assert result(child, "found") == {"1": "ok"}  # its own init, which does not mind
    found = result(child, "init")
    assert {found[name] for name in ("mem", "environ", "fd", "root")} <= {"EACCES", "EPERM"}
    assert found["ptrace"] == "EPERM"
    control = outside("spy", child.pid)
    assert {control[name] for name in ("mem", "environ", "root")} == {"ok"}
    assert (parent.alive, child.alive) == (True, True)


def test_a_child_can_be_nobody_else(family):
    _, child = family
    said = {int(uid): how for uid, how in result(child, "ids").items()}
    assert said.pop(4095) == "ok"  # the last of its own
    assert len(said) == 4 and set(said.values()) == {"EINVAL"}


def test_a_child_enters_and_makes_no_namespace(family, filtered):
    _, child = family
    assert set(result(child, "setns").values()) <= {"EPERM", "EACCES"}
    made = result(child, "unshare")
    if filtered:
        assert made.pop("NEWCGROUP") in ("ok", "EPERM")
        assert set(made.values()) == {"EPERM"}
    else:
        assert made["NEWNS"] == "ok"
    # The way up from a namespace to its parent and to its owner ends at its own user namespace, which it can name.
    above = result(child, "parents")
    assert {above[name]["owner"] for name in ("mnt", "net", "ipc", "uts", "pid")} == {"ok"}
    assert {above["user"]["owner"], above["user"]["parent"], above["pid"]["parent"]} == {"EPERM"}


def test_a_child_cannot_change_what_others_mounted(family, filtered):
    _, child = family
    found = result(child, "remount")
    # Packages of its own were attached in its own user namespace, as a function's code is: where the filter does not
    # refuse that the mount can be changed, and that their files are the host root's is what protects them.
    changed = found.pop("/var/packages/0")
    assert (changed[0], changed[2]) == (("EPERM", "EROFS") if filtered else ("ok", "EACCES"))
    assert {"/", "/usr", "/var/runtime", "/dev"} <= set(found)
    for point, (remounted, changed, touched) in found.items():
        assert remounted == "EPERM", point
        assert changed in ("EPERM", "ENOSYS"), point
        assert touched == "EROFS" or point.startswith("/dev/"), point


def test_a_child_shares_no_names_with_its_parent(family):
    parent, child = family
    assert result(child, "shared") == {"file": False, "abstract": "ECONNREFUSED", "sysv": False}
    control = result(parent, "mark")
    assert control == {"file": True, "abstract": "ok", "sysv": True}
    assert result(child, "devices") == "EPERM"
    assert result(child, "cgroup")["writable"] == []


def test_keyrings_are_closed_to_a_zygote():
    with mark() as parent, hostile_child(parent) as child:
        assert result(child, "keyring") == "EPERM"
    assert outside("keyring") in ("ok", "ENOKEY")  # ENOKEY: nobody made one yet, but the question was heard


def test_what_lies_below_a_childs_own_tmp_is_kept_from_it_by_the_filter(family, filtered):
    """The parent's is there, below: mounts that were made inside are not locked. Known, and the filter's to refuse."""
    parent, _ = family
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(hostile_child(parent, NESTED_UMOUNT="1"))
        below = result(child, "below")
        refused, seen = ([-1, -1], "ENOENT"), ([0, 0], "EACCES")
        assert (below["umount"], below["file"]) == (refused if filtered else seen)


# -- a hostile parent --------------------------------------------------------------------------------------------------


@pytest.fixture
def innocent() -> Iterator[olsock.Zygote]:
    """Another zygote, which has its own trust domain and must go on as if nothing was."""
    with olsock.Zygote(descendants=1, spare=0) as zygote, zygote.fork(HANDLERS, "probes:f") as fn:
        assert fn.invoke({"probe": "pids"}) == [1]
        yield zygote
        assert fn.invoke({"probe": "pids"}) == [1]
        assert ask(zygote, "pids") == [1]
        with zygote.child(spare=0) as child:
            assert ask(child, "pids") == [1]


def hostile_parent(how: str, **env: str) -> olsock.Zygote:
    return olsock.Zygote(
        ["nested"], packages=[HANDLERS], env={"NESTED": how, **env}, descendants=2, spare=0, memory="256M"
    )


@pytest.mark.parametrize("how", ["nobody", "garbage", "hello", "itself", "hang", "twice"])
def test_a_birth_that_a_parent_spoils_is_told(innocent, how, monkeypatch):
    monkeypatch.setattr("olsock.zygote.BIRTH_TIMEOUT", 1.0)
    monkeypatch.setattr("olsock.forks.TIMEOUT", 1.0)
    with hostile_parent(how) as parent:
        for _ in range(2):  # and its room is given back
            with pytest.raises(ZygoteError), parent.child(spare=0, timeout=5.0) as child:
                ask(child, "pids")
        assert ask(innocent, "pids") == [1]
    with hostile_parent("keeps") as parent, parent.child(spare=0) as child:
        assert ask(child, "pids") == [1]


def test_a_parent_has_every_right_over_its_own_child_and_no_others(innocent):
    """Known, and why a child may only be forked from a zygote all of whose packages it has."""
    with hostile_parent("keeps") as parent, parent.child(spare=0) as child:
        assert ask(child, "pids") == [1]
        said, capabilities = result(parent, "entered").split()
        assert said == "ok" and int(capabilities, 16) > int(CAPABILITIES, 16)
        assert result(parent, "found") is None


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stop", "kill"])
def test_a_storm_of_signals_does_not_reach_the_spawner(innocent, number, monkeypatch):
    monkeypatch.setattr("olsock.zygote.BIRTH_TIMEOUT", 2.0)
    monkeypatch.setattr("olsock.forks.TIMEOUT", 2.0)
    monkeypatch.setattr("olsock.box.TIMEOUT", 2.0)
    spawner = psutil.Process(host.current().spawner.pid)
    with hostile_parent("storm", NESTED_STORM=str(int(number))) as parent:
        helper = eventually(lambda: [pid for pid in parent._domain.leaf.pids() if pid != parent.pid])
        assert len(helper) == 1
        for _ in range(10):
            with contextlib.suppress(olsock.OlsockError), parent.child(spare=0, timeout=2.0) as child:
                ask(child, "pids")
            assert spawner.status() != psutil.STATUS_STOPPED
            with innocent.child(spare=0) as other:  # the spawner and others go on
                assert ask(other, "pids") == [1]
        assert eventually(lambda: psutil.pid_exists(helper[0]))
    assert eventually(lambda: not psutil.pid_exists(helper[0]))


def test_a_storm_hits_who_can_be_hit(monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr("olsock.box.TIMEOUT", 2.0)
    with hostile_parent("storm", NESTED_STORM=str(int(signal.SIGKILL))) as parent:
        with pytest.raises(olsock.OlsockError), parent.fork(HANDLERS, "probes:f") as fn:
            for _ in range(1000):
                fn.invoke({"probe": "pids"})


@pytest.mark.timeout(25)  # less than an init is given to answer, which is what close used to take
def test_a_parent_that_stops_its_childs_init_does_not_keep_close_waiting(innocent):
    with hostile_parent("keeps") as parent:
        child = parent.child(spare=1)
        assert eventually(lambda: child._kits._stock._ready)
        os.kill(child._domain.box.pid, signal.SIGSTOP)  # as it may: the init is in a pid namespace below its own
        child.fork(HANDLERS, "probes:f").close()
        assert eventually(lambda: child._kits._stock._pending)  # it waits for a network namespace of that init
        parent.close()
    assert not child.alive


# -- handlers that wait ------------------------------------------------------------------------------------------------


def waiting(how: str, **options: Any) -> olsock.Zygote:
    return olsock.Zygote(["nested"], packages=[HANDLERS], env={"NESTED": how}, blanks=1, spare=0, **options)


def said_hello(zygote: olsock.Zygote) -> bool:
    assert zygote._blanks is not None
    return eventually(lambda: zygote.waiting == 1)


def test_what_a_handler_has_while_it_waits_and_then(filtered):
    with waiting("finish") as zygote:
        assert said_hello(zygote)
        with zygote.fork(HANDLERS, "probes:f") as fn:
            half = fn.invoke({"probe": "nested", "args": ["waiting"]})
            assert (half["status"]["CapEff"], half["status"]["CapBnd"]) == (CAPABILITIES, "0" * 16)
            assert (half["status"]["uids"], half["status"]["dumpable"], half["pids"]) == ([0, 0, 0], 0, [1])
            streams = {"0": "device 1:3", "1": "pipe", "2": "pipe"}
            assert half["fds"] == {**streams, "62": "pipe", "63": "socket"}
            status = fn.invoke({"probe": "status"})
            assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
            assert (status["NoNewPrivs"], status["groups"], status["dumpable"]) == ("1", [], 0)
            assert status["uids"] == [status["uids"][0]] * 3 and status["uids"][0] >= 1000
            # 3 is the end of the log or nothing: see Streams and Channel in olsock/runtime/handler.py
            found = fn.invoke({"probe": "fds"})
            assert {fd: kind for fd, kind in found.items() if fd != "3"} == half["fds"]
        with olsock.Zygote(spare=0) as plain, plain.fork(HANDLERS, "probes:f") as fn:
            assert fn.invoke({"probe": "fds"}) == found


@pytest.mark.parametrize("how", ["refuse", "early"])
def test_one_that_does_not_wait_is_not_used(how):
    with waiting(how) as zygote:
        for _ in range(3):
            assert said_hello(zygote)
            if how == "refuse":
                assert eventually(lambda: not psutil.pid_exists(zygote._blanks._ready[0].child.pid))
            with zygote.fork(HANDLERS, "probes:f") as fn:
                assert fn.invoke({"probe": "pids"}) == [1]


@pytest.mark.parametrize("how", ["started", "deaf"])
def test_one_that_lies_harms_its_own_function_only(how):
    with olsock.Zygote(spare=0) as innocent, waiting(how) as zygote:
        assert said_hello(zygote)
        with zygote.fork(HANDLERS, "probes:f") as fn, pytest.raises((InvocationError, olsock.OlsockError)):
            fn.wait_started(timeout=1.0)
            fn.wait_ready(timeout=1.0)
        assert ask(innocent, "pids") == [1]


def test_nothing_is_had_by_finishing_twice():
    with waiting("again") as zygote:
        assert said_hello(zygote)
        with zygote.fork(HANDLERS, "probes:f") as fn:
            assert fn.invoke({"probe": "nested", "args": ["again"]}) == ""  # it ended, and said nothing
            assert fn.invoke({"probe": "pids"}) == [1]


def test_one_that_keeps_its_rights_has_the_zygotes_and_ends_when_it_is_closed():
    with olsock.Zygote(spare=0) as innocent, waiting("keep") as zygote:
        assert said_hello(zygote)
        with innocent.fork(HANDLERS, "probes:f") as other, zygote.fork(HANDLERS, "probes:f") as beside:
            with contextlib.suppress(olsock.OlsockError):
                beside.wait_started(timeout=5.0)
            assert said_hello(zygote)
            fn = zygote.fork(HANDLERS, "probes:f")
            kept = fn.invoke({"probe": "nested", "args": ["kept"]})
            pid = fn.pid
            assert kept["status"]["CapEff"] == CAPABILITIES and kept["status"]["CapBnd"] == "0" * 16
            assert kept["status"]["Seccomp"] == "2"
            assert (kept["pids"], kept["found"]) == ([1], {})
            assert {outcome for one in kept["remount"].values() for outcome in one[:2]} <= {"EPERM", "ENOSYS"}
            assert set(kept["setns"].values()) <= {"EPERM", "EINVAL"}
            assert kept["cgroup"]["writable"] == [] and kept["above"] == "EINVAL"
            fn.close()
            assert eventually(lambda: not psutil.pid_exists(pid))
            assert other.invoke({"probe": "pids"}) == [1]
