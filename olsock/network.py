"""A way out for sandboxes that ask for one: a bridge that they share, a cable and an address for each.

All processes of the library on a host share one bridge, `olsock0`. The kernel's own list of interfaces is the
only record of who uses it: the host's end of a sandbox's cable is named after the leased address
(`olsock-0ab10005` is 10.177.0.5), so that no two can have the same, and bears the process of the library that
made it as its alias. The bridge's alias says what was changed of the host for it. Who removes the last cable
removes the bridge and undoes that.

What sandboxes may reach by it is decided in `olsock.firewall`: anything but each other, this host under any of
its addresses, and link-local addresses. Private networks that this host can reach, they can reach too.

Sending packets on takes forwarding on the bridge and, for the answers, on the interfaces of the default routes.
Where the host does not forward already, it is turned on for these alone, not for the host (net.ipv4.ip_forward
stays), and the rules keep everybody else from using it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import Any, Self, TypeVar

from olsock import firewall, rundir
from olsock.errors import KernelError, OlsockError, SpecError, UnsupportedError

BRIDGE = "olsock0"
PREFIX = "olsock-"  # of the host's ends; with the eight digits of an address it fills the 15 characters that fit
INSIDE = "eth0"
SUBNET_VARIABLE = "OLSOCK_BRIDGE_SUBNET"
# Tried in this order; the first that overlaps with no route of this host is taken.
SUBNETS = ("10.177.0.0/16", "10.213.0.0/16", "172.29.0.0/16", "192.168.177.0/24")

_MARK = "olsock"  # first word of the alias of what is ours
_ATTEMPTS = 1024  # ports that a bridge of Linux can have: no more addresses can be taken
_NOARP, _NTF_MASTER = 0x40, 0x04  # state and flag of what a bridge knows of a station
_IFF_UP = 0x1
_MAIN_TABLE = 254

T = TypeVar("T")


@dataclass
class Lease:
    """A sandbox's connection: its address and both ends of its cable. Closing it takes them away."""

    interface: str  # the host's end
    index: int
    address: IPv4Address
    gateway: IPv4Address
    subnet: IPv4Network
    mac: str
    _closed: bool = field(default=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def close(self) -> None:
        """Remove the cable and its rules, and the bridge if it was the last. Idempotent; the sandbox may be gone."""
        with self._lock:
            if not self._closed:
                _apart(lambda: _disconnect([(self.interface, self.index)]))
                self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(pid: int, name: str, instance: str = "") -> Lease:
    """Connect the network namespace of process `pid`, which the caller keeps from being reused; see `connect_fd`."""
    path = f"/proc/{pid}/ns/net"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open network namespace", path, error.errno or 0) from None
    try:
        return connect_fd(fd, name, instance)
    finally:
        os.close(fd)


def connect_fd(netns_fd: int, name: str, instance: str = "") -> Lease:
    """Give a network namespace an address, a default route and a way out, until the lease is closed.

    `name` and `instance` are written on the interface, for people and for `clean`. The bridge is made if it is
    not there.
    """
    own, other = os.stat("/proc/thread-self/ns/net"), os.fstat(netns_fd)
    if (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino):
        raise SpecError("network", "bridge", "a sandbox with a network namespace of its own, not the host's")
    lease = _apart(lambda: _connect(netns_fd, " ".join((_MARK, instance or f"pid-{os.getpid()}", name))))
    try:
        _apart(lambda: _configure(lease), netns_fd)
        _apart(lambda: _settle(lease.index))
    except BaseException:
        lease.close()
        raise
    return lease


def clean(instances: set[str] | None) -> list[str]:
    """Remove the cables that these instances left, or all of them, and the bridge if none remains; return the names."""
    if BRIDGE not in _interfaces() and not any(name.startswith(PREFIX) for name in _interfaces()):
        return []  # without loading the netlink library
    return _apart(lambda: _clean(instances))


def _clean(instances: set[str] | None) -> list[str]:
    with _locked(), _netlink() as netlink:
        before = _interfaces()
        for index, name in socket.if_nameindex():
            if name.startswith(PREFIX) and _left(_alias(netlink, index), instances):
                _unplug(netlink, name, index)
        for name in firewall.guarded_ports():
            if name not in _interfaces():
                firewall.unguard_port(name)
        _remove_bridge_if_unused(netlink)
        return sorted(name for name in before - _interfaces() if name == BRIDGE or name.startswith(PREFIX))


def _left(alias: list[str], instances: set[str] | None) -> bool:
    """Tell whether a cable is one to remove. One that bears no name was left half made: its maker held the lock."""
    return not alias or (alias[0] == _MARK and (instances is None or alias[1] in instances))


# The host's side


def _connect(netns_fd: int, alias: str) -> Lease:
    with _locked(), _netlink() as netlink:
        try:
            bridge, subnet = _bridge(netlink)
            return _plug(netlink, bridge, subnet, netns_fd, alias)
        except BaseException:
            _remove_bridge_if_unused(netlink)
            raise


def _plug(netlink: Any, bridge: int, subnet: IPv4Network, netns_fd: int, alias: str) -> Lease:
    """Make a cable from the bridge into the namespace; its inner end is left down and without address."""
    mac = _random_mac()
    for address in _candidates(subnet):
        interface = f"{PREFIX}{int(address):08x}"
        peer = {"ifname": INSIDE, "address": mac, "net_ns_fd": netns_fd}
        try:
            netlink.link("add", ifname=interface, kind="veth", peer=peer)
        except Exception as error:
            # The name is what reserves the address: whoever has the interface has the address.
            if getattr(error, "code", None) == errno.EEXIST and interface in _interfaces():
                continue
            raise
        index = socket.if_nametoindex(interface)
        try:
            netlink.link("set", index=index, ifalias=alias)
            _ipv6_off(interface)
            firewall.guard_port(interface, bytes.fromhex(mac.replace(":", "")), address)
            netlink.link("set", index=index, master=bridge)
            # Isolated ports reach the bridge but not one another. The bridge is told where the sandbox is and so has
            # nothing to learn from it, and nothing that is meant for others to send it.
            netlink.brport("set", index=index, isolated=1, learning=0, unicast_flood=0, mcast_flood=0)
            netlink.fdb("add", ifindex=index, lladdr=mac, state=_NOARP, flags=_NTF_MASTER)
            netlink.link("set", index=index, state="up")
        except BaseException:
            _unplug(netlink, interface, index)
            raise
        return Lease(interface, index, address, subnet[1], subnet, mac)
    raise KernelError("lease an address for a sandbox", str(subnet), errno.EADDRNOTAVAIL, _full(subnet))


def _candidates(subnet: IPv4Network) -> Iterator[IPv4Address]:
    """Yield addresses to try, from a random one on: a new sandbox seldom has the address of one that has just gone."""
    count = subnet.num_addresses - 3  # not the network's, the bridge's and the broadcast address
    start = secrets.randbelow(count)
    for step in range(min(count, _ATTEMPTS)):
        yield subnet[2 + (start + step) % count]


def _full(subnet: IPv4Network) -> str:
    return f"all are taken; a larger subnet can be named in {SUBNET_VARIABLE} when no sandbox uses {BRIDGE}"


def _settle(index: int) -> None:
    """Have the kernel act on it that the cable's ends are up, so that the first packet is not lost.

    It does that a little later by itself, but newer kernels do it at once for who asks about the interface.
    """
    with _netlink() as netlink:
        netlink.get_links(index)


def _disconnect(ports: list[tuple[str, int]]) -> None:
    with _locked(), _netlink() as netlink:
        for interface, index in ports:
            _unplug(netlink, interface, index)
        _remove_bridge_if_unused(netlink)


def _unplug(netlink: Any, interface: str, index: int) -> None:
    # By index: the kernel removes the cable when the sandbox's namespace ends, and then somebody else may already have
    # the name. In that case the rules of that name are theirs as well.
    _ignoring(errno.ENODEV, netlink.link, "del", index=index)
    if interface not in _interfaces():
        firewall.unguard_port(interface)


# The bridge


def _bridge(netlink: Any) -> tuple[int, IPv4Network]:
    """Return index and subnet of the bridge, made if need be, with the rules and forwarding that the host needs now."""
    wanted = _configured_subnet()
    _remove_half_made_bridge(netlink)
    if BRIDGE not in _interfaces():
        _make_bridge(netlink, wanted or _free_subnet(netlink))
    index = socket.if_nametoindex(BRIDGE)
    alias = _alias(netlink, index)
    if len(alias) < 2 or alias[0] != _MARK:
        raise UnsupportedError(f'network="bridge" needs the interface name {BRIDGE}, and somebody else has it')
    subnet, borrowed = IPv4Network(alias[1]), alias[2:]
    if wanted not in (None, subnet):
        raise SpecError(SUBNET_VARIABLE, str(wanted), f"{subnet}, which {BRIDGE} has as long as sandboxes use it")
    needed = [] if _forwarding_everywhere() else [name for name in _egress(netlink) if not _forwarding(name)]
    kept = [] if _forwarding_everywhere() else borrowed
    if needed or kept != borrowed:
        _borrow(netlink, index, subnet, [*kept, *needed])
    return index, subnet


def _make_bridge(netlink: Any, subnet: IPv4Network) -> None:
    # With an address of its own: a bridge otherwise takes its ports' lowest and changes it when they come and go.
    netlink.link("add", ifname=BRIDGE, kind="bridge", address=_random_mac(), br_stp_state=0, br_mcast_snooping=0)
    index = socket.if_nametoindex(BRIDGE)
    try:
        _ipv6_off(BRIDGE)
        # Before anything can come off the bridge; the alias last, so that a bridge without it is one left half made.
        firewall.guard_bridge(BRIDGE, subnet, [])
        for setting, value in (
            ("forwarding", "1"),
            ("arp_ignore", "1"),
            ("send_redirects", "0"),
            ("rp_filter", "1"),
        ):
            _write_setting(BRIDGE, setting, value)
        netlink.addr("add", index=index, address=str(subnet[1]), prefixlen=subnet.prefixlen)
        netlink.link("set", index=index, ifalias=f"{_MARK} {subnet}")
        netlink.link("set", index=index, state="up")
    except BaseException:
        netlink.link("del", index=index)
        firewall.remove()
        raise


def _borrow(netlink: Any, index: int, subnet: IPv4Network, interfaces: list[str]) -> None:
    """Turn forwarding on for these interfaces, for the bridge's sake alone.

    The alias first, so that who is killed half-way is cleaned up after; then the rules that keep others out.
    """
    netlink.link("set", index=index, ifalias=" ".join([_MARK, str(subnet), *interfaces]))
    firewall.guard_bridge(BRIDGE, subnet, interfaces)
    for name in interfaces:
        _write_setting(name, "forwarding", "1")


def _remove_half_made_bridge(netlink: Any) -> None:
    """Remove the bridge of one who was killed while making it: one that is down and bears no name."""
    if BRIDGE in _interfaces():
        bridge = netlink.get_links(socket.if_nametoindex(BRIDGE))[0]
        if not bridge.get_attr("IFLA_IFALIAS") and not bridge["flags"] & _IFF_UP:
            netlink.link("del", index=bridge["index"])


def _remove_bridge_if_unused(netlink: Any) -> None:
    _remove_half_made_bridge(netlink)
    present = _interfaces()
    if BRIDGE not in present or any(name.startswith(PREFIX) for name in present):
        return
    index = socket.if_nametoindex(BRIDGE)
    alias = _alias(netlink, index)
    if alias[:1] != [_MARK]:
        return
    # Where forwarding has meanwhile been turned on for the whole host, it is no longer ours to turn off.
    if not _forwarding_everywhere():
        for name in alias[2:]:
            if name in present:
                _write_setting(name, "forwarding", "0")
    netlink.link("del", index=index)
    firewall.remove()


def _configured_subnet() -> IPv4Network | None:
    text = os.environ.get(SUBNET_VARIABLE)
    if not text:
        return None
    try:
        subnet = IPv4Network(text)
    except ValueError:
        subnet = None
    if subnet is None or not subnet.is_private or subnet.is_loopback or subnet.is_link_local or subnet.prefixlen > 29:
        raise SpecError(SUBNET_VARIABLE, text, 'a private IPv4 network of at least 8 addresses, like "10.177.0.0/16"')
    return subnet


def _free_subnet(netlink: Any) -> IPv4Network:
    taken = []
    for route in netlink.get_routes(family=socket.AF_INET):
        if route["dst_len"]:
            taken.append(IPv4Network((route.get_attr("RTA_DST"), route["dst_len"])))
    for text in SUBNETS:
        subnet = IPv4Network(text)
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise UnsupportedError(
        f'network="bridge" needs a private network, and this host has routes into all of {", ".join(SUBNETS)}: '
        f"name one in {SUBNET_VARIABLE}"
    )


def _egress(netlink: Any) -> list[str]:
    """Return the interfaces of the default routes: what answers to sandboxes come in by."""
    indexes: set[int] = set()
    for route in netlink.get_routes(family=socket.AF_INET):
        if route["dst_len"] == 0 and (route.get_attr("RTA_TABLE") or route["table"]) == _MAIN_TABLE:
            hops = [hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or []]
            indexes.update(hops or [route.get_attr("RTA_OIF") or 0])
    names = dict(socket.if_nameindex())
    return sorted(names[index] for index in indexes if index in names and names[index] != BRIDGE)


# The sandbox's side


def _configure(lease: Lease) -> None:
    """Set up the inner end. Runs in the sandbox's network namespace, on a thread that ends there."""
    with _netlink() as netlink:
        _ipv6_off(INSIDE)
        index = socket.if_nametoindex(INSIDE)
        netlink.link("set", index=socket.if_nametoindex("lo"), state="up")
        netlink.addr("add", index=index, address=str(lease.address), prefixlen=lease.subnet.prefixlen)
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst="default", gateway=str(lease.gateway), oif=index)
        netlink.get_links(index)  # as in _settle


