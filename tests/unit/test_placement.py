"""The search for a split into prefill and decode replicas."""

import json

import pytest
from typer.testing import CliRunner

import llmsim as ls
from llmsim import api
from llmsim.cli.app import app
from llmsim.scenario import Scenario
from llmsim.study.knee import Promise
from llmsim.study.placement import Plan, plans, search_placement

SMALL = {
    "traffic.requests": 150,
    "traffic.duration_s": None,
    "traffic.warmup_s": 0,
    "traffic.lengths": {"kind": "fixed", "prompt_tokens": 4000, "output_tokens": 8},
}


def test_every_plan_uses_all_gpus_and_none_comes_twice():
    found = plans(4, (1, 2))
    assert len(set(found)) == len(found)
    assert {plan.gpus for plan in found} == {4}
    assert Plan(1, 2, 2, 1) in found
    # tp1 with tp1: 1+3, 2+2, 3+1; tp2 with tp2: 1+1; tp1 with tp2 and the other way: 2 GPUs each
    assert len(found) == 3 + 1 + 1 + 1


@pytest.mark.slow
def test_long_prompts_and_short_answers_want_prefill():
    scenario = Scenario.load("disaggregated", SMALL)
    promise = Promise({"ttft_p90_s": 0.5})
    found = search_placement(scenario, 4, (1,), promise, tolerance_frac=0.2, jobs=1)
    assert found.best.plan == Plan(3, 1, 1, 1)
    loads = found.table()["load_per_gpu"].tolist()
    assert loads == sorted(loads, reverse=True)


def test_the_command_prints_what_the_call_finds():
    given = SMALL | {"traffic.requests": 60}
    limits = {"ttft_p90_s": 0.5}
    found = api.placement(
        "disaggregated", 3, given, tps=(1,), limits=limits, tolerance_frac=0.5, jobs=1
    )
    words = ["placement", "disaggregated", "--gpus", "3", "--tp", "1", "--tolerance", "0.5"]
    words += ["--limit", "ttft_p90_s=0.5", "--jobs", "1"]
    for key, value in given.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 0, told.output
    plans = json.loads(told.stdout)["plans"]
    loads = [each.load for each in found.tried]  # JSON has ten digits of them
    assert [plan["load"] for plan in plans] == pytest.approx(loads, rel=1e-9)
    wrong = CliRunner().invoke(app, [*words[:4], "--limit", "ttft_p90_s=soon"])
    assert wrong.exit_code == 2
    assert "should be a number (got 'soon')" in wrong.output


def test_a_model_that_does_not_fit_is_last():
    scenario = Scenario.load(
        "disaggregated", SMALL | {"model": "llama-3.1-70b", "slo.ttft_s": 2.0, "slo.tpot_s": 0.1}
    )
    found = search_placement(scenario, 3, (1, 2), tolerance_frac=0.5, jobs=1)
    assert all(each.knee is None for each in found.tried)
    assert found.best.per_gpu == 0


def test_wrong_orders_are_refused():
    with pytest.raises(ls.InputError, match="0 pools of role prefill"):
        search_placement(Scenario.load("quickstart"), 4)
    with pytest.raises(ls.InputError, match="cannot be shared out"):
        search_placement(Scenario.load("disaggregated"), 1)
