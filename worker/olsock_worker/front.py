"""The unprivileged process: HTTP, queues, policy.

Started by the broker with one socket; never holds privilege while it reads a byte from anyone but the broker.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import sys
from functools import partial

import prctl
import uvloop

from olsock_worker import broker_protocol, privileges
from olsock_worker.addresses import Addresses
from olsock_worker.aws.access import Access
from olsock_worker.aws.control import Control
from olsock_worker.broker_client import BrokerClient, Reply
from olsock_worker.broker_protocol import Deploy, Evict, Hello, Remove, Serving, ZygoteState
from olsock_worker.bytecodes import Bytecodes
from olsock_worker.catalog import Catalog
from olsock_worker.deployer import Deployer
from olsock_worker.doors import Door
from olsock_worker.downloads import Downloads
from olsock_worker.edge import Edge
from olsock_worker.events.dispatcher import Dispatcher
from olsock_worker.events.sqlite import SqliteQueue
from olsock_worker.events.targets import Targets
from olsock_worker.fleet import Fleet
from olsock_worker.functions import Function
from olsock_worker.locks import Locks
from olsock_worker.logs import FunctionLog, WorkerLog, prune
from olsock_worker.measures import Measures
from olsock_worker.nodes import Nodes
from olsock_worker.provisioning import Provisioning
from olsock_worker.registry import WANTS, Changes, Deployment, Registry
from olsock_worker.routes import Routes
from olsock_worker.settings import Settings, fitting
from olsock_worker.store.code import CodeStore
from olsock_worker.store.records import StoreError
from olsock_worker.store.sqlite import SqliteStore
from olsock_worker.uploads import Uploads
from olsock_worker.urls import Urls

_BACKLOG = 1024
_LAME = 1.0  # seconds in which a draining front still answers on connections that are open already
_SOON = 0.02  # seconds that a line of a log waits for others
_AGAIN = 0.1  # seconds after which the broker is told what it could not be told
_LOST_BROKER, _BAD_STORE = 3, 4  # exit statuses


class Front:
    """Owns everything of this process."""

    def __init__(
        self,
        settings: Settings,
        sock: socket.socket,
        listener: socket.socket,
        local: socket.socket,
        code_fd: int,
        logs_fd: int,
        locks_fd: int,
        store_fd: int,
        control: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._logs = logs_fd
        self._log = WorkerLog("front")
        self._broker = BrokerClient(sock, self._on_zygote, self._on_drain, self._on_broker_end)
        self._fleet = Fleet(settings, self._broker)
        self._nodes = Nodes(self._fleet.nodes, self._fleet.values, self._evict)
        self._locks = Locks(locks_fd)
        self._deployer = Deployer(self._broker, self._locks, self._on_deployable, self._on_failure)
        self._bytecodes = Bytecodes(self._broker, code_fd, self._is_current, self._log)
        self._routes = Routes(self._fleet, self._deployer, self._locks, Measures(self._broker), self._log)
        self._local, self._control = local, control
        calls_at = listener.getsockname()[:2]
        control_at = calls_at if control is None else control.getsockname()[:2]
        access = Access(settings.credentials, calls_at[0])
        apart = control is not None
        self._edge = self._opened(Door(access, control=not apart))
        self._routes.edge = self._edge
        self._local_edge = self._opened(Door(None))
        self._control_edge = self._opened(Door(Access(settings.credentials, control_at[0]), calls=not apart))
        self._registry = Registry(code_fd, settings)
        code = CodeStore(store_fd)
        self._catalog = Catalog(
            *(SqliteStore(store_fd), code, code_fd, self._fleet, self._locks, settings),
            *(self._deploy, self._remove, self._on_failure),
        )
        self._provisioning = Provisioning(self._catalog, self._fleet)
        uploads = Uploads(self._broker, code, settings)
        self._routes.downloads = Downloads(code, self._routes.refuse, self._log)
        self._targets = Targets(self._catalog, self._fleet, self._deployer, self._routes.failures)
        self._events = Dispatcher(SqliteQueue(store_fd, settings.events), self._targets, settings, self._log)
        self._routes.events = self._events.figures
        self._routes.control = Control(
            *(self._catalog, uploads, code, self._fleet, self._deployer, self._routes.failures, self._registry),
            addresses=Addresses(calls_at, control_at, settings.url_base),
            downloads=self._routes.downloads,
            provisioning=self._provisioning,
            log=self._log,
            events=self._events,
            logs_fd=logs_fd,
        )
        self._routes.urls = Urls(self._catalog, self._fleet, access, self._routes.refuse, self._log)
        self._garbage: set[str] = set()  # versions that were current once
        self._stopping = asyncio.Event()
        self._servers: list[asyncio.Server] = []

    def _opened(self, door: Door) -> Edge:
        return Edge(self._settings.http, partial(self._routes.handle, door=door), self._routes.refused)

    async def run(self) -> None:
        """Serve until told to drain."""
        loop = self._loop
        self._broker.attach(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_drain)
        await self._catalog.load()
        await self._look()
        backlog = min(_BACKLOG, self._settings.http.connections)
        for edge, listener in ((self._edge, self._listener), (self._control_edge, self._control)):
            if listener is not None:
                self._servers.append(await loop.create_server(edge.protocol, sock=listener, backlog=backlog))
        self._servers.append(await loop.create_unix_server(self._local_edge.protocol, sock=self._local))
        self._events.start()
        # What has been made so far lives as long as the process: no collection need look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        self._broker.request(Serving(id=self._broker.number()), _ignore)
        watching = asyncio.create_task(self._watch())
        await self._stopping.wait()
        watching.cancel()
        await self._drain()

    # -- the registry -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.registry_check)
            try:
                await self._look()
            except Exception as error:  # a registry that cannot be read now may be readable later
                self._log("error", "registry", error=repr(error))

    async def _look(self) -> None:
        fd = await self._open_registry()
        if fd < 0:
            return
        try:
            changes = await asyncio.get_running_loop().run_in_executor(None, self._registry.look, fd)
        except OSError as error:
            self._log("error", "registry", error=str(error), hint=f"must be readable by uid {os.getuid()}")
            return
        finally:
            os.close(fd)
        self._apply(changes)
        self._targets.known = True
        await self._collect()

    async def _open_registry(self) -> int:
        reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_reply(message: Reply, fds: list[int]) -> None:
            if not fds:
                self._log("error", "registry", error=getattr(message, "message", ""))
            if reply.done():
                broker_protocol.close_all(fds)
            else:
                reply.set_result(fds[0] if fds else -1)

        if not self._broker.request(broker_protocol.Registry(id=self._broker.number()), on_reply):
            return -1
        return await reply

    def _apply(self, changes: Changes) -> None:
        for deployment in changes.deployed:
            if deployment.name in self._catalog:
                self._garbage.add(deployment.path)
                self._on_failure(
                    deployment.name, "a function of this name is deployed over the control API: delete that first"
                )
            else:
                self._deploy(deployment)
        for name, why in changes.failed.items():
            if name not in self._catalog:
                self._abandon(name)
            self._on_failure(name, why)
        for name in changes.removed:
            if name not in self._catalog:
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Serve a function no longer."""
        self._abandon(name)
        self._routes.failures.pop(name, None)
        function = self._fleet.functions.pop(name, None)
        if function is not None:
            self._log("info", "removed", function=name)
            self._broker.request(Remove(id=self._broker.number(), name=name), _ignore)
            self._retire(function.deployment)
            function.close()
        if ":" not in name:
            self._events.end(name)

    def _deploy(self, deployment: Deployment) -> None:
        """Go over to a version that is new, as soon as what it requires is there."""
        self._abandon(deployment.name)
        function = self._fleet.functions.get(deployment.name)
        if function is not None and function.deployment.is_same(deployment):
            function.error = ""  # it was changed, and changed back
        else:
            self._deployer.deploy(deployment)

    def _abandon(self, name: str) -> None:
        """Give up a version that was being installed, or failed to be: it is not the newest any more."""
        pending = self._deployer.forget(name)
        if pending is not None:
            self._garbage.add(pending.path)

    def _on_deployable(self, deployment: Deployment) -> None:
        functions = self._fleet.functions
        function = functions.get(deployment.name)
        self._routes.failures.pop(deployment.name, None)
        if function is None:
            settings = self._settings
            sizes = int(settings.log_bytes), settings.log_files
            log = FunctionLog(self._logs, deployment.name, *sizes, partial(self._loop.call_later, _SOON))
            functions[deployment.name] = Function(deployment, self._fleet, log, self._log)
        else:
            self._retire(function.deployment)
            function.update(deployment)
        self._log("info", "deployed", function=deployment.name, version=deployment.version)
        self._announce(deployment)
        self._bytecodes.want(deployment)
        self._catalog.ready(deployment.name)
        self._events.ready(deployment.name.partition(":")[0])
        self._provisioning.served(deployment.name)

    def _is_current(self, deployment: Deployment) -> bool:
        function = self._fleet.functions.get(deployment.name)
        return function is not None and function.deployment is deployment

    def _announce(self, deployment: Deployment) -> None:
        """Have the broker keep zygotes that are good for this version."""
        config = deployment.config
        message = Deploy(
            id=self._broker.number(),
            name=deployment.name,
            code=deployment.path,
            handler=config.handler,
            env=config.environment,
            installation=deployment.installation,
            layers=deployment.layers,
            imports=config.imports,
            zygote=config.zygote,
            contract=config.contract,
            root_path=deployment.root_path,
            snapshot=config.snapshot,
            alone=not config.reuse_sandbox,
        )
        if not self._broker.request(message, _ignore):
            asyncio.get_running_loop().call_later(_AGAIN, self._announce_again, deployment)

    def _announce_again(self, deployment: Deployment) -> None:
        if self._is_current(deployment):
            self._announce(deployment)

    def _on_failure(self, name: str, why: str) -> None:
        self._log("error", "not_deployed", function=name, why=why)
        self._catalog.ready(name, why)
        function = self._fleet.functions.get(name)
        if function is not None:
            function.error = why
        else:
            self._routes.failures[name] = why

    def _retire(self, deployment: Deployment) -> None:
        """Note that a version is not current any more. The broker keeps what its instances use."""
        self._garbage.add(deployment.path)
        self._deployer.release(deployment)

    async def _collect(self) -> None:
        """Remove what is not used any more, while no version is being made ready."""
        async with self._catalog.turn:
            await self._collect_code()

    async def _collect_code(self) -> None:
        """Remove the code of versions that are neither current nor running, and the locks of functions that are gone."""
        current = {each.deployment.path for each in self._fleet.functions.values()} | self._deployer.paths
        running = {each.deployment.path for each in self._fleet.instances}
        starting = {f"{each.name}/{version}" for each in self._fleet.functions.values() for version in each.live}
        loop = asyncio.get_running_loop()
        for path in self._garbage - running - starting:
            self._garbage.discard(path)
            if path not in current:
                await loop.run_in_executor(None, self._registry.forget, path)
        await loop.run_in_executor(None, self._catalog.layering.collect, current | running | starting)
        await loop.run_in_executor(None, self._locks.keep, self._registry.names | self._catalog.keys)
        await loop.run_in_executor(None, prune, self._logs, int(self._settings.logs_bytes))

    # -- the broker ---------------------------------------------------------------------------------------------------

    def _evict(self, key: str) -> None:
        self._broker.request(Evict(id=self._broker.number(), key=key), _ignore)

    def _on_zygote(self, state: ZygoteState) -> None:
        self._nodes.update(state)
        self._routes.gains.note(self._routes.zygotes.get(state.key), state)
        if state.state == "gone":
            self._routes.zygotes.pop(state.key, None)
        else:
            self._routes.zygotes[state.key] = state

    def _on_broker_end(self) -> None:
        os.write(2, b"olsock front: the broker has gone\n")
        os._exit(_LOST_BROKER)  # without it nothing can be cleaned up here, and sandboxes are its children

    # -- the end ------------------------------------------------------------------------------------------------------

    def _on_drain(self) -> None:
        self._stopping.set()

    async def _drain(self) -> None:
        """Accept no more, answer what came, give up after the grace."""
        self._log("info", "draining", running=self._fleet.running)
        self._events.stop()
        edges = self._edge, self._local_edge, self._control_edge
        for edge in edges:
            edge.drain()
        await asyncio.sleep(0.05)  # connections that the kernel has accepted for us are taken over meanwhile
        for server in self._servers:
            server.close()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() - begun < self._settings.drain:
            if loop.time() - begun >= min(_LAME, self._settings.drain):
                for edge in edges:
                    edge.close_idle()
            if not any(map(len, edges)) and not self._fleet.running:
                break
            await asyncio.sleep(0.02)
        for function in self._fleet.functions.values():
            function.log.close()
        self._log("info", "drained", cut=sum(edge.busy for edge in edges))
        await self._events.close()
        await loop.run_in_executor(None, self._catalog.close)