# What both sides need


def _apart(function: Callable[[], T], netns_fd: int | None = None) -> T:
    """Call on a thread of its own, in another network namespace if one is given, and return or raise what it does.

    A thread can enter a namespace without the process, and the netlink library can run its event loop there even if the
    caller is inside one.
    """
    result: list[T] = []
    problem: list[BaseException] = []

    def run() -> None:
        try:
            if netns_fd is not None:
                _enter(netns_fd)
            result.append(function())
        except BaseException as error:
            problem.append(_typed(error))

    thread = threading.Thread(target=run, name="olsock-network", daemon=True)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return result[0]


def _enter(netns_fd: int) -> None:
    from pyroute2 import netns

    try:
        netns.setns(netns_fd)
    except OSError as error:
        hint = "needs CAP_SYS_ADMIN in the user namespace that owns it"
        raise KernelError("setns(network namespace)", "", error.errno or 0, hint) from None


def _typed(error: BaseException) -> BaseException:
    if isinstance(error, OlsockError):
        return error
    number = getattr(error, "code", None) or getattr(error, "errno", None)
    if not isinstance(error, Exception) or not isinstance(number, int):
        return error
    if number == errno.EOPNOTSUPP:
        return UnsupportedError('network="bridge" needs CONFIG_BRIDGE and CONFIG_VETH in the kernel')
    hints = {
        errno.EPERM: "needs CAP_NET_ADMIN in the host's network namespace",
        errno.EXFULL: "a bridge of Linux has 1023 ports at most",
        errno.EEXIST: f"the namespace already has an interface called {INSIDE}",
    }
    return KernelError("connect a sandbox to the bridge", BRIDGE, number, hints.get(number, ""))


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    """Talk to the kernel of the calling thread's network namespace."""
    from pyroute2 import IPRoute  # 0.1 s, that only bridged sandboxes are to cost

    with IPRoute() as netlink:
        yield netlink


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keep other threads and processes from making or removing the bridge meanwhile."""
    run_fd = rundir.open_run()
    try:
        fd = os.open("network.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=run_fd)
    finally:
        os.close(run_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _alias(netlink: Any, index: int) -> list[str]:
    links = netlink.get_links(index)
    return ((links[0].get_attr("IFLA_IFALIAS") or "") if links else "").split()


def _ignoring(number: int, function: Callable[..., object], *args: Any, **options: Any) -> None:
    try:
        function(*args, **options)
    except Exception as error:
        if getattr(error, "code", None) != number:
            raise


def _random_mac() -> str:
    """Return a hardware address of the kind that nobody assigns: local, for one station."""
    first = secrets.randbits(8) & 0xFE | 0x02
    return bytes([first, *secrets.token_bytes(5)]).hex(":")


def _ipv6_off(interface: str) -> None:
    if os.path.isdir("/proc/sys/net/ipv6"):
        _write(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "1")


def _forwarding_everywhere() -> bool:
    return _read("/proc/sys/net/ipv4/ip_forward") == "1"


def _forwarding(interface: str) -> bool:
    return _read(f"/proc/sys/net/ipv4/conf/{interface}/forwarding") == "1"


def _write_setting(interface: str, setting: str, value: str) -> None:
    _write(f"/proc/sys/net/ipv4/conf/{interface}/{setting}", value)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, value: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        hint = "a sandbox on the bridge needs this setting; is /proc/sys mounted read-only?"
        raise KernelError("write", path, error.errno or 0, hint) from None
