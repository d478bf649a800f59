"""Bridged sandboxes: what they reach, what they do not, and that the host is afterwards as it was before.

The host is a network namespace of the test's own, with another around it as the outside world. Every denial
stands beside a control that shows the same packet arriving where it may, or arriving once the rule is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from olsock import firewall, network
from olsock.errors import KernelError, SpecError, UnsupportedError
from olsock.sandbox import Sandbox
from support.namespaces import Namespace
from support.require import require

pytestmark = pytest.mark.system

HOST, OUTSIDE, FAR, METADATA = "198.51.100.1", "198.51.100.2", "203.0.113.9", "169.254.169.254"
LAN_HOST, LAN = "192.0.2.1", "192.0.2.2"


class World:
    """A host with an upstream neighbour, which has no route back to sandboxes; and a second network behind the host."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.host, self.outside, self.lan = (stack.enter_context(Namespace()) for _ in range(3))
        self.host.cable("up0", f"{HOST}/24", self.outside, "down0", f"{OUTSIDE}/24")
        self.host.route("default", OUTSIDE)
        self.outside.address("down0", f"{FAR}/32")
        self.outside.address("down0", f"{METADATA}/16")
        self.host.address("up0", "169.254.0.1/16")
        self.host.cable("lan0", f"{LAN_HOST}/24", self.lan, "eth0", f"{LAN}/24")
        self.lan.route("default", LAN_HOST)
        self.outside.route("192.0.2.0/24", HOST)
        self.host.setting("", "ip_forward", "0")  # that of a new namespace may be the machine's

    def connect(self, name: str = "s-1", instance: str = "1-00000000") -> tuple[Namespace, network.Lease]:
        """Make a namespace and connect it."""
        sandbox = self._stack.enter_context(Namespace())
        lease = self.host.run(lambda: network.connect(sandbox.pid, name, instance))
        self._stack.callback(lambda: self.host.run(lease.close))
        return sandbox, lease

    def state(self) -> dict[str, Any]:
        """Everything about the host that connecting could change."""

        def read() -> dict[str, Any]:
            from pyroute2.nftables.main import NFTables

            conf = Path("/proc/sys/net/ipv4/conf")
            settings = {
                str(path): path.read_text()
                for interface in sorted(conf.iterdir())
                for path in sorted(interface.iterdir())
                if path.stat().st_mode & 0o444
            }
            with NFTables(nfgen_family=0) as nft:
                tables = sorted(str(table.get_attr("NFTA_TABLE_NAME")) for table in nft.get_tables())
            return {
                "interfaces": socket.if_nameindex(),
                "settings": settings,
                "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
                "tables": tables,
            }

        return self.host.run(read)


@pytest.fixture
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        world = World(stack)
        try:
            with Namespace() as sandbox:
                world.host.run(lambda: network.connect(sandbox.pid, "probe").close())
        except UnsupportedError as error:
            require(False, str(error))
        yield world


def test_a_sandbox_reaches_the_outside_under_the_hosts_address(world: World) -> None:
    sandbox, lease = world.connect()
    for address in (OUTSIDE, FAR):
        with world.outside.listening(address, 8080) as server:
            assert sandbox.reaches(address, 8080)
            connection, (peer, _) = server.accept()
            connection.close()
            assert peer == HOST  # and not the sandbox's address, to which there is no way back
    assert lease.address in IPv4Network("10.177.0.0/16")
    assert lease.gateway not in (lease.address, None)


def test_the_host_is_not_reachable_under_any_of_its_addresses(world: World) -> None:
    sandbox, lease = world.connect()
    addresses = ("127.0.0.1", HOST, LAN_HOST, str(lease.gateway))
    with world.host.listening("0.0.0.0", 5000):
        assert all(world.host.reaches(address, 5000) for address in addresses)
        assert world.outside.reaches(HOST, 5000) and world.lan.reaches(LAN_HOST, 5000)
        assert all(sandbox.misses(address, 5000) for address in addresses)
        world.host.run(firewall.remove)  # it was the rules, and not the lack of a way
        assert sandbox.reaches(HOST, 5000)