def _ignore(_reply: Reply, _fds: list[int]) -> None:
    """Take an answer that says nothing."""


def main() -> int:
    """Take over from the broker: fd 0 of the arguments is the socket."""
    prctl.set_name("olsock-front")
    sock = socket.socket(fileno=int(sys.argv[1]))
    hello, fds = broker_protocol.receive_reply(sock)
    if not isinstance(hello, Hello):
        return _LOST_BROKER
    settings = fitting(hello.settings, privileges.raise_open_files())
    privileges.drop(hello.uid, hello.gid)
    if settings != hello.settings:
        told = {"connections": settings.http.connections, "instances": settings.instances}
        WorkerLog("front")("warning", "few_open_files", hint="raise the limit of open files (LimitNOFILE)", **told)
    listener, local = socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1])
    listener.setblocking(False)
    local.setblocking(False)
    code_fd, logs_fd, locks_fd, store_fd, *more = fds[2:]
    control = socket.socket(fileno=more[0]) if more else None
    if control is not None:
        control.setblocking(False)

    async def serve() -> None:
        await Front(settings, sock, listener, local, code_fd, logs_fd, locks_fd, store_fd, control).run()

    try:
        uvloop.run(serve())
    except (StoreError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (*WANTS, errno.EACCES, errno.EPERM):
            raise
        hint = f"all of STATE/store has to belong to uid {os.getuid()}, on a disk with room"
        WorkerLog("front")("error", "store", error=str(error), hint=hint)
        os._exit(_BAD_STORE)
    sys.stdout.flush()
    os._exit(0)  # nothing is left to do, and threads reading a dead disk must not hold the exit up


if __name__ == "__main__":
    sys.exit(main())
