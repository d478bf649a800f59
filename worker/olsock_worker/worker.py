"""`olsock-worker up`, in the order in which it must happen: lock, clean up after a crash, bind, split, serve, clear."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from time import perf_counter
from typing import NoReturn

import prctl

import olsock
from olsock import host as owned
from olsock import interpreters, leftovers
from olsock_worker import broker_protocol, privileges
from olsock_worker.broker import Broker
from olsock_worker.broker_protocol import Hello
from olsock_worker.installs import Installs
from olsock_worker.logs import WorkerLog
from olsock_worker.planner import Planner
from olsock_worker.settings import Http, Settings, SettingsError
from olsock_worker.state import Running, StateDirectory

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_LONGEST_KEEPALIVE = 32_767  # seconds that the kernel takes


def up(settings: Settings) -> int:
    """Run a worker until it is told to stop; return the exit status."""
    begun = perf_counter()
    if os.geteuid() != 0:
        raise SettingsError(
            "olsock-worker up needs root: it makes sandboxes; what reads requests gives root up at once"
        )
    _check_paths(settings)
    uid, gid = privileges.account(settings.user)
    log = WorkerLog("broker")
    state = StateDirectory(settings.state)
    try:
        state.acquire()
    except OSError as error:
        raise SettingsError(f"state={settings.state!r}: {error.strerror}") from None
    try:
        removed = leftovers.clean()
        if removed:
            log("warning", "leftovers_removed", removed=[str(each) for each in removed])
        prctl.set_name("olsock-broker")
        privileges.raise_open_files()
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(_listen(settings.host, settings.port, settings.http, "host, port"))]
            if settings.control_listen:
                host, _, port = settings.control_listen.rpartition(":")
                listeners.append(
                    stack.enter_context(_listen(host.strip("[]"), int(port), settings.http, "control_listen"))
                )
            return _serve(settings, state, listeners, (uid, gid), log, begun)
    finally:
        state.release()


def _check_paths(settings: Settings) -> None:
    if not os.path.isdir(settings.registry):
        raise SettingsError(f"registry={settings.registry!r}: not a directory")
    for package in settings.packages:
        if not os.path.isabs(package) or not os.path.isdir(package):
            raise SettingsError(f"packages={package!r}: not an absolute path of a directory")
    if settings.pythons:
        try:
            interpreters.find(settings.pythons)
        except olsock.SpecError as error:
            raise SettingsError(f"pythons: {error}") from None


def _listen(host: str, port: int, http: Http, field: str) -> socket.socket:
    """Bind while still root, so that a port below 1024 will do, and so that a taken one is known at once."""
    try:
        if port > 65_535:
            raise OverflowError("a port is at most 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _ask_for_life(listener, http)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise SettingsError(f"{field}: {host!r}, {port}: {why}") from None
    return listener


def _ask_for_life(listener: socket.socket, http: Http) -> None:
    """Have the kernel give up connections whose other end has vanished without a word; accepted ones inherit this.

    Half of the time without a packet is waited for, and in the other half four probes are sent. What is sent and not
    acknowledged has as long, but no less than a client has for reading: the kernel counts a full window as well.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (
        (socket.TCP_KEEPIDLE, http.peer_timeout / 2),
        (socket.TCP_KEEPINTVL, http.peer_timeout / 8),
    ):
        listener.setsockopt(socket.IPPROTO_TCP, option, min(max(1, round(seconds)), _LONGEST_KEEPALIVE))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    unread = max(http.peer_timeout, http.write_timeout)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(unread * 1000))


def _serve(
    settings: Settings,
    state: StateDirectory,
    listeners: list[socket.socket],
    ids: tuple[int, int],
    log: WorkerLog,
    begun: float,
) -> int:
    host, port = listeners[0].getsockname()[:2]
    control = listeners[-1].getsockname()[:2]
    try:
        code_fd, logs_fd, locks_fd, store_fd = state.directories(*ids)
    except OSError as error:
        raise SettingsError(f"state={settings.state!r}: {error.strerror}") from None
    try:
        local = state.listen()
    except OSError as error:
        raise SettingsError(f"state={settings.state!r}: no socket can be made there: {error.strerror}") from None
    store = settings.package_store or str(state.path / "packages")
    planner = _planner(settings, state, log)
    installs = Installs(settings, store, _index_environment(), locks_fd, log)
    ours, theirs = broker_protocol.socketpair()
    # A fresh program rather than a fork: nothing that root has in memory is in the front's.
    front = subprocess.Popen(
        [sys.executable, "-I", "-m", "olsock_worker.front", str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        cwd="/",
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
        process_group=0,  # Ctrl-C goes to us, and we tell it to drain
    )
    try:
        theirs.close()
        sockets = listeners[0].fileno(), local.fileno()
        separate = [each.fileno() for each in listeners[1:]]
        fds = (*sockets, code_fd, logs_fd, locks_fd, store_fd, *separate)
        broker_protocol.send(ours, Hello(settings, *ids), fds)
        for listener in listeners:
            listener.close()
        local.close()
        os.close(logs_fd)
        ours.setblocking(False)

        def on_serving() -> None:
            state.write(Running(os.getpid(), host, port, *control))
            log("info", "ready", address=f"http://{_bracketed(host)}:{port}", seconds=round(perf_counter() - begun, 3))
            _notify(b"READY=1")

        async def serve() -> int:
            return await Broker(settings, ours, front, code_fd, store_fd, installs, planner, on_serving, log).run()

        status = asyncio.run(serve())
        if installs.busy:
            _abandon(state, status)
        return status
    finally:
        front.kill()
        front.wait()
        ours.close()
        local.close()
        os.close(code_fd)
        os.close(locks_fd)
        os.close(store_fd)


def _planner(settings: Settings, state: StateDirectory, log: WorkerLog) -> Planner:
    try:
        return Planner(settings, state.path, log)
    except (olsock.PlanError, OSError) as error:
        raise SettingsError(f"tree={settings.tree!r}: {error}") from None


def _abandon(state: StateDirectory, status: int) -> NoReturn:
    """End while packages are being installed: Python would wait for those threads, and they may wait for an index."""
    state.release()
    owned.close()
    os._exit(status)


def _index_environment() -> dict[str, str]:
    """Return what our own environment says about package indexes. It may hold secrets, so it is the broker's alone."""
    return {name: value for name, value in os.environ.items() if name.startswith("UV_") or name in _CERTIFICATES}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _notify(text: bytes) -> None:
    """Tell systemd, if it started us with Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        if address.startswith("@"):
            address = "\0" + address[1:]
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.sendto(text, address)
