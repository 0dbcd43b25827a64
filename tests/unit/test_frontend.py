"""The front end of a closed loop: what it does for all at once, and for one after the other."""

import pytest

import llmsim as ls
from llmsim.serving.clock import Clock
from llmsim.serving.frontend import FrontEnd
from llmsim.workload.chunk import ClosedLoop

MS = 1_000_000


def sent(ready_ms, round_ms=0, ingest_ms=0):
    """Return when requests that come at given times reach the engine [ms]."""
    clock, times = Clock(), []
    loop = ClosedLoop(len(ready_ms), 1, 0, ingest_ms * MS, round_ms * MS)
    front = FrontEnd(clock, lambda _: times.append(clock.now // MS), loop)
    for each in ready_ms:
        front.expect(each * MS)
    clock.run()
    return times


@pytest.mark.parametrize(
    ("ready_ms", "round_ms", "ingest_ms", "expected"),
    [
        ([0], 4, 0, [4]),  # alone: its own work
        ([0, 0, 0], 4, 0, [12, 12, 12]),  # together: the work of all
        ([0, 0, 5], 4, 0, [8, 8, 12]),  # who comes meanwhile waits for the round to end
        ([0, 1, 2, 30], 4, 0, [4, 12, 12, 34]),
        ([0, 0, 0], 0, 3, [3, 6, 9]),  # in turn
        ([0, 2, 30], 0, 3, [3, 6, 33]),
        ([0, 0], 4, 3, [11, 14]),  # first together, then in turn
        ([0, 0, 1], 1, 5, [7, 12, 17]),  # a round ends while others are still in turn
    ],
)
def test_rounds_end_together_and_turns_one_by_one(ready_ms, round_ms, ingest_ms, expected):
    assert sent(ready_ms, round_ms, ingest_ms) == expected


def arrivals_s(**front):
    """Return when the requests of four clients reach the engine."""
    loop = {"kind": "closed-loop", "in_flight": 4, "requests_per_slot": 3, **front}
    changed = {"traffic.arrivals": loop, "traffic.requests": None}
    return sorted(ls.run("quickstart", changed).requests["arrival_s"])


def test_the_first_requests_of_a_run_come_together_after_the_work_for_all():
    assert arrivals_s(round_s=0.25)[:4] == pytest.approx([1.0] * 4)
    assert arrivals_s(ingest_s=0.25)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert arrivals_s()[:4] == [0.0] * 4


def test_stepping_through_decides_as_merging_does():
    loop = {"kind": "closed-loop", "in_flight": 8, "requests_per_slot": 6}
    changed = {"traffic.arrivals": {**loop, "round_s": 0.003, "ingest_s": 0.001}}
    changed["traffic.requests"] = None
    merged, single = (
        ls.run("quickstart", changed | {"engine.fast_forward": fast}).digest
        for fast in (True, False)
    )
    assert merged == single
