"""The parts of asynchronous invocations without a worker: the queue on the disk, shared commits, bounds, waits."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from olsock_worker.events import backoff
from olsock_worker.events.backlog import Backlog, QueueFull
from olsock_worker.events.interface import OVERHEAD, Event, Letter, Waiting
from olsock_worker.events.sqlite import FILE, SqliteQueue
from olsock_worker.events.writer import Writer
from olsock_worker.settings import Events, SettingsError, load
from olsock_worker.store.records import StoreError

pytestmark = pytest.mark.unit

NOW = 1_700_000_000.0


class Place:
    """A directory with a queue in it."""

    def __init__(self, directory: Path, settings: Events) -> None:
        self.fd = os.open(directory, os.O_RDONLY)
        self.settings = settings
        self.queue = SqliteQueue(self.fd, settings)

    def again(self) -> SqliteQueue:
        """The queue as the next process finds it."""
        self.queue.close()
        self.queue = SqliteQueue(self.fd, self.settings)
        return self.queue

    def do(self, method: str, *given: Any) -> Any:
        """Do one thing, in a commit of its own."""
        (result,) = self.queue.commit([partial(getattr(self.queue, method), *given)])
        return result


@pytest.fixture
def settings() -> Events:
    return Events(bytes=1 << 20, dead_letter_bytes=1 << 20)


@pytest.fixture
def place(tmp_path: Path, settings: Events) -> Iterator[Place]:
    made = Place(tmp_path, settings)
    yield made
    made.queue.close()
    os.close(made.fd)


def event(number: int, target: str = "f", payload: bytes = b"{}", accepted: float = NOW) -> Event:
    return Event(number, target, f"id-{number}", accepted, payload, b"{}")


def numbers(
    place: Place, target: str, now: float = NOW, most: int = 10, size: int = 1 << 20, held: Any = ()
) -> list[int]:
    return [each.number for each in place.do("due", target, now, most, size, frozenset(held)).events]


# -- the queue ----------------------------------------------------------------------------------------------------


def test_events_come_in_the_order_in_which_they_are_due(place: Place) -> None:
    for number in range(1, 6):
        place.do("add", event(number, accepted=NOW + number))
    place.do("add", event(6, "other", accepted=NOW))
    assert numbers(place, "f", NOW + 3) == [1, 2, 3]
    found = place.do("due", "f", NOW + 3, 2, 1 << 20, frozenset({1}))
    assert ([each.number for each in found.events], found.more, found.later) == ([2, 3], True, NOW + 4)
    place.do("postpone", 1, NOW + 60, 1)
    place.do("remove", 2)
    assert numbers(place, "f", NOW + 59) == [3, 4, 5]
    place.again()
    assert numbers(place, "f", NOW + 60) == [3, 4, 5, 1]
    found = place.do("due", "f", NOW + 60, 10, 1 << 20, frozenset())
    assert (found.events[-1].attempts, found.more, found.later) == (1, False, None)
    assert found.events[0] == event(3, accepted=NOW + 3)


def test_a_look_brings_no_more_bytes_than_asked_for_and_one_event_at_least(place: Place) -> None:
    for number in range(1, 5):
        place.do("add", event(number, payload=bytes(1000)))
    assert numbers(place, "f", size=1) == [1]
    assert numbers(place, "f", size=2 * (1000 + OVERHEAD)) == [1, 2]


def test_what_there_is_is_known_when_it_is_opened(place: Place) -> None:
    place.do("add", event(1, payload=b"1234"))
    place.do("add", event(2, "f:live"))
    place.do("add", event(9, "g"))
    place.do("bury", Letter(event(9, "g"), time.time(), "RetriesExhausted"))
    place.do("end", "f", 2)
    assert place.queue.oldest == NOW
    loaded = place.again().load()
    assert sorted((each.target, each.count) for each in loaded.waiting) == [("f", 1), ("f:live", 1)]
    assert sum(each.size for each in loaded.waiting) == 4 + 2 + 2 * (2 + OVERHEAD)
    assert loaded.last == 9 and loaded.ends == {"f": 2}
    assert place.queue.letters.count == 1 and place.queue.oldest == NOW
    place.do("forget", "f")
    assert place.again().load().ends == {}


def test_a_commit_is_whole_or_nothing(place: Place) -> None:
    def broken() -> None:
        raise ValueError("broken")

    first, letter = partial(place.queue.add, event(1)), Letter(event(2), NOW, "RetriesExhausted")
    with pytest.raises(ValueError):
        place.queue.commit([first, partial(place.queue.bury, letter), broken])
    assert numbers(place, "f") == [] and place.queue.letters.count == place.queue.letters.size == 0
    with pytest.raises(StoreError):
        place.queue.commit([first, first])
    assert place.queue.commit([first, lambda: 7]) == [None, 7]
    assert numbers(place, "f") == [1]


def test_dead_letters_are_listed_revived_and_discarded(place: Place) -> None:
    died = time.time()
    for number, target in ((1, "f"), (2, "f:live"), (3, "ff"), (4, "g")):
        place.do("add", event(number, target))
        place.do("bury", Letter(event(number, target), died + number, "RetriesExhausted", "KeyError", "'x'"))
    assert numbers(place, "f") == []
    assert [each.event.number for each in place.do("dead", "", 0, 3)] == [1, 2, 3]
    assert [each.event.number for each in place.do("dead", "", 3, 3)] == [4]
    assert [each.event.target for each in place.do("dead", "f", 0, 9)] == ["f", "f:live"]
    found = place.do("letter", "id-2")
    assert found == Letter(event(2, "f:live"), died + 2, "RetriesExhausted", "KeyError", "'x'")
    revived = place.do("revive", "id-2", 5, NOW + 9)
    assert (revived.number, revived.accepted, revived.attempts, revived.id) == (5, NOW + 9, 0, "id-2")
    assert numbers(place, "f:live", NOW + 9) == [5] and place.do("letter", "id-2") is None
    assert place.do("revive", "id-2", 6, NOW) is None
    assert (place.do("discard", "id-4"), place.do("discard", "id-4")) == (True, False)
    assert place.queue.letters.count == 2 and place.again().letters.count == 2


@pytest.mark.parametrize(
    "settings",
    [
        Events(bytes=1 << 20, dead_letters=3, dead_letter_bytes=1 << 20),
        Events(bytes=1 << 20, dead_letter_bytes=3 * (OVERHEAD + 4)),
    ],
    ids=["count", "bytes"],
)
def test_dead_letters_are_bounded_and_the_oldest_go(place: Place) -> None:
    now = time.time()
    for number in range(1, 7):
        place.do("bury", Letter(event(number), now + number, "RetriesExhausted"))
    assert [each.event.number for each in place.do("dead", "", 0, 9)] == [4, 5, 6]
    assert (place.queue.letters.count, place.queue.letters.dropped) == (3, 3)


def test_dead_letters_go_when_they_are_old(place: Place) -> None:
    now = time.time()
    place.do("bury", Letter(event(1), now - place.settings.dead_letter_age + 60, "RetriesExhausted"))
    place.do("expire")
    assert place.queue.letters.count == 1
    place.do("discard", "id-1")
    place.do("bury", Letter(event(2), now - place.settings.dead_letter_age - 60, "RetriesExhausted"))
    assert (place.queue.letters.count, place.queue.letters.size, place.queue.letters.dropped) == (0, 0, 1)


def test_a_queue_of_another_version_is_left_alone(place: Place, tmp_path: Path) -> None:
    place.queue._db.pragma("user_version", 99)
    with pytest.raises(StoreError, match=f"{FILE} has format 99"):
        place.again()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).write_bytes(b"no database at all" * 100)
    fd = os.open(tmp_path / "other", os.O_RDONLY)
    with pytest.raises(StoreError):
        SqliteQueue(fd, place.settings)
    os.close(fd)


WRITING = """
import os, sys
from functools import partial
from olsock_worker.events.interface import Event
from olsock_worker.events.sqlite import SqliteQueue
from olsock_worker.settings import Events

