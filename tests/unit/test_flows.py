"""Transfers on shared links: fair, exact alone, in no need of an order, nothing lost."""

from __future__ import annotations

import math

import pytest
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsim.serving.clock import Clock
from llmsim.serving.flows import Flows, fair_rates
from llmsim.serving.wake import Wake

GB = 1e9
CAPACITIES = [10 * GB, 25 * GB, 50 * GB, 12.5 * GB]
PATHS = st.lists(st.sampled_from(range(4)), min_size=1, max_size=3, unique=True).map(tuple)
CAPS = st.sampled_from([math.inf, 2 * GB, 7 * GB, 30 * GB])


def run(transfers, capacities=CAPACITIES, stop=()):
    """Run (start, path, size, lead, cap) to the end; return when each ended, in order of number."""
    clock = Clock()
    flows = Flows(clock, capacities)
    ended: dict[int, int] = {}
    live = {}

    def begin(number):
        start, path, size, lead, cap = transfers[number]

        def end(_):
            ended[number] = clock.now

        def go(_):
            live[number] = flows.start(
                path, size, end, rank=number, lead_ns=lead, cap_bytes_per_s=cap
            )

        clock.at(Wake(go), 0, start)

    for number in range(len(transfers)):
        begin(number)
    for number, at in stop:
        clock.at(Wake(lambda _, n=number: flows.cancel(live[n])), 0, at)
    clock.run()
    return ended, flows


def test_alone_a_transfer_takes_its_messages_and_its_bytes():
    ended, flows = run([(5, (0, 1), 1e6, 1_000, math.inf)])
    assert ended == {0: 5 + 1_000 + 100_000}  # 1 MB at 10 GB/s
    assert flows.moved_bytes(0) == flows.moved_bytes(1) == pytest.approx(1e6)
    assert flows.moved_bytes(2) == 0 == flows.rate(0)


def test_n_transfers_each_get_an_nth():
    ended, _ = run([(0, (0,), 1e6, 0, math.inf)] * 4)
    assert set(ended.values()) == {400_000}


def test_the_later_one_slows_the_first_from_then_on():
    ended, _ = run([(0, (0,), 1e6, 0, math.inf), (50_000, (0,), 1e6, 0, math.inf)])
    assert ended == {0: 150_000, 1: 200_000}


def test_what_one_cannot_use_the_others_get():
    ended, _ = run([(0, (0,), 1e6, 0, 2 * GB), (0, (0,), 1e6, 0, math.inf)])
    assert ended == {0: 500_000, 1: 125_000}


def test_cancel_returns_the_bandwidth_and_ends_nobody():
    two = [(0, (0,), 1e6, 0, math.inf)] * 2
    ended, flows = run(two, stop=[(0, 100_000)])
    assert ended == {1: 150_000}
    assert flows.moved_bytes(0) == pytest.approx(1.5e6)


def test_a_transfer_over_nothing_ends_after_its_lead():
    assert run([(7, (), 1e9, 30, math.inf)])[0] == {0: 37}


def test_a_cancelled_lead_never_moves():
    ended, flows = run([(0, (0,), 1e6, 500, math.inf)], stop=[(0, 100)])
    assert ended == {}
    assert flows.moved_bytes(0) == 0


def test_a_resource_needs_a_capacity():
    with pytest.raises(ValueError, match="capacity above zero"):
        Flows(Clock(), [1.0, 0.0])


@given(st.lists(st.tuples(PATHS, CAPS), min_size=1, max_size=12))
def test_rates_are_max_min_fair(flows):
    paths, caps = zip(*flows, strict=True)
    rates = fair_rates(paths, caps, CAPACITIES)
    used = [sum(r for r, p in zip(rates, paths, strict=True) if k in p) for k in range(4)]
    assert all(u <= c * (1 + 1e-12) for u, c in zip(used, CAPACITIES, strict=True))
    for rate, path, cap in zip(rates, paths, caps, strict=True):
        # who could get more only at the cost of somebody who has no more than itself
        held = rate >= cap or any(
            used[k] >= CAPACITIES[k] * (1 - 1e-9)
            and rate >= max(r for r, p in zip(rates, paths, strict=True) if k in p) * (1 - 1e-9)
            for k in path
        )
        assert held


TRANSFERS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 10_000, 70_000]),
        PATHS,
        st.sampled_from([1e3, 1e6, 3e6]),
        st.sampled_from([0, 1_000]),
        CAPS,
    ),
    min_size=1,
    max_size=8,
)


@given(TRANSFERS, st.randoms(use_true_random=False))
@settings(max_examples=examples(60))
def test_ends_do_not_depend_on_the_order_of_submission(transfers, random):
    ended, flows = run(transfers)
    order = list(range(len(transfers)))
    random.shuffle(order)
    again, _ = run([transfers[i] for i in order])
    assert {order[i]: time for i, time in again.items()} == ended
    for resource in range(4):
        through = sum(size for _, path, size, _, _ in transfers if resource in path)
        assert flows.moved_bytes(resource) == pytest.approx(through)


SLOW = st.sampled_from([0.3 * GB, 2 * GB, 3.7 * GB, 6 * GB, 9 * GB, 9 * GB, math.inf])
MANY = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda turn: turn * 1_000),
        st.sampled_from([(0,), (0, 1), (0, 3), (3,), (0, 1, 3), (2, 3), (1,)]),
        st.sampled_from([1e5, 7e5]),
        st.sampled_from([0, 1_000]),
        SLOW,
    ),
    min_size=3,
    max_size=16,
)


@given(MANY)
def test_rates_are_at_all_times_those_of_all_transfers_together(transfers):
    """Who asks too little of a link to hold anybody back is left out of the sharing; it may be."""
    clock = Clock()
    flows = Flows(clock, CAPACITIES)
    live = []

    def begin(_, transfer):
        _, path, size, lead, cap = transfer
        live.append(flows.start(path, size, lambda _: None, lead_ns=lead, cap_bytes_per_s=cap))

    def look(_):
        moving = [flow for flow in live if flow.rate_bytes_per_s > 0]
        rates = fair_rates(
            [f.path for f in moving], [f.cap_bytes_per_s for f in moving], CAPACITIES
        )
        assert [flow.rate_bytes_per_s for flow in moving] == rates

    for transfer in transfers:
        clock.at(Wake(lambda _, t=transfer: begin(_, t)), 0, transfer[0])
    for turn in range(100):
        clock.at(Wake(look), 0, turn * 1_000 + 500)
    clock.at(Wake(lambda _: [flows.cancel(flow) for flow in live[:1]]), 0, 20_500)
    clock.run()
    assert all(flow.done for flow in live)
