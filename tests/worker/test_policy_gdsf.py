"""Who has to go when there is no room: greedy-dual-size-frequency as its papers state it."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock_worker.policy.gdsf import LEAST_SIZE, MOST_USES, Gdsf, Worth

pytestmark = pytest.mark.unit


class Thing:
    def __init__(self, worth: Worth) -> None:
        self.worth = worth


def things(policy: Gdsf, *values: tuple[float, int]) -> list[Thing]:
    return [Thing(policy.new(cost, size)) for cost, size in values]


def evict(policy: Gdsf, kept: list[Thing]) -> Thing:
    victim = policy.least(kept)
    assert victim is not None
    policy.evicted(victim.worth)
    kept.remove(victim)
    return victim


def test_nothing_of_nothing() -> None:
    assert Gdsf().least([]) is None


def test_the_cheaper_the_larger_and_the_less_used_goes_first() -> None:
    policy = Gdsf()
    cheap, dear = things(policy, (1.0, 1 << 20), (2.0, 1 << 20))
    assert policy.least([dear, cheap]) is cheap
    large, small = things(policy, (1.0, 2 << 20), (1.0, 1 << 20))
    assert policy.least([small, large]) is large
    once, twice = things(policy, (1.0, 1 << 20), (1.0, 1 << 20))
    policy.used(twice.worth)
    assert policy.least([twice, once]) is once


def test_a_value_is_milliseconds_per_mebibyte() -> None:
    worth = Worth(cost=30.0, size=10 << 20, clock=5.0)
    worth.uses = 4
    assert worth.value() == 5.0 + 4 * 30.0 / 10


def test_sizes_below_what_the_kernel_counts_are_alike() -> None:
    assert Worth(1.0, 0).value() == Worth(1.0, LEAST_SIZE).value() < Worth(1.0, LEAST_SIZE - 1).value() + 1


def test_equals_go_in_the_order_of_their_last_use() -> None:
    policy = Gdsf()
    kept = things(policy, *[(1.0, 1 << 20)] * 4)
    kept[0].worth.uses = kept[1].worth.uses = 2
    first, second = kept[0], kept[1]
    evict(policy, kept), evict(policy, kept)  # the clock has gone on
    policy.used(first.worth)
    first.worth.uses -= 1
    assert evict(policy, kept) is second


Operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.floats(0, 1e4), st.integers(0, 1 << 34)),
        st.tuples(st.just("use"), st.integers(0, 1000), st.just(0)),
        st.tuples(st.just("resize"), st.integers(0, 1000), st.integers(0, 1 << 34)),
        st.tuples(st.just("evict"), st.just(0), st.just(0)),
    ),
    max_size=120,
)


@given(Operations)
def test_the_clock_only_rises_and_nobody_kept_is_worth_less(operations: Iterable[tuple[str, float, int]]) -> None:
    policy = Gdsf()
    kept: list[Thing] = []
    for what, a, b in operations:
        clock = policy.clock
        if what == "add":
            kept.append(Thing(policy.new(a, b)))
        elif kept and what == "use":
            before = kept[int(a) % len(kept)].worth.value()
            policy.used(kept[int(a) % len(kept)].worth)
            assert kept[int(a) % len(kept)].worth.value() >= before, "a use never makes a thing worth less"
        elif kept and what == "resize":
            kept[int(a) % len(kept)].worth.size = b
        elif kept:
            victim = evict(policy, kept)
            assert policy.clock == max(clock, victim.worth.value())
            assert all(each.worth.value() >= victim.worth.value() for each in kept)
        assert policy.clock >= clock
        assert policy.new(0.0, 0).value() == policy.clock, "a new thing begins at the clock"


@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(0, 1 << 30)), min_size=1, max_size=30), st.integers(0, 30))
def test_the_least_is_the_first_of_the_least(values: list[tuple[float, int]], uses: int) -> None:
    policy = Gdsf()
    kept = things(policy, *values)
    for _ in range(uses):
        policy.used(kept[uses % len(kept)].worth)
    expected = sorted(enumerate(kept), key=lambda each: (each[1].worth.value(), each[0]))[0][1]
    assert policy.least(kept) is expected


@given(st.floats(1, 1e4), st.integers(1 << 20, 1 << 30))
def test_what_is_never_used_again_goes_in_the_end(cost: float, size: int) -> None:
    """Ageing: however dear and however much used, it does not outlive a stream of things that are used once."""
    policy = Gdsf()
    old = Thing(policy.new(cost, size))
    for _ in range(10 * MOST_USES):
        policy.used(old.worth)
    kept = [old]
    step = policy.new(cost, size).value() - policy.clock
    evictions = 0
    while old in kept:
        kept += things(policy, (cost, size))
        evict(policy, kept)
        evictions += 1
        assert evictions <= MOST_USES + 1
    assert policy.clock >= MOST_USES * step * (1 - 1e-9)


def test_it_keeps_more_hits_than_the_longest_idle_first() -> None:
    """What the policy is for: of a fixed room, the milliseconds saved on a skewed load, against LRU."""
    sizes = [1 << 20, 8 << 20, 64 << 20]
    costs = [5.0, 50.0, 500.0]
    room = 256 << 20

    def saved(by_age: bool) -> float:
        chance, policy = random.Random(7), Gdsf()
        kept: dict[int, Thing] = {}
        total, now = 0.0, 0
        last: dict[int, int] = {}
        for now in range(8000):
            name = min(int(chance.paretovariate(0.9)), 120)
            size, cost = sizes[name % 3], costs[(name // 3) % 3]
            last[name] = now
            if name in kept:
                policy.used(kept[name].worth)
                total += cost
                continue
            while sum(each.worth.size for each in kept.values()) + size > room:
                if by_age:
                    del kept[min(kept, key=lambda each: last[each])]
                    continue
                victim = policy.least(kept.values())
                assert victim is not None
                policy.evicted(victim.worth)
                kept = {key: each for key, each in kept.items() if each is not victim}
            kept[name] = Thing(policy.new(cost, size))
        return total

    assert saved(by_age=False) > saved(by_age=True)
