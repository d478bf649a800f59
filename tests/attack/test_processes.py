"""Other processes, their memory, their sockets, and state that two sandboxes could share (attacks 32 to 38, 43, 45)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

import olsock
from support.places import HANDLERS, open_place, outside

pytestmark = pytest.mark.attack

CANARY = "olsock-canary"


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host that nothing may happen to."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child
        assert child.poll() is None
        child.kill()


@contextlib.contextmanager
def two_places(kind: str):
    """Two sandboxes as near to each other as there are: handlers of one zygote, where it is one."""
    with contextlib.ExitStack() as stack:
        if kind == "zygote":
            zygote = stack.enter_context(olsock.Zygote(spare=0))
            made = [stack.enter_context(zygote.fork(HANDLERS, "probes:f")) for _ in range(2)]
            yield [lambda probe, *args, fn=fn: fn.invoke({"probe": probe, "args": args}) for fn in made]
        else:
            yield [stack.enter_context(open_place(kind)) for _ in range(2)]


# -- 32: signals -------------------------------------------------------------------------------------------------------


def test_processes_of_the_host_cannot_be_signalled(place, bystander):
    numbers = [bystander.pid, os.getpid(), place.inside.pid]
    with subprocess.Popen(["sleep", "1000"]) as victim:
        assert outside("kill_each", [victim.pid]) == {str(victim.pid): "ok"}
    own = place("pids")
    said = place("kill_each", [number for number in numbers if number not in own])
    assert set(said.values()) <= {"ESRCH"}


def test_no_number_reaches_a_process_of_somebody_else(place, bystander):
    assert place("kill_range", 2, bystander.pid + 100) == {}


def test_killing_everybody_kills_only_oneself(kind, bystander):
    with two_places(kind) as (one, two):
        with contextlib.suppress(olsock.InvocationError):
            one("kill_everybody")
        assert two("cwd")


# -- 33: memory and the rest of /proc ----------------------------------------------------------------------------------


def test_the_hosts_root_can_spy(bystander):
    assert set(outside("spy", bystander.pid).values()) == {"ok"}


def test_only_own_processes_are_in_proc(place):
    assert len(place("pids")) <= 2


def test_nobody_can_be_spied_on(place, bystander):
    said = place("spy", bystander.pid)
    assert set(said.values()) <= {"ENOENT", "ESRCH", "EPERM"}
    assert said["ptrace"] in ("ESRCH", "EPERM")


@pytest.mark.parametrize("kind", ["sandbox", "function"])  # a handler from a zygote is its own init
def test_init_cannot_be_spied_on(kind):
    with open_place(kind) as place:
        said = place("spy", 1)
    assert {said[name] for name in ("mem", "environ", "fd", "root")} <= {"EACCES", "EPERM"}
    assert said["ptrace"] == "EPERM"


def test_processes_of_two_sandboxes_do_not_see_each_other(kind):
    with two_places(kind) as (one, two):
        assert one("pids") == two("pids")
        assert two("link", "/proc/self/ns/pid") != one("link", "/proc/self/ns/pid")  # and are two


# -- 34, 35: sockets of the host ---------------------------------------------------------------------------------------


@pytest.fixture
def abstract_listener() -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{CANARY}-{os.getpid()}")
        server.listen()
        yield f"@{CANARY}-{os.getpid()}"


@pytest.fixture(params=["127.0.0.1", "::1"])
def tcp_listener(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        server = socket.create_server((request.param, 0), family=family)
    except OSError as error:
        pytest.skip(f"no {request.param} on this host: {error.strerror}")
    with server:
        yield server.getsockname()[:2]


def test_abstract_sockets_of_the_host_are_not_reached(place, abstract_listener):
    assert outside("connect", abstract_listener) == "ok"
    assert place("connect", abstract_listener) == "ECONNREFUSED"
    assert CANARY not in place("read", "/proc/net/unix")


def test_on_the_hosts_network_they_are(abstract_listener, tcp_listener):
    for kind in ("sandbox", "function"):
        with open_place(kind, network="host") as place:
            assert place("connect", abstract_listener) == "ok"
            assert place("connect_tcp", *tcp_listener) == "ok"


def test_the_hosts_loopback_is_not_reached(place, tcp_listener):
    assert outside("connect_tcp", *tcp_listener) == "ok"
    assert place("connect_tcp", *tcp_listener) in ("ECONNREFUSED", "EADDRNOTAVAIL", "ENETUNREACH")


def test_there_is_no_way_to_other_networks(place):
    for address in ("169.254.169.254", "10.0.0.1", "8.8.8.8", "2001:4860:4860::8888"):
        assert place("connect_tcp", address, 80) == "ENETUNREACH"


# -- 37, 38: information, covert state ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["kcore", "keys", "key-users", "timer_list", "interrupts", "softirqs", "kmsg", "kallsyms"]
)
def test_proc_does_not_tell_about_the_host(place, name):
    said = place("read", f"/proc/{name}")
    assert said in ("", "EACCES", "EPERM", "ENOENT") or (name == "kallsyms" and set(said.split()[0]) == {"0"})


def test_proc_tells_the_host_itself():
    assert "CPU0" in outside("read", "/proc/interrupts")
    assert outside("read", "/proc/keys") not in ("", "EACCES")


def test_there_is_no_sysfs(place):
    assert "sys" not in place("listing", "/")


def test_what_one_sandbox_leaves_another_does_not_find(kind):
    with two_places(kind) as (one, two):
        left = one("leave", "mark")
        assert left.pop("sysv") is True
        found = two("find")
        assert found == {"/tmp/mark": "ENOENT", "/dev/shm/mark": "ENOENT", "sysv": False}


def test_what_a_sandbox_leaves_it_finds_itself(kind):
    with two_places(kind) as (one, _):
        one("leave", "mark")
        found = one("find")
        assert (found["/tmp/mark"], found["/dev/shm/mark"]) == ("mark", "mark")


# -- 43: secrets of one handler in another -----------------------------------------------------------------------------


def test_environment_and_events_of_one_handler_are_not_in_anothers_memory():
    parts = ["olsock-secret-", os.urandom(16).hex()]
    with olsock.Zygote(imports=["ctypes"], spare=0) as zygote:
        with zygote.fork(HANDLERS, "probes:f", env={"SECRET": "".join(parts)}) as one:
            one.invoke({"probe": "cwd", "secret": "".join(parts)})
            assert one.invoke({"probe": "search_memory", "args": [parts]}) > 0
            with zygote.fork(HANDLERS, "probes:f") as two:
                assert two.invoke({"probe": "search_memory", "args": [parts]}) == 0


# -- 45: core files ----------------------------------------------------------------------------------------------------


def test_a_crash_leaves_no_core_file(kind, tmp_path):
    with open_place(kind) as place:
        assert place("limits", "CORE") == {"CORE": [0, 0]}
        said = place("execute", "/bin/sh", "-c", "kill -SEGV $$; :")
        assert "core dumped" not in said
        assert set(place("listing", "/tmp")) <= {"deeper"}
