"""Network namespaces that a test makes for itself: a host, a world around it, and what is to be sandboxed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

SOON = 0.5  # seconds after which a packet on cables of the same machine is not going to come any more
LATER = 5.0  # and after which it is not even if a neighbour that did not answer had to be asked again first


class Namespace:
    """A network namespace of its own, kept by a process that does nothing."""

    def __init__(self, *options: str) -> None:
        command = ["unshare", "--net", *options, "sh", "-c", "echo; exec sleep 600"]
        self._keeper = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        with self._keeper.stdout as ready:
            ready.readline()  # what comes behind unshare runs: the namespace is there
        self.pid = self._keeper.pid
        self.fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        assert os.fstat(self.fd).st_ino != os.stat("/proc/self/ns/net").st_ino
        self.netlink(lambda netlink: netlink.link("set", index=socket.if_nametoindex("lo"), state="up"))

    def run(self, function: Callable[[], T]) -> T:
        """Call on a thread that is in this namespace, and return or raise what it does."""
        result: list[T] = []
        problem: list[BaseException] = []

        def inside() -> None:
            from pyroute2 import netns

            try:
                netns.setns(self.fd)
                assert os.stat("/proc/thread-self/ns/net").st_ino == os.fstat(self.fd).st_ino
                result.append(function())
            except BaseException as error:
                problem.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return result[0]

    def netlink(self, function: Callable[[Any], T]) -> T:
        """Call with a netlink socket of this namespace."""

        def talk() -> T:
            from pyroute2 import IPRoute

            with IPRoute() as netlink:
                return function(netlink)

        return self.run(talk)

    def cable(self, name: str, address: str, other: Namespace, other_name: str, other_address: str) -> None:
        """Lay a cable to another namespace; addresses are like "198.51.100.1/24"."""
        peer = {"ifname": other_name, "net_ns_fd": other.fd}
        self.netlink(lambda netlink: netlink.link("add", ifname=name, kind="veth", peer=peer))
        self.address(name, address)
        other.address(other_name, other_address)

    def address(self, interface: str, address: str) -> None:
        """Give an interface another address, and set it up."""
        ip, length = address.split("/")

        def add(netlink: Any) -> None:
            index = socket.if_nametoindex(interface)
            netlink.addr("add", index=index, address=ip, prefixlen=int(length))
            netlink.link("set", index=index, state="up")

        self.netlink(add)

    def route(self, to: str, gateway: str) -> None:
        """Add a route."""
        self.netlink(lambda netlink: netlink.route("add", dst=to, gateway=gateway))

    def setting(self, interface: str, name: str, value: str | None = None) -> str:
        """Return an interface's IPv4 setting, after changing it if a value is given; "" is net.ipv4 itself."""
        path = Path("/proc/sys/net/ipv4", *(("conf", interface) if interface else ()), name)
        if value is not None:
            self.run(lambda: path.write_text(value))
        return self.run(path.read_text).strip()

    @contextlib.contextmanager
    def listening(self, address: str, port: int) -> Iterator[socket.socket]:
        """Listen for TCP; the kernel takes connections, nobody needs to accept them."""
        with self.run(lambda: socket.create_server((address, port))) as server:
            server.settimeout(SOON)
            yield server

    @contextlib.contextmanager
    def receiving(self, address: str, port: int) -> Iterator[socket.socket]:
        """Wait for UDP."""
        with self.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver:
            receiver.bind((address, port))
            receiver.settimeout(SOON)
            yield receiver

    def misses(self, address: str, port: int) -> bool:
        """Tell whether no TCP connection can be made, in the time in which there would long be one."""
        return not self.reaches(address, port, SOON)

    def reaches(self, address: str, port: int, timeout: float = LATER) -> bool:
        """Tell whether a TCP connection can be made."""
        try:
            self.run(lambda: socket.create_connection((address, port), timeout=timeout)).close()
        except OSError:
            return False
        return True

    def send(self, text: str, address: str, port: int, source: str = "") -> None:
        """Send a datagram, from another address than the usual if one is given."""
        with self.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.bind((source, 0))
            sender.sendto(text.encode(), (address, port))

    def close(self) -> None:
        """End it, and with it every interface in it."""
        os.close(self.fd)
        self._keeper.kill()
        self._keeper.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