def test_the_host_does_not_answer_udp_or_ping(world: World) -> None:
    sandbox, lease = world.connect()
    with world.host.receiving("0.0.0.0", 5353) as receiver:
        sandbox.send("from the sandbox", HOST, 5353)
        sandbox.send("from the sandbox", str(lease.gateway), 5353)
        world.outside.send("from outside", HOST, 5353)
        assert receiver.recv(100) == b"from outside"
        with pytest.raises(TimeoutError):
            receiver.recv(100)


def test_sandboxes_do_not_reach_each_other(world: World) -> None:
    (first, one), (second, two) = world.connect("s-1"), world.connect("s-2")
    assert one.address != two.address and one.interface != two.interface and one.mac != two.mac
    address = str(one.address)
    with first.listening("0.0.0.0", 8080):
        assert first.reaches(address, 8080)
        assert second.misses(address, 8080)
        # Where br_netfilter is loaded the rules see what passes between ports too: away with them, isolation is enough.
        world.host.run(firewall.remove)
        assert second.misses(address, 8080)

        def join(netlink: Any) -> None:
            for lease in (one, two):
                netlink.brport("set", index=lease.index, isolated=0)

        world.host.netlink(join)
        assert second.reaches(address, 8080)


def test_sandboxes_do_not_reach_each_other_by_way_of_the_host(world: World) -> None:
    (first, one), (second, two) = world.connect("s-1"), world.connect("s-2")
    for sandbox, lease, other in ((first, one, two), (second, two, one)):
        target, gateway = f"{other.address}/32", str(lease.gateway)
        sandbox.netlink(lambda netlink, dst=target, gateway=gateway: netlink.route("add", dst=dst, gateway=gateway))
    with first.listening("0.0.0.0", 8080):
        assert second.misses(str(one.address), 8080)
        world.host.run(firewall.remove)
        assert second.reaches(str(one.address), 8080)


def test_link_local_addresses_are_not_reachable(world: World) -> None:
    sandbox, _ = world.connect()
    with world.outside.listening(METADATA, 80):
        assert world.host.reaches(METADATA, 80)
        assert sandbox.misses(METADATA, 80)
    with world.outside.listening(FAR, 80):
        assert sandbox.reaches(FAR, 80)


def test_nobody_outside_reaches_a_sandbox(world: World) -> None:
    sandbox, lease = world.connect()
    world.outside.route(str(lease.subnet), HOST)
    with sandbox.receiving("0.0.0.0", 9000) as receiver:
        world.outside.send("hello", str(lease.address), 9000)
        with pytest.raises(TimeoutError):
            receiver.recv(100)
        world.host.run(firewall.remove)
        world.outside.send("control", str(lease.address), 9000)
        assert receiver.recv(100) == b"control"


def test_only_the_leased_address_may_send(world: World) -> None:
    sandbox, lease = world.connect()
    other = str(next(address for address in lease.subnet.hosts() if address not in (lease.address, lease.gateway)))
    sandbox.address("eth0", f"{other}/32")
    with world.outside.receiving(OUTSIDE, 9000) as receiver:
        sandbox.send("first", OUTSIDE, 9000)
        assert receiver.recv(100) == b"first"  # and the gateway is known: what follows need not ask for it
        sandbox.send("false", OUTSIDE, 9000, source=other)
        sandbox.send("true", OUTSIDE, 9000)
        assert receiver.recv(100) == b"true"  # what was sent first has not come
        world.host.run(lambda: firewall.unguard_port(lease.interface))
        sandbox.send("false", OUTSIDE, 9000, source=other)
        assert receiver.recv(100) == b"false"


