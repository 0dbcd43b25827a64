"""The clock serves the engine's queue and SimPy's in SimPy's order, whoever scheduled what."""

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from llmsim.serving.clock import FOREVER, Clock
from llmsim.serving.wake import Wake


def test_ties_go_by_priority_then_by_order_and_processes_stand_among_them():
    clock = Clock()
    seen = []

    def walker(env):
        yield env.timeout(5)
        seen.append(("process", env.now, clock.now))

    clock.env.process(walker(clock.env))
    for name, priority in (("late", 16), ("first", 0), ("second", 0)):
        clock.at(
            Wake(lambda _, name=name: seen.append((name, clock.env.now, clock.now))), priority, 5
        )
    clock.run()
    assert seen == [("first", 5, 5), ("second", 5, 5), ("process", 5, 5), ("late", 5, 5)]


def test_a_wake_is_moved_and_stands_in_the_queue_once():
    clock = Clock()
    seen = []

    def look(event):
        seen.append((clock.now, event is wake))
        if clock.now == 3:
            clock.at(wake, 0, 9)

    wake = Wake(look)
    for time in (7, 5, 8, 3):
        clock.at(wake, 0, time)
    assert clock.next_ns() == 3
    clock.run()
    assert seen == [(3, True), (9, True)]
    assert clock.next_ns() == FOREVER


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(0, 2)), max_size=60))
def test_wakes_fire_in_order_however_often_they_were_moved(settings):
    clock = Clock()
    fired = []
    wakes = [Wake(lambda _, name=name: fired.append(name)) for name in range(10)]
    due = {}
    for order, (name, time, priority) in enumerate(settings):
        clock.at(wakes[name], priority, time)
        due[name] = (time, priority, order)
    assert clock.next_ns() == (min(due.values())[0] if due else FOREVER)
    clock.run()
    assert fired == sorted(due, key=due.get)


def test_a_run_ends_when_its_event_has_been_handled():
    clock = Clock(simpy.Environment(10))
    done = clock.env.event()
    seen = []
    clock.at(Wake(lambda _: done.succeed()), 0, 20)
    clock.at(Wake(lambda _: seen.append("same instant, earlier priority")), 0, 20)
    clock.at(Wake(lambda _: seen.append("after")), 16, 20)
    clock.run(until=done)
    assert seen == ["same instant, earlier priority"]
    assert clock.now == clock.env.now == 20


def test_a_failure_that_nobody_handles_is_raised():
    clock = Clock()

    def broken(env):
        yield env.timeout(1)
        raise ValueError("broken")

    clock.env.process(broken(clock.env))
    with pytest.raises(ValueError, match="broken"):
        clock.run()


MOVES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 2)), max_size=3)


@given(MOVES, st.lists(MOVES, max_size=25))
def test_what_a_wake_moves_while_it_fires_is_in_order_too(first, then):
    clock = Clock()
    fired, expected, orders = [], [], []
    due = {}
    wanted = iter(then)

    def move(moves):
        for name, delay, priority in moves:
            clock.at(wakes[name], priority, clock.now + delay)
            due[name] = (clock.now + delay, priority, len(orders))
            orders.append(name)
            assert clock.next_ns() == min(due.values())[0]
            assert clock.due() == len(due)

    def fire(name):
        expected.append(min(due, key=due.get))
        fired.append(name)
        assert clock.now == due.pop(expected[-1])[0]
        next_ns = min(due.values())[0] if due else FOREVER
        assert clock.next_ns() == next_ns
        for time in (next_ns - 1, next_ns, next_ns + 1):
            assert clock.idle_until(time) == (next_ns > time)
        move(next(wanted, ()))

    wakes = [Wake(lambda _, name=name: fire(name)) for name in range(10)]
    move(first)
    clock.run()
    assert fired == expected
    assert not due


def test_who_is_moved_back_while_another_fires_stands_behind_those_it_passes():
    """Moved before the top is filled again, 2 would hide 4, which stands below it and is due."""
    clock = Clock()
    fired = []

    def fire(name):
        fired.append(name)
        for mover, moved, delay, priority in MOVED:
            if mover == len(fired):
                clock.at(wakes[moved], priority, clock.now + delay)

    wakes = [Wake(lambda _, name=name: fire(name)) for name in range(5)]
    clock.at(wakes[0], 0, 0)
    clock.at(wakes[4], 1, 0)
    clock.run()
    assert fired == [0, 0, 3, 4, 1, 0, 2]


MOVED = ((1, 0, 0, 0), (1, 1, 1, 0), (2, 3, 0, 0), (2, 2, 0, 0), (2, 0, 1, 0), (3, 2, 1, 0))
"""After so many have fired, who is moved, by how much, and to which priority."""


def test_a_run_that_a_wake_cut_short_goes_on_with_the_next():
    clock = Clock()
    seen = []

    def broken(_):
        raise KeyboardInterrupt

    clock.at(Wake(broken), 0, 1)
    for time in (4, 2, 3):
        clock.at(Wake(lambda _: seen.append(clock.now)), 0, time)
    with pytest.raises(KeyboardInterrupt):
        clock.run()
    clock.run()
    assert seen == [2, 3, 4]


@given(st.lists(st.integers(0, 9), max_size=70), st.lists(st.integers(0, 9), max_size=70))
def test_a_clock_that_starts_anew_has_nothing_due(before, after):
    clock = Clock()
    fired = []
    forgotten = [Wake(fired.append) for _ in before]
    for wake, time in zip(forgotten, before, strict=True):
        clock.at(wake, 0, time)
    for _ in before[1::2]:
        clock.fire()
    assert clock.due() == len(before) - len(before) // 2
    clock.restart(20)
    assert not any(wake.due for wake in forgotten)
    assert (clock.now, clock.due(), clock.next_ns()) == (20, 0, FOREVER)
    fired.clear()
    wakes = [Wake(fired.append) for _ in after]
    for wake, time in zip(wakes, after, strict=True):
        clock.at(wake, 0, 20 + time)
    assert clock.due() == len(after)
    clock.run()
    assert fired == sorted(wakes, key=lambda wake: wake.time_ns)  # equals as they were scheduled