queue = SqliteQueue(os.open(sys.argv[1], os.O_RDONLY), Events(bytes=1 << 30, dead_letter_bytes=1 << 20))
number = queue.load().last
while True:
    batch = range(number + 1, number + 6)
    works = [partial(queue.add, Event(each, "f", str(each), 0.0, b"{}", b"{}")) for each in batch]
    works += [partial(queue.remove, number - 7)]
    queue.commit(works)
    number = batch[-1]
    os.write(1, b"%d\\n" % number)
"""


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    chance, last = random.Random(5), 0
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 40)):
                last = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split(b"\n")[:-1]
        last = int(rest[-1]) if rest else last
        fd = os.open(tmp_path, os.O_RDONLY)
        queue = SqliteQueue(fd, Events(bytes=1 << 30, dead_letter_bytes=1 << 20))
        (found,) = queue.commit([partial(queue.due, "f", 1.0, 1_000_000, 1 << 40, frozenset())])
        assert queue.load().last in (last, last + 5), "an acknowledged batch is lost, or one is there in part"
        there = {each.number for each in found.events}  # type: ignore[attr-defined]
        assert not there & {number - 7 for number in range(5, last, 5)}, "what was removed is back"
        queue.close()
        os.close(fd)


# -- shared commits -----------------------------------------------------------------------------------------------


class Slow:
    """A queue whose commits last until they are let through."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.through = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.closed = False

    def commit(self, works: Sequence[Callable[[], object]]) -> list[object]:
        self.batches.append(len(works))
        asyncio.run_coroutine_threadsafe(self.through.wait(), self.loop).result(10.0)
        return [work() for work in works]

    def close(self) -> None:
        self.closed = True


