"""How long an idle function stays and when it is due, with made-up times: nothing here waits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock_worker.policy.keepalive import BINS, LEAST_HISTORY, History, KeepAlive, Window

pytestmark = pytest.mark.unit

FIXED = Window(0.0, 600.0)


def learnt(times: list[float], width: float = 60.0) -> History:
    history = History(width)
    for each in times:
        history.add(each)
    return history


def test_without_enough_history_the_window_is_fixed() -> None:
    policy = KeepAlive("hybrid", 600.0, 60.0)
    history = policy.history()
    for _ in range(LEAST_HISTORY - 1):
        assert policy.window(history) == FIXED
        history.add(1810.0)
    assert policy.window(history) == FIXED
    history.add(1810.0)
    assert policy.window(history).learnt


def test_a_regular_function_is_due_before_its_next_call() -> None:
    """Every half an hour: its bin begins at 1,800 s and ends at 1,860 s, with 10 % more on each side."""
    window = learnt([1810.0] * 20).window()
    assert window == Window(pytest.approx(1800 * 0.9), pytest.approx(1860 * 1.1), True)


def test_a_busy_function_stays_from_the_beginning() -> None:
    window = learnt([2.0] * 90 + [130.0] * 10).window()
    assert window == Window(0.0, pytest.approx(180 * 1.1), True)


def test_the_head_and_the_tail_are_percentiles() -> None:
    """Four of a hundred below the 5th, one of a hundred above the 99th: neither counts."""
    window = learnt([10.0] * 4 + [1000.0] * 95 + [12_000.0]).window()
    assert window == Window(pytest.approx(960 * 0.9), pytest.approx(1020 * 1.1), True)
    window = learnt([10.0] * 5 + [1000.0] * 93 + [12_000.0] * 2).window()
    assert window == Window(0.0, pytest.approx(12_060 * 1.1), True)


def test_times_all_over_the_histogram_say_nothing() -> None:
    history = learnt([60.0 * index + 30 for index in range(BINS)] * 3)
    assert history.variation == 0.0 and not history.representative
    assert KeepAlive("hybrid", 600.0, 60.0).window(history) == FIXED


def test_times_that_are_mostly_longer_than_the_histogram_say_nothing() -> None:
    history = learnt([1810.0] * 20 + [60.0 * BINS] * 20)
    assert history.representative
    history.add(60.0 * BINS + 1)
    assert not history.representative and history.window() is None


def test_modes() -> None:
    history = learnt([1810.0] * 20)
    assert KeepAlive("hybrid", 600.0, 60.0).window(history).learnt
    assert KeepAlive("fixed", 600.0, 60.0).window(history) == FIXED
    assert KeepAlive(30, 600.0, 60.0).window(history) == Window(0.0, 30.0)


def test_a_function_that_changes_its_habits_is_learnt_anew() -> None:
    history = learnt([1810.0] * 2000)
    for _ in range(6000):
        history.add(70.0)
    window = history.window()
    assert window is not None and window.keep < 1800, "what was long ago has faded"


def test_windows_scale_with_the_bins() -> None:
    """So that what is tried with short bins holds for long ones."""
    long, short = learnt([1810.0] * 20).window(), learnt([1.810] * 20, 0.06).window()
    assert long and short
    assert (short.prewarm, short.keep) == (pytest.approx(long.prewarm / 1000), pytest.approx(long.keep / 1000))


Times = st.lists(st.floats(0, 20_000), max_size=300)


@given(Times)
def test_any_history_gives_a_window_in_order(times: list[float]) -> None:
    history = learnt(times)
    window = KeepAlive("hybrid", 600.0, 60.0).window(history)
    assert 0 <= window.prewarm < window.keep <= 60 * BINS * 1.1 + 1e-6
    assert window.learnt == history.representative


@given(Times.filter(lambda times: len(times) >= LEAST_HISTORY))
def test_the_window_covers_what_it_says(times: list[float]) -> None:
    """At least 94 of 100 idle times that the histogram holds end within the window (its two percentiles)."""
    history = learnt(times)
    window = history.window()
    if window is not None:
        inside = [each for each in times if each < 60 * BINS]
        late = [each for each in inside if each > window.keep]
        early = [each for each in inside if each < window.prewarm]
        assert len(late) <= 0.01 * len(inside) and len(early) <= 0.05 * len(inside)


@given(Times)
def test_the_variation_is_that_of_the_counts(times: list[float]) -> None:
    history = learnt(times)
    counts = [0] * BINS
    for each in times:
        if each < 60 * BINS:
            counts[int(each / 60)] += 1
    mean = sum(counts) / BINS
    expected = (sum((each - mean) ** 2 for each in counts) / BINS) ** 0.5 / mean if mean else 0.0
    assert history.variation == pytest.approx(expected, abs=1e-9)


def test_it_wastes_less_than_a_fixed_window_and_is_as_often_warm() -> None:
    """What the policy is for, on calls half an hour apart, give or take two minutes."""
    chance = random.Random(3)
    gaps = [chance.gauss(1800, 60) for _ in range(500)]

    def run(policy: KeepAlive) -> tuple[int, float]:
        history, warm, idle = policy.history(), 0, 0.0
        for gap in gaps:
            window = policy.window(history)
            hit = window.prewarm <= gap <= window.keep
            warm += hit
            loaded_until = min(gap, window.keep)
            idle += max(0.0, loaded_until - window.prewarm)
            history.add(gap)
        return warm, idle

    hybrid, fixed = run(KeepAlive("hybrid", 600.0, 60.0)), run(KeepAlive(3600, 600.0, 60.0))
    assert hybrid[0] > 0.9 * fixed[0] and hybrid[1] < 0.25 * fixed[1]
