"""How many blanks a zygote keeps, and what is due when; times are made up."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock_worker.policy.demand import HALF_LIFE, Demand
from olsock_worker.policy.timers import Timers

pytestmark = pytest.mark.unit


def test_who_is_not_used_keeps_none() -> None:
    demand = Demand(8)
    assert demand.blanks(0.0) == demand.blanks(1e9) == 0 and demand.changes(0.0) == inf


def test_a_burst_is_kept_for_and_then_forgotten() -> None:
    demand = Demand(8, refill=0.1)
    for index in range(4):
        demand.started(100.0 + index * 0.01)
    assert demand.blanks(100.1) == 4
    assert [demand.blanks(100.03 + n * HALF_LIFE) for n in (0.9, 1, 2, 3, 4)] == [3, 2, 1, 0, 0]


def test_starts_further_apart_than_a_refill_need_one() -> None:
    demand = Demand(8, refill=0.1)
    for index in range(100):
        demand.started(index * 0.2)
        assert demand.blanks(index * 0.2) == 1


def test_more_than_the_most_are_never_kept() -> None:
    demand = Demand(3, refill=1.0)
    for index in range(100):
        demand.started(index * 1e-3)
    assert demand.blanks(0.1) == 3
    none = Demand(0)
    none.started(0.0)
    assert none.blanks(0.0) == 0


def test_slow_refills_need_more() -> None:
    demand = Demand(100, refill=0.1)
    for _ in range(20):
        demand.refilled(1.0)
    assert 0.9 < demand.refill <= 1.0
    for index in range(50):
        demand.started(index * 0.05)
    assert demand.blanks(2.5) in (19, 20, 21)


Starts = st.lists(st.floats(0, 50), min_size=1, max_size=200).map(sorted)


@given(Starts, st.integers(1, 32), st.floats(0.001, 5))
def test_the_number_is_bounded_and_falls_until_the_next_start(starts: list[float], most: int, refill: float) -> None:
    demand = Demand(most, refill)
    for now in starts:
        demand.started(now)
        assert 1 <= demand.blanks(now) <= most
    recent = sum(each >= starts[-1] - refill for each in starts)
    assert demand.blanks(starts[-1]) >= min(recent, most)
    now, keep = starts[-1], demand.blanks(starts[-1])
    for _ in range(most + 1):
        change = demand.changes(now)
        if change == inf:
            break
        assert change > now
        assert demand.blanks(change) < keep, "it says when to look again"
        now, keep = change, demand.blanks(change)
    assert keep == 0


# -- timers --------------------------------------------------------------------------------------------------


def test_appointments_come_in_order_and_once() -> None:
    timers: Timers[str] = Timers()
    assert timers.next() == inf and list(timers.due(1e9)) == []
    for holder, when in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        timers.set(holder, when)
    timers.set("a", 2.5)
    timers.cancel("c")
    timers.cancel("nobody")
    assert timers.next() == 2.0
    assert list(timers.due(10.0)) == ["b", "a"] and not len(timers) and timers.next() == inf


Steps = st.lists(
    st.tuples(st.sampled_from(["set", "cancel", "due"]), st.integers(0, 5), st.integers(0, 30)), max_size=300
)


@given(Steps)
def test_timers_are_as_a_dictionary_that_is_searched(steps: list[tuple[str, int, int]]) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, float] = {}
    for what, holder, when in steps:
        if what == "set":
            timers.set(holder, float(when))
            model[holder] = float(when)
        elif what == "cancel":
            timers.cancel(holder)
            model.pop(holder, None)
        else:
            found = list(timers.due(float(when)))
            assert sorted(found) == sorted(each for each in model if model[each] <= when)
            assert [model[each] for each in found] == sorted(model[each] for each in found)
            for each in found:
                del model[each]
        assert timers.next() == min(model.values(), default=inf) and len(timers) == len(model)
        assert len(timers._heap) <= 2 * len(model) + 65