def test_what_comes_during_a_commit_shares_the_next() -> None:
    async def run() -> None:
        queue = Slow()
        writer = Writer(queue)  # type: ignore[arg-type]
        order: list[int] = []
        for number in range(1, 8):
            writer.submit(partial(int, number), order.append)
        assert order == []
        queue.through.set()
        assert await writer.ask(lambda: 8) == 8
        assert order == [1, 2, 3, 4, 5, 6, 7] and queue.batches == [1, 7]
        await writer.close()
        assert queue.closed

    asyncio.run(run())


def test_all_of_a_commit_that_fails_have_failed_and_the_next_goes_on() -> None:
    async def run() -> None:
        queue = Slow()
        queue.through.set()
        writer = Writer(queue)  # type: ignore[arg-type]
        results: list[object] = []

        def broken() -> None:
            raise StoreError("disk full")

        def bug() -> None:
            raise KeyError("bug")

        writer.submit(int, results.append)
        writer.submit(int, results.append)
        writer.submit(broken, results.append)
        with pytest.raises(StoreError, match="disk full"):
            await writer.ask(int)
        assert results[0] == 0 and all(isinstance(each, StoreError) for each in results[1:]) and len(results) == 3
        with pytest.raises(StoreError, match="bug"):
            await writer.ask(bug)
        assert await writer.ask(lambda: 5) == 5
        await writer.close()

    asyncio.run(run())


# -- bounds, waits, settings --------------------------------------------------------------------------------------


def test_the_backlog_is_bounded() -> None:
    backlog = Backlog(Events(count=10, bytes=1000, share=0.5))
    for _ in range(5):
        lane = backlog.take("f", 100)
    for given in (("f", 1), ("g", 501)):
        if given[0] == "f":
            with pytest.raises(QueueFull, match="of this function wait"):
                backlog.take(*given)
        else:
            with pytest.raises(QueueFull, match="bytes"):
                backlog.take(*given)
    other = backlog.take("g", 500)
    assert (backlog.count, backlog.size) == (6, 1000)
    with pytest.raises(QueueFull, match="bytes"):
        backlog.take("h", 1)
    backlog.give(other, 500)
    assert [each.target for each in backlog] == ["f"], "a lane without events is no lane"
    for name in "abcde":
        backlog.take(name, 1)
    with pytest.raises(QueueFull, match="10 events wait"):
        backlog.take("x", 1)
    backlog.load(Waiting("f:live", 3, 30))
    assert {each.target for each in backlog.of("f")} == {"f", "f:live"} and lane in backlog.of("f")


def test_waits_grow_to_a_limit_and_are_spread() -> None:
    for times, middle in ((1, 1.0), (2, 2.0), (5, 16.0)):
        waits = [backoff.wait(1.0, times, 300.0) for _ in range(300)]
        assert min(waits) >= middle * 0.75 and max(waits) <= middle * 1.25
        assert max(waits) - min(waits) > middle * 0.3
    assert all(200 <= backoff.wait(1.0, times, 300.0) <= 300.0 for times in (9, 60, 10_000))


@pytest.mark.parametrize(
    "text",
    ["retries = 3", "age = 21601", "age = 0", "share = 0", "count = 0", 'payload = "x"', "nonsense = 1", "backoff = 0"],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "worker.toml"
    path.write_text(f"[events]\n{text}\n")
    with pytest.raises(SettingsError):
        load(str(path), {})
    path.write_text("[events]\nretries = 1\npayload = '1M'\n")
    assert (load(str(path), {}).events.retries, load(str(path), {}).events.payload) == (1, 1 << 20)