def test_only_the_given_hardware_address_may_send(world: World) -> None:
    sandbox, lease = world.connect()
    bridge_mac = world.host.netlink(
        lambda netlink: netlink.get_links(socket.if_nametoindex(network.BRIDGE))[0].get_attr("IFLA_ADDRESS")
    )

    def change(netlink: Any) -> None:
        index = socket.if_nametoindex("eth0")
        netlink.link("set", index=index, address="02:00:00:00:00:07")
        # It need not ask for the gateway, whose answer the bridge would not send to an address that nobody has.
        netlink.neigh("replace", dst=str(lease.gateway), lladdr=bridge_mac, ifindex=index, state=0x80)

    with world.outside.receiving(OUTSIDE, 9000) as receiver:
        sandbox.send("before", OUTSIDE, 9000)
        assert receiver.recv(100) == b"before"
        sandbox.netlink(change)
        sandbox.send("other", OUTSIDE, 9000)
        with pytest.raises(TimeoutError):
            receiver.recv(100)
        world.host.run(lambda: firewall.unguard_port(lease.interface))
        sandbox.send("control", OUTSIDE, 9000)
        assert receiver.recv(100) == b"control"


def test_a_sandbox_cannot_claim_anothers_address_by_arp(world: World) -> None:
    (first, one), (second, two) = world.connect("s-1"), world.connect("s-2")
    # Or the host would not believe anybody for a second after it has learnt an address.
    locktime = Path(f"/proc/sys/net/ipv4/neigh/{network.BRIDGE}/locktime")
    world.host.run(lambda: locktime.write_text("0"))

    def claim() -> None:
        arp = bytes.fromhex("0001 0800 06 04 0002".replace(" ", ""))
        mac = bytes.fromhex(two.mac.replace(":", ""))
        target = bytes(6) + two.gateway.packed
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0x0806))
            raw.send(b"\xff" * 6 + mac + b"\x08\x06" + arp + mac + one.address.packed + target)

    def neighbour(netlink: Any) -> str | None:
        found = [n for n in netlink.get_neighbours(family=socket.AF_INET) if n.get_attr("NDA_DST") == str(one.address)]
        return found[0].get_attr("NDA_LLADDR") if found else None

    with world.outside.listening(OUTSIDE, 8080):
        assert first.reaches(OUTSIDE, 8080)  # now the host knows the first one
        second.run(claim)
        assert second.reaches(OUTSIDE, 8080)  # and has seen all that the second one sent before
        assert world.host.netlink(neighbour) == one.mac
        world.host.run(lambda: firewall.unguard_port(two.interface))
        second.run(claim)
        assert second.reaches(OUTSIDE, 8080)
        assert world.host.netlink(neighbour) == two.mac


def test_there_is_no_ipv6(world: World) -> None:
    sandbox, _ = world.connect()

    def addresses(interface: str) -> Callable[[Any], list[Any]]:
        return lambda netlink: list(netlink.get_addr(family=socket.AF_INET6, index=socket.if_nametoindex(interface)))

    assert world.host.netlink(addresses("up0"))  # the control: an interface that was left alone
    assert not sandbox.netlink(addresses("eth0"))
    assert not world.host.netlink(addresses(network.BRIDGE))


def test_the_host_is_afterwards_as_it_was(world: World) -> None:
    before = world.state()
    first = world.connect("s-1")[1]
    second = world.connect("s-2")[1]
    assert world.state() != before
    world.host.run(first.close)
    world.host.run(first.close)
    assert network.BRIDGE in dict(map(reversed, world.state()["interfaces"]))
    world.host.run(second.close)
    assert world.state() == before


def test_forwarding_is_turned_on_where_it_is_needed_and_for_nobody_else(world: World) -> None:
    _, lease = world.connect()
    assert world.host.setting("up0", "forwarding") == "1"
    assert world.host.setting("lan0", "forwarding") == "0"
    assert world.host.setting("", "ip_forward") == "0"
    with world.lan.receiving(LAN, 9000) as receiver:
        world.outside.send("through the host", LAN, 9000)
        with pytest.raises(TimeoutError):
            receiver.recv(100)
        world.host.run(lambda: firewall.guard_bridge(network.BRIDGE, lease.subnet, []))
        world.outside.send("control", LAN, 9000)
        assert receiver.recv(100) == b"control"


