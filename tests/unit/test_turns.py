"""Turns: so many at one time, the others in order, and nobody's turn is lost however who waited for it goes away."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from olsock.errors import DeadlineError, ZygoteError
from olsock.turns import Turns
from support.eventually import eventually

pytestmark = pytest.mark.unit


def test_the_next_comes_when_one_has_gone() -> None:
    turns = Turns(2, 10)
    asked = [turns.ask() for _ in range(4)]
    assert [turn.done() for turn in asked] == [True, True, False, False]
    turns.give_back()
    assert [turn.done() for turn in asked] == [True, True, True, False]
    turns.give_back()
    assert asked[3].done() and turns.waiting == 0


def test_too_many_are_refused_at_once() -> None:
    turns = Turns(1, 1)
    turns.ask()
    waiting = turns.ask()
    with pytest.raises(DeadlineError, match="1 calls run and 1 wait"):
        turns.ask()
    turns.give_up(waiting)
    assert not turns.ask().done(), "there is room in the queue again"


def test_who_gives_up_is_passed_over() -> None:
    turns = Turns(1, 10)
    turns.ask()
    first, second = turns.ask(), turns.ask()
    turns.give_up(first)
    turns.give_back()
    assert second.done() and first.cancelled()


def test_a_turn_that_came_too_late_goes_to_the_next() -> None:
    turns = Turns(1, 10)
    turns.ask()
    first, second = turns.ask(), turns.ask()
    turns.give_back()
    assert first.done() and not second.done()
    turns.give_up(first)
    assert second.done()


def test_cancelled_from_outside() -> None:
    """As asyncio does with a future that it wraps."""
    turns = Turns(1, 10)
    turns.ask()
    first, second = turns.ask(), turns.ask()
    assert first.cancel()
    turns.give_back()
    assert second.done()
    turns.give_up(first)
    turns.give_back()
    assert turns.ask().done()


def test_closing_refuses_who_waits_and_who_comes() -> None:
    turns = Turns(1, 10)
    turns.ask()
    waiting = turns.ask()
    turns.close(lambda: ZygoteError("closed"))
    with pytest.raises(ZygoteError, match="closed"):
        waiting.result(0)
    with pytest.raises(ZygoteError, match="closed"):
        turns.ask()
    turns.give_up(waiting)
    turns.give_back()
    turns.close(lambda: ZygoteError("closed"))


def test_no_turn_is_lost_between_threads() -> None:
    """Some give up after no time at all; in the end as many turns are free as there were."""
    turns = Turns(3, 1000)
    lock, running, most = threading.Lock(), 0, 0

    def work(seed: int) -> None:
        nonlocal running, most
        chance = random.Random(seed)
        for _ in range(200):
            turn = turns.ask()
            try:
                turn.result(chance.choice([0.0, 0.0005, 5.0]))
            except TimeoutError:
                turns.give_up(turn)
                continue
            with lock:
                running += 1
                most = max(most, running)
            with lock:
                running -= 1
            turns.give_back()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 1 <= most <= 3
    assert [turns.ask().done() for _ in range(4)] == [True, True, True, False]


def test_no_turn_is_lost_between_tasks() -> None:
    turns = Turns(2, 1000)

    async def one(number: int) -> bool:
        turn = turns.ask()
        try:
            await asyncio.wait_for(asyncio.wrap_future(turn), [0.0, 0.001, 10.0][number % 3])
        except (TimeoutError, asyncio.CancelledError):
            turns.give_up(turn)
            return False
        try:
            await asyncio.sleep(0.0005 * (number % 2))  # where it may be cancelled, too
        finally:
            turns.give_back()
        return True

    async def main() -> None:
        tasks = [asyncio.create_task(one(number)) for number in range(200)]
        await asyncio.sleep(0.005)
        for task in tasks[::5]:
            task.cancel()
        assert any(await asyncio.gather(*tasks, return_exceptions=True))

    asyncio.run(main())
    assert eventually(lambda: turns.waiting == 0)
    assert [turns.ask().done() for _ in range(3)] == [True, True, False]
