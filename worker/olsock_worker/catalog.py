"""What the function store has, as the front serves it: LATEST versions always, published ones once they are called.

Each version that is served is a function of its own under a key: its name, and for a published one `:` and the number. What is
asked for with every call (aliases, reservations, rules for events, which versions there are) is kept in memory as the store has
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import msgspec

from olsock_worker import configurations
from olsock_worker.layering import Layering, merged
from olsock_worker.ol_yaml import FunctionError
from olsock_worker.registry import WANTS, Deployment
from olsock_worker.store.records import LATEST, Absent, Alias, EventInvoke, FunctionUrl, Provision, Version

if TYPE_CHECKING:
    from olsock_worker.fleet import Fleet
    from olsock_worker.functions import Function
    from olsock_worker.locks import Locks
    from olsock_worker.settings import Settings
    from olsock_worker.store.code import CodeStore
    from olsock_worker.store.interface import FunctionStore

_PAGE = 500
_AGAIN = 5.0  # seconds after which what there was no room for is tried again
_WAIT = 60.0  # seconds that a call waits for a version that nobody has called before
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class NotReady(Exception):
    """A version cannot be called yet, or not at all; the message says why."""


def key_of(name: str, number: str) -> str:
    """Return the key that a version is served under."""
    return name if number == LATEST else f"{name}:{number}"


class Belongings(NamedTuple):
    """What a function has beside its versions."""

    aliases: dict[str, Alias]
    reserved: int | None
    urls: list[FunctionUrl]
    provisions: dict[str, Provision]  # by qualifier
    event_invokes: dict[str, EventInvoke]  # by qualifier


_NOTHING = Belongings({}, None, [], {}, {})


def _pages(read: Callable[[str], list[_Item]], key: str) -> list[_Item]:
    """Return all of a list of the store that goes on after the key of the last item."""
    found: list[_Item] = []
    while page := read(getattr(found[-1], key) if found else ""):
        found += page
    return found


class Catalog:
    """Keeps what is served equal to what is stored. To be used on one loop; the store has one thread to itself."""

    def __init__(
        self,
        store: FunctionStore,
        code: CodeStore,
        code_fd: int,
        fleet: Fleet,
        locks: Locks,
        settings: Settings,
        deploy: Callable[[Deployment], None],
        remove: Callable[[str], None],
        fail: Callable[[str, str], None],
    ) -> None:
        self.writing = asyncio.Lock()  # held from a change of the store until what is served is the same
        self.turn = asyncio.Lock()  # held while directories of code that runs are made or removed
        self._store, self._code, self._code_fd = store, code, code_fd
        self.layering = Layering(code, code_fd)
        self._fleet, self._locks, self._settings = fleet, locks, settings
        self._deploy, self._remove, self._fail = deploy, remove, fail
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._versions: dict[str, set[str]] = {}  # by name
        self._belongings: dict[str, Belongings] = {}  # by name
        self._urls: dict[str, FunctionUrl] = {}  # those of all, by id
        self.on_change: Callable[[str], None] = lambda _name: None  # what is known of a function has changed
        self._unlocked: dict[str, dict[str, str]] = {}  # function -> published version without a lock -> its code
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the store ----------------------------------------------------------------------------------------------------

    async def ask(self, method: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs) -> _Result:
        """Call a method of the store, in its thread. It is finished even if nobody waits any more."""
        work = partial(method, *given, **named)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    @property
    def store(self) -> FunctionStore:
        """The store, for `ask`."""
        return self._store

    async def load(self) -> None:
        """Serve what is stored."""
        for name, number in await self.ask(self._store.keys):
            self._versions.setdefault(name, set()).add(number)
        after = ""
        while page := await self.ask(self._store.functions, after, _PAGE):
            for version, belongings in zip(page, await self.ask(self._read_all, page), strict=True):
                try:
                    if isinstance(belongings, Exception):
                        raise belongings
                    self._take(version.function, belongings)
                    await self.serve(version)
                except (ValueError, OSError, msgspec.MsgspecError) as error:
                    self._fail(version.function, str(error))  # one that is damaged must not keep the others back
            after = page[-1].function
        await self.collect()

    async def change(
        self, name: str, method: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs
    ) -> _Result:
        """Change something that a function has beside its versions, and take it over. `writing` has to be held."""
        result = await self.ask(method, *given, **named)
        await self.refresh(name)
        return result

    async def refresh(self, name: str) -> None:
        """Take over what the store has about a function beside its versions."""
        self._take(name, await self.ask(self._read, name))

    def _take(self, name: str, belongings: Belongings) -> None:
        for url in self._of(name).urls:
            del self._urls[url.id]
        self._urls |= {url.id: url for url in belongings.urls}
        self._belongings[name] = belongings
        if belongings is _NOTHING:
            del self._belongings[name]
        self._fleet.concurrency.reserve(name, belongings.reserved)
        self.on_change(name)

    def _read_all(self, versions: Sequence[Version]) -> list[Belongings | Exception]:
        """Read for all at once; what is damaged of one is no reason not to read the others'."""

        def read(name: str) -> Belongings | Exception:
            try:
                return self._read(name)
            except (ValueError, OSError, msgspec.MsgspecError) as error:
                return error

        return [read(version.function) for version in versions]

    def _read(self, name: str) -> Belongings:
        store = self._store
        try:
            return Belongings(
                {each.name: each for each in _pages(lambda after: store.aliases(name, None, after, _PAGE), "name")},
                store.reserved(name),
                store.urls.all(name),
                {each.qualifier: each for each in store.provisions.all(name)},
                {
                    each.qualifier: each
                    for each in _pages(lambda after: store.event_invokes.list(name, after, _PAGE), "qualifier")
                },
            )
        except Absent:
            return _NOTHING

    async def collect(self) -> None:
        """Remove code that no version refers to."""
        await self.ask(self._code.collect, self._store.digests)

    def close(self) -> None:
        """Finish what the store is doing, and let go of it."""
        self._thread.submit(self._store.close)
        self._thread.shutdown()

    # -- what is served -----------------------------------------------------------------------------------------------

    @property
    def keys(self) -> set[str]:
        """Every version that is stored, by the key that it is served under."""
        return {key_of(name, number) for name, numbers in self._versions.items() for number in numbers}

    @property
    def names(self) -> set[str]:
        """Every function that is stored."""
        return set(self._versions)

    def _of(self, name: str) -> Belongings:
        return self._belongings.get(name, _NOTHING)

    def __contains__(self, name: str) -> bool:
        return name in self._versions

    async def serve(self, version: Version) -> None:
        """Go over to a version that was stored."""
        self._versions.setdefault(version.function, set()).add(version.number)
        async with self.turn:
            try:
                deployment = await asyncio.get_running_loop().run_in_executor(None, self._prepare, version)
            except OSError as error:
                if error.errno not in WANTS:
                    raise
                self._fail(key_of(version.function, version.number), str(error))
                asyncio.get_running_loop().call_later(_AGAIN, self._serve_again, version.function, version.number)
                return
            if version.number in self._versions.get(version.function, ()):
                self._deploy(deployment)

    def _serve_again(self, name: str, number: str) -> None:
        """Serve a version that is stored, and for which there was no room."""

        async def serve() -> None:
            with contextlib.suppress(Absent):  # deleted meanwhile
                await self.serve(await self.ask(self._store.version, name, number))

        self._begin_task(serve())

    def _begin_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _prepare(self, version: Version) -> Deployment:
        config = configurations.effective(version, self._settings.function)
        key = key_of(version.function, version.number)
        digests = [each.digest for each in version.configuration.layers]
        number = version.code.digest[:20] + (f"-{config.runtime}" if config.runtime else "")
        number += f"-{merged(digests)[:20]}" if digests else ""
        deployment = Deployment(key, number, config, version.requirements)
        self._code.link([version.code.digest], self._code_fd, deployment.path)
        if digests:
            deployment = msgspec.structs.replace(deployment, layers=self.layering.make(deployment.path, digests))
        if version.number != LATEST:
            self._locks.copy(f"{version.function}/{number}", deployment.path)  # a version keeps the packages it had
        return deployment

    async def published(self, version: Version) -> None:
        """Note a version that was published. It is served when it is called."""
        self._versions.setdefault(version.function, set()).add(version.number)
        self._unlocked.setdefault(version.function, {})[version.number] = version.code.digest[:20]
        await self._lock(version.function)

    async def _lock(self, name: str) -> None:
        """Give versions that were published the packages of LATEST, once these are installed: they stay theirs."""
        latest, unlocked = self._fleet.functions.get(name), self._unlocked.get(name, {})
        if latest is None:
            return
        source = latest.deployment
        for number in [each for each, digest in unlocked.items() if source.version.startswith(digest)]:
            del unlocked[number]
            path = f"{key_of(name, number)}/{source.version}"
            await asyncio.get_running_loop().run_in_executor(None, self._locks.copy, source.path, path)

    async def removed(self, name: str, number: str | None) -> None:
        """Serve a version no longer, or no version of a function if none is named."""
        numbers = self._versions.get(name, set())
        for each in list(numbers) if number is None else [number]:
            numbers.discard(each)
            self._remove(key_of(name, each))
        if number is None:
            self._versions.pop(name, None)
            self._unlocked.pop(name, None)
        await self.refresh(name)
        await self.collect()

    # -- calls --------------------------------------------------------------------------------------------------------

    def resolve(self, name: str, qualifier: str | None) -> str:
        """Return the number of the version that a qualifier names; of an alias with weights, one of them by chance."""
        if name not in self._versions:
            raise Absent(f"Function not found: {name}")
        if not qualifier or qualifier in self._versions[name]:
            return qualifier or LATEST
        alias = self._of(name).aliases.get(qualifier)
        if alias is None:
            raise Absent(f"Function not found: {name}:{qualifier}")
        chance = random.random()
        for number, weight in alias.weights.items():
            chance -= weight
            if chance < 0:
                return number
        return alias.version

    def leads_to(self, name: str, qualifier: str) -> str | None:
        """Return the number of the version that a version's number or an alias leads to; None if there is none."""
        alias = self._of(name).aliases.get(qualifier)
        number = qualifier if alias is None else alias.version
        return number if number in self._versions.get(name, ()) else None

    def numbers(self, name: str) -> Collection[str]:
        """Return the numbers of the versions of a function."""
        return self._versions.get(name, ())

    def provisions(self, name: str) -> list[Provision]:
        """Return what is to be kept initialised of a function."""
        return list(self._of(name).provisions.values())

    def provisioned(self, name: str | None = None) -> int:
        """Return how many instances are to be kept initialised, of one function or in all."""
        owners = self._belongings.values() if name is None else [self._of(name)]
        return sum(each.instances for owner in owners for each in owner.provisions.values())

    def url(self, number: str) -> FunctionUrl | None:
        """Return a function URL by its id."""
        return self._urls.get(number)

    def event_invoke(self, name: str, qualifier: str) -> EventInvoke | None:
        """Return the rules for events that are set for a version or an alias."""
        return self._of(name).event_invokes.get(qualifier)

    async def function(self, name: str, number: str) -> Function:
        """Return a version, served. Raises `Absent` and `NotReady`."""
        key = key_of(name, number)
        found = self._fleet.functions.get(key)
        if found is not None:
            return found
        if number == LATEST:
            raise NotReady("the function is being installed, or could not be")
        waiting = self._waiting.setdefault(key, [])
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(waiter)
        try:
            if len(waiting) == 1:
                await self._begin(name, number)
            if key not in self._fleet.functions:
                await asyncio.wait_for(waiter, _WAIT)
        except TimeoutError:
            raise NotReady(f"the version was not installed within {_WAIT:g} s") from None
        finally:
            waiting.remove(waiter)
            if not waiting:
                self._waiting.pop(key, None)
        found = self._fleet.functions.get(key)
        if found is None:
            raise Absent(f"Function not found: {key}")
        return found

    async def _begin(self, name: str, number: str) -> None:
        try:
            await self.serve(await self.ask(self._store.version, name, number))
        except (Absent, FunctionError, OSError) as error:
            self.ready(key_of(name, number), str(error))

    def ready(self, key: str, why: str = "") -> None:
        """Note that a version is served by now, or why it is not."""
        if not why and self._unlocked.get(key):
            self._begin_task(self._lock(key))
        for waiter in self._waiting.get(key, ()):
            if not waiter.done():
                if why:
                    waiter.set_exception(NotReady(why))
                else:
                    waiter.set_result(None)
