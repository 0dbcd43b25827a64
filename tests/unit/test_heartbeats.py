"""Reports now and then: what a router has seen by when, by hand."""

import pytest

import llmsim as ls
from llmsim.serving.clock import Clock
from llmsim.serving.heartbeats import HeartbeatBoard, Heartbeats


def board(lost_frac=0.0, age_ns=0, own=False, replicas=1, seed=3):
    clock = Clock()
    made = HeartbeatBoard(clock, replicas, age_ns, own, Heartbeats(1000, lost_frac), seed)
    return clock, made, made._phase_ns[0]


def at(clock, time_ns, told):
    clock.jump(time_ns)
    return told.outstanding(0)


@pytest.mark.parametrize("age_ns", [0, 300])
def test_a_load_is_that_of_the_latest_report(age_ns):
    clock, told, phase = board(age_ns=age_ns)
    arrives = 1000 + phase + age_ns  # when the report that was made at 1000 + phase is here
    told.change(0, 1, 1000 + phase - 1)
    told.change(0, 1, 1000 + phase)
    told.change(0, 1, 1000 + phase + 1)
    assert at(clock, arrives - 1, told) == 0
    assert at(clock, arrives, told) == 2
    assert at(clock, arrives + 999, told) == 2
    assert at(clock, arrives + 1000, told) == 3


def test_own_sends_are_known_at_once_and_ends_wait():
    clock, told, phase = board(own=True)
    told.change(0, 1, 0)
    assert told.outstanding(0) == 1
    told.change(0, -1, phase + 1)
    assert at(clock, phase + 999, told) == 1
    assert at(clock, phase + 1000, told) == 0


def test_lost_reports_are_as_many_as_asked_and_the_next_one_tells_all():
    clock, told, phase = board(lost_frac=0.25, replicas=2)
    lost = [told._is_lost(replica, n) for replica in (0, 1) for n in range(4000)]
    assert sum(lost) / len(lost) == pytest.approx(0.25, abs=0.02)
    number = next(n for n in range(1, 4000) if lost[n] and not lost[n + 1])
    told.change(0, 1, (number - 1) * 1000 + phase + 1)
    assert at(clock, number * 1000 + phase, told) == 0
    assert at(clock, (number + 1) * 1000 + phase, told) == 1


def test_looking_more_often_changes_nothing():
    clock, often, _ = board(lost_frac=0.5)
    seldom = HeartbeatBoard(clock, 1, 0, False, Heartbeats(1000, 0.5), 3)
    for step in range(1, 400):
        for told in (often, seldom):
            told.change(0, 1, 170 * step - 1)
        seen = at(clock, 170 * step, often)
        if step % 37 == 0:
            assert seldom.outstanding(0) == seen


def test_a_scenario_says_how_often_and_what_is_lost():
    base = {"fleet.routing": {"kind": "least-loaded", "ties": "random"}, "traffic.requests": 400}
    base |= {"fleet.pools.main.replicas": 4, "traffic.arrivals.rate_rps": 40}
    waits = [
        ls.run("quickstart", base | changes).metrics["ttft_mean_s"]
        for changes in ({}, {"fleet.report_period_s": 2.0})
    ]
    assert waits[0] < waits[1]
    with pytest.raises(ls.LlmsimError, match="needs report_period_s"):
        ls.run("quickstart", base | {"fleet.report_lost_frac": 0.1})