def test_a_host_that_begins_to_forward_keeps_doing_so(world: World) -> None:
    lease = world.connect()[1]
    world.host.setting("", "ip_forward", "1")
    second = world.connect("s-2")[1]
    with world.lan.receiving(LAN, 9000) as receiver:  # what we kept others from is theirs now
        world.outside.send("hello", LAN, 9000)
        assert receiver.recv(100) == b"hello"
    world.host.run(lease.close)
    world.host.run(second.close)
    assert world.host.setting("up0", "forwarding") == "1"


def test_a_default_route_that_comes_later_is_found(world: World) -> None:
    world.host.netlink(lambda netlink: netlink.route("del", dst="default", gateway=OUTSIDE))
    sandbox, _ = world.connect()
    with world.outside.listening(FAR, 8080):
        assert sandbox.misses(FAR, 8080)
        world.host.route("default", OUTSIDE)
        world.connect("s-2")
        assert sandbox.reaches(FAR, 8080)


def test_a_port_that_the_host_publishes_is_the_hosts(world: World) -> None:
    sandbox, lease = world.connect()
    world.host.setting("lan0", "forwarding", "1")
    _publish(world.host, HOST, LAN)
    with world.lan.listening(LAN, 8080):
        assert sandbox.reaches(LAN, 8080)  # a private network that is not denied
        assert sandbox.misses(HOST, 8080)
        world.host.run(firewall.remove)
        world.lan.netlink(lambda netlink: netlink.route("add", dst=str(lease.subnet), gateway=LAN_HOST))
        assert sandbox.reaches(HOST, 8080)


def _publish(host: Namespace, address: str, target: str) -> None:
    """Rewrite the destination `address` to `target`, as container engines do to publish ports."""
    load = firewall._expression("immediate", dreg=1, data=firewall._value(socket.inet_aton(target)))
    nat = firewall._expression("nat", type=1, family=2, reg_addr_min=1)

    def add() -> None:
        batch = firewall._Batch(2)
        batch.add(0, 0x400, name="published")
        batch.add(3, 0x400, table="published", name="in", hook=firewall._hook(0, -100), type="nat", policy=1)
        rule = [*firewall._header(1, 16, socket.inet_aton(address)), load, nat]
        batch.add(6, 0xC00, table="published", chain="in", expressions=rule)
        batch.send("publish")

    host.run(add)


def test_what_a_dead_process_left_is_removed(world: World) -> None:
    before = world.state()
    first = world.connect("s-1", "1-0000dead")[1]
    second = world.connect("s-1", "2-0000beef")[1]
    assert world.host.run(lambda: network.clean({"3-00000000"})) == []
    assert world.host.run(lambda: network.clean({"1-0000dead"})) == [first.interface]
    assert set(world.host.run(lambda: network.clean(None))) == {second.interface, network.BRIDGE}
    assert world.state() == before
    world.host.run(second.close)
    assert world.host.run(lambda: network.clean(None)) == []


def test_a_lease_that_outlives_its_sandbox_can_be_closed(world: World) -> None:
    before = world.state()
    _, lease = world.connect()
    world.host.netlink(lambda netlink: netlink.link("del", index=lease.index))  # as the kernel does when it ends
    world.host.run(lease.close)
    assert world.host.run(firewall.guarded_ports) == []
    assert world.state() == before


def test_a_bridge_left_half_made_is_made_anew(world: World) -> None:
    world.host.netlink(lambda netlink: netlink.link("add", ifname=network.BRIDGE, kind="bridge"))
    sandbox, _ = world.connect()
    with world.outside.listening(OUTSIDE, 8080):
        assert sandbox.reaches(OUTSIDE, 8080)


def test_somebody_elses_bridge_is_left_alone(world: World) -> None:
    def make(netlink: Any) -> None:
        netlink.link("add", ifname=network.BRIDGE, kind="bridge")
        netlink.link("set", index=socket.if_nametoindex(network.BRIDGE), state="up")

    world.host.netlink(make)
    before = world.state()
    with pytest.raises(UnsupportedError, match="somebody else"):
        world.connect()
    assert world.host.run(lambda: network.clean(None)) == []
    assert world.state() == before


