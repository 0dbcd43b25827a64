"""Continuum's rule for how long KV is kept: by hand."""

from __future__ import annotations

import pytest

import llmsim as ls
from llmsim.policies.retention import CallView
from llmsim.policies.views import ProgramView, RequestView
from llmsim.systems.continuum import ContinuumOrder, ContinuumRetention, TurnsLeft, best_s


@pytest.mark.parametrize(("worth_s", "time_s"), [(0.5, 0.0), (2.0, 0.0), (4.0, 1.0), (30.0, 10.0)])
def test_the_time_that_gains_most(worth_s, time_s):
    """Gains at 1, 3 and 10 s are w/3 - 1, 2w/3 - 3 and w - 10: the first is best from 3 s on."""
    assert best_s((1.0, 3.0, 10.0), worth_s) == time_s


def test_how_surely_few_calls_are_left():
    left = TurnsLeft()
    assert left.eta == 1.0
    for _ in range(3):
        left.add(10)
    assert left.eta == pytest.approx(1.0)
    # (1, 0), (1, 2), (2, 1), (3, 0): covariance -5/16, variances 11/16 and 11/16
    mixed = TurnsLeft()
    mixed.add(1)
    mixed.add(3)
    assert mixed.eta == pytest.approx(5 / 11)


def ask(policy, tool="shell", rebuild_s=4.0):
    return policy.hold_s(CallView(0, 3, tool, 1000, rebuild_s))


def test_own_times_then_everybodys_then_a_default():
    policy = ContinuumRetention(samples=4)
    assert ask(policy) == 2.0
    for _ in range(5):
        policy.returned("shell", 1.0)
    assert ask(policy) == 1.0
    assert ask(policy, "tests") == 1.0  # nothing of its own
    for _ in range(5):
        policy.returned("tests", 3.0)
    assert ask(policy, "tests") == 3.0
    assert ask(policy, "shell") == 1.0


def test_who_waits_long_is_worth_keeping():
    policy = ContinuumRetention(samples=1)
    for each in (1.0, 20.0):
        policy.returned("shell", each)
    assert ask(policy) == 1.0
    policy.admitted(80.0)
    policy.admitted(20.0)  # 50 s in the mean
    assert ask(policy) == 20.0


def test_the_pinned_first_then_the_older_program():
    def view(index, began_ns, kept):
        program = ProgramView(began_ns, 1)
        program.kept = kept
        return RequestView(index, 100, 10, 0, -1, 0, None, program)

    order = ContinuumOrder().urgency
    alone = RequestView(3, 100, 10, -1, -1, 0, None)
    ranked = sorted([alone, view(2, 50, False), view(1, 70, True), view(0, 10, False)], key=order)
    assert [each.index for each in ranked] == [1, 0, 2, 3]


def test_pins_need_programs():
    pin = {"fleet.pools.main.retention": {"kind": "continuum"}}
    with pytest.raises(ls.ScenarioError, match=r"retention.*needs traffic\.programs"):
        ls.Scenario.load("quickstart", pin)
    with pytest.raises(ls.ScenarioError, match=r"needs engine\.prefix_caching"):
        ls.Scenario.load("agents", pin | {"engine.prefix_caching": False})


def test_what_became_of_the_pins(tmp_path):
    result = ls.run("pinned", {"traffic.requests": 15})
    (row,) = result.pins.to_dict("records")
    assert row["pins"] == row["kept"] + row["expired"] + row["gave_way"] + row["left"] > 50
    again = ls.load(result.save(tmp_path / "run"))
    assert again.pins.equals(result.pins)
    assert again.tiers.empty
    values = result.requests
    computed = values.prompt_tokens - values.cached_tokens
    least = computed.sum()  # and what was preempted, but for what was found again
    assert least <= result.metrics["prefill_tokens"] <= least + values.recomputed_tokens.sum()
