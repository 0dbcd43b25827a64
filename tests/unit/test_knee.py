"""Capacity searches: what is found holds, and what lies above does not."""

import math

import pytest

import llmsim as ls
from llmsim.scenario import Scenario
from llmsim.study.knee import Promise, find_knee, load_key
from llmsim.study.points import Point, PointStore

SMALL = {
    "traffic.requests": 300,
    "traffic.arrivals": {"kind": "poisson", "rate_rps": 8},
    "traffic.lengths": {"kind": "fixed", "prompt_tokens": 500, "output_tokens": 40},
}


@pytest.fixture(scope="module")
def scenario():
    return Scenario.load("quickstart", SMALL)


def test_the_knee_holds_and_just_above_it_does_not(scenario):
    promise = Promise({"ttft_p99_s": 0.3})
    knee = find_knee(scenario, promise, tolerance_frac=0.05)
    assert knee.point.values["ttft_p99_s"] <= 0.3
    failed = min(load for load, held in knee.tried if not held)
    assert knee.load < failed <= knee.load * 1.05
    again = find_knee(scenario, promise, tolerance_frac=0.05)
    assert again.load == knee.load
    assert again.point.digest == knee.point.digest


@pytest.mark.slow
def test_a_tighter_promise_lowers_the_knee(scenario):
    loads = [
        find_knee(scenario, Promise({"tpot_p99_s": limit}), tolerance_frac=0.1).load
        for limit in (0.009, 0.02)
    ]
    assert 0 < loads[0] < loads[1]


def test_what_no_load_keeps_has_knee_zero(scenario):
    assert find_knee(scenario, Promise({"ttft_p50_s": 1e-6})).load == 0


def test_kept_points_are_found_again(scenario, tmp_path):
    store = PointStore(tmp_path)
    made = store.point(scenario)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text(encoding="utf-8").replace(made.digest, "kept"), encoding="utf-8")
    again = store.point(scenario)
    assert again.digest == "kept"
    assert again.values.keys() == made.values.keys()


def test_an_overloaded_run_keeps_no_promise():
    fine = {"ttft_p99_s": 0.1, "slo_attained_frac": 1.0}
    assert Promise({"ttft_p99_s": 0.2}).kept(Point(fine, "", "stable"), None)
    assert not Promise({"ttft_p99_s": 0.2}).kept(Point(fine, "", "overloaded"), None)
    missing = Point({"ttft_p99_s": math.nan}, "", "stable")
    assert not Promise({"ttft_p99_s": 0.2}).kept(missing, None)


@pytest.mark.slow
def test_several_seeds_as_a_call():
    found = ls.knee("quickstart", SMALL, limits={"ttft_p99_s": 0.3}, seeds=(1, 2), jobs=1)
    assert found.key == "traffic.arrivals.rate_rps"
    low, high = found.interval()
    assert low < found.mean < high
    assert found.table()["load_per_gpu"].tolist() == [load / 2 for load in found.loads]


def test_wrong_orders_are_refused(scenario):
    with pytest.raises(ls.InputError, match="Did you mean 'ttft_p99_s'"):
        Promise({"ttft_p9_s": 1.0})
    with pytest.raises(ls.InputError, match="is empty"):
        ls.knee(scenario, seeds=())
    with pytest.raises(ls.InputError, match=r"fleet\.load: read None"):
        ls.knee(scenario, key="fleet.load", jobs=1)
    closed = {"kind": "closed-loop", "in_flight": 4, "requests_per_slot": 9}
    looped = Scenario.load(
        "quickstart", SMALL | {"traffic.arrivals": closed, "traffic.requests": None}
    )
    with pytest.raises(ls.InputError, match="no rate to search over"):
        load_key(looped)