def test_a_small_subnet_runs_out_and_is_free_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(network.SUBNET_VARIABLE, "10.99.0.0/29")
    before = world.state()
    leases = [world.connect(f"s-{number}")[1] for number in range(5)]
    assert len({lease.address for lease in leases}) == 5
    with pytest.raises(KernelError, match="larger subnet") as caught:
        world.connect()
    assert caught.value.errno == errno.EADDRNOTAVAIL
    world.host.run(leases[2].close)
    again = world.connect("s-7")[1]
    assert again.address == leases[2].address
    monkeypatch.setenv(network.SUBNET_VARIABLE, "10.98.0.0/24")
    with pytest.raises(SpecError, match=r"10\.99\.0\.0/29"):
        world.connect()
    for lease in [*leases, again]:
        world.host.run(lease.close)
    assert world.state() == before


def test_a_subnet_that_is_in_use_is_not_taken(world: World) -> None:
    world.host.route("10.177.3.0/24", OUTSIDE)
    assert world.connect()[1].subnet == IPv4Network("10.213.0.0/16")


def test_the_hosts_own_namespace_is_refused(world: World) -> None:
    before = world.state()
    with pytest.raises(SpecError, match="own"):
        world.host.run(lambda: network.connect(world.host.pid, "s-1"))
    with pytest.raises(KernelError, match="no such process|No such file"):
        world.host.run(lambda: network.connect(2**22 + 1, "s-1"))
    assert world.state() == before


def test_a_namespace_that_has_such_an_interface_is_refused_and_nothing_left(world: World) -> None:
    before = world.state()
    with pytest.raises(KernelError, match="eth0"):
        world.host.run(lambda: network.connect(world.lan.pid, "s-1"))
    assert world.state() == before


def test_the_namespace_of_an_unprivileged_user_is_connected(world: World) -> None:
    with Namespace("--user", "--map-root-user") as sandbox, world.outside.listening(OUTSIDE, 8080):
        lease = world.host.run(lambda: network.connect_fd(sandbox.fd, "s-1"))
        assert sandbox.reaches(OUTSIDE, 8080)
        world.host.run(lease.close)
        assert sandbox.misses(OUTSIDE, 8080)


def test_connecting_from_within_an_event_loop(world: World) -> None:
    async def connect(sandbox: Namespace) -> network.Lease:
        return network.connect(sandbox.pid, "s-1")

    with Namespace() as sandbox:
        world.host.run(lambda: asyncio.run(connect(sandbox)).close())


def test_many_at_once(world: World) -> None:
    before = world.state()
    problems: list[BaseException] = []
    seen: list[str] = []

    def come_and_go(sandbox: Namespace) -> None:
        try:
            for _ in range(3):
                with network.connect(sandbox.pid, "s-1") as lease:
                    seen.append(lease.interface)
        except BaseException as error:
            problems.append(error)

    def all_of_them() -> None:
        threads = [threading.Thread(target=come_and_go, args=(sandbox,)) for sandbox in sandboxes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with contextlib.ExitStack() as stack:
        sandboxes = [stack.enter_context(Namespace()) for _ in range(5)]
        world.host.run(all_of_them)
    assert not problems
    assert len(seen) == 15
    assert world.state() == before


def test_a_bridged_sandbox_of_the_library(world: World) -> None:
    program = (
        "import socket, sys\n"
        "for address in sys.argv[1:]:\n"
        "    try:\n"
        "        socket.create_connection((address, 8080), timeout=2).close()\n"
        "        print('reached', address)\n"
        "    except OSError:\n"
        "        print('denied', address)\n"
    )
    before = world.state()

    def run() -> str:
        with Sandbox(network="bridge") as sandbox:
            done = sandbox.run(["/usr/bin/python3", "-c", program, FAR, HOST, METADATA], timeout=30, check=True)
            return done.stdout.decode()

    with world.outside.listening(FAR, 8080), world.host.listening(HOST, 8080), world.outside.listening(METADATA, 8080):
        assert world.host.reaches(HOST, 8080) and world.host.reaches(METADATA, 8080)
        assert world.host.run(run).split("\n")[:3] == [f"reached {FAR}", f"denied {HOST}", f"denied {METADATA}"]
    assert world.state() == before
