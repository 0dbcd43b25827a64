"""What is believed of tools' times, and what pins make of it."""

import numpy as np
import pytest

import llmsim as ls
from llmsim.policies.estimation import (
    ConstantToolTime,
    LatestValues,
    NoisyToolTime,
    OracleToolTime,
    ToolHistory,
)
from llmsim.policies.retention import CallView
from llmsim.systems.continuum import ContinuumRetention

RNG = np.random.default_rng(1)
FEW = {"traffic.requests": 24}


def pinned(**overrides):
    return ls.Scenario.load("pinned").override(FEW | overrides)


def test_old_times_are_forgotten():
    times = LatestValues(2)
    for each in (5.0, 1.0, 3.0):
        times.add(each)
    assert times.sorted == [1.0, 3.0]


def test_history_believes_its_own_then_everybodys_then_nothing():
    history = ToolHistory(samples=1)
    assert list(history.believe("shell", 9.0, RNG)) == []
    history.learn("shell", 2.0)
    history.learn("tests", 5.0)
    assert list(history.believe("shell", 9.0, RNG)) == [2.0, 5.0]
    history.learn("shell", 1.0)
    assert list(history.believe("shell", 9.0, RNG)) == [1.0, 2.0]
    assert list(history.believe("tests", 9.0, RNG)) == [1.0, 2.0, 5.0]


def test_who_looks_at_the_truth_says_so():
    assert list(OracleToolTime().believe("x", 3.5, RNG)) == [3.5]
    assert "true tool times" in OracleToolTime.information
    assert "true tool times" in NoisyToolTime.information
    assert "true" not in ToolHistory.information
    assert list(ConstantToolTime(seconds=2.0).believe("x", 3.5, RNG)) == [2.0]
    drawn = [NoisyToolTime(sigma=0.5).believe("x", 3.0, RNG)[0] for _ in range(4000)]
    assert np.median(drawn) == pytest.approx(3.0, rel=0.05)
    assert np.std(np.log(drawn)) == pytest.approx(0.5, rel=0.05)


def test_the_pin_is_as_long_as_what_is_believed():
    policy = ContinuumRetention(samples=0)
    policy.returned("shell", 3.0)
    assert policy.hold_s(CallView(0, 3, "shell", 1000, 4.0)) == 3.0
    assert policy.hold_s(CallView(0, 3, "shell", 1000, 4.0, (1.0,))) == 1.0
    assert policy.hold_s(CallView(0, 3, "shell", 1000, 4.0, (9.0,))) == 0.0  # not worth it
    assert policy.hold_s(CallView(0, 3, "shell", 1000, 4.0, ())) == policy.default_s


@pytest.fixture(scope="module")
def plain():
    return ls.run(pinned())


def test_history_is_what_the_policy_learns_by_itself(plain):
    same = ls.run(pinned(**{"estimators.tool_time": "history"}))
    assert same.digest == plain.digest
    assert not any("tool_time" in text for text in same.warnings)


def test_with_true_times_no_pin_runs_out(plain):
    oracle = ls.run(pinned(**{"estimators.tool_time": "oracle"}))
    assert plain.pins["expired"].sum() > 0
    assert oracle.pins["pins"].sum() > 0
    assert oracle.pins["expired"].sum() == 0
    (told,) = [text for text in oracle.warnings if "estimators.tool_time" in text]
    assert "oracle" in told
    assert "true tool times" in told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"fleet.pools.main.retention": "none"}, "estimators.tool_time: is asked by nobody"),
        ({"fleet.pools.main.retention": "fixed"}, "retention fixed has no use for it"),
        ({"estimators.tool_time": "orcale"}, "Did you mean 'oracle'"),
        ({"estimators.tool_time": {"kind": "noisy", "sigma": -1}}, "estimators.tool_time.sigma"),
    ],
)
def test_what_does_not_go_together_is_told(overrides, told):
    with pytest.raises(ls.ScenarioError) as error:
        pinned(**({"estimators.tool_time": "oracle"} | overrides))
    assert told in str(error.value)
