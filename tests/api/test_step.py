"""`ls.step`: what a step costs, as the command prints it."""

import json

import pytest
from typer.testing import CliRunner

import llmsim as ls
from llmsim.cli.app import app
from llmsim.scenario.costs import Roofline


def test_rows_add_up_to_the_step():
    price = ls.step("llama-3.1-8b", "h100-sxm", batch=64, context=2000, prefill=[(512, 0)])
    table = price.table()
    assert table.seconds.sum() == pytest.approx(price.seconds)
    assert table.share_frac.sum() == pytest.approx(1)
    assert set(table.bound) <= {"compute", "memory", "latency", "network", "host"}
    assert price.output_tokens_per_s == pytest.approx(64 / price.seconds)


def test_the_command_prints_the_same():
    words = "show step --model llama-3.1-70b --gpu h100-sxm --tp 2 --pp 2 --batch 8 --json"
    told = json.loads(CliRunner().invoke(app, words.split()).stdout)
    price = ls.step("llama-3.1-70b", "h100-sxm", batch=8, tp=2, pp=2)
    assert told["seconds"] == price.seconds
    assert [name for name, _ in told["stations_s"]] == ["host", "stage 0", "link 0", "stage 1"]
    assert sum(time for _, time in price.stations_s) == pytest.approx(price.seconds)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "the step is empty"),
        ({"batch": -1, "prefill": [(0, 3)]}, "(0, 3) is no slice of a prompt"),
        ({"batch": 1, "context": 0}, "0 tokens of context"),
    ],
)
def test_what_no_engine_would_run_is_refused(given, said):
    with pytest.raises(ls.InputError, match="problem") as told:
        ls.step("llama-3.1-8b", "h100-sxm", **given)
    assert said in str(told.value)


SCENARIO = {
    "llmsim": 1,
    "name": "step",
    "model": "gpt-oss-120b",
    "traffic": {
        "arrivals": {"kind": "poisson", "rate_rps": 1.0},
        "lengths": {"kind": "fixed", "prompt_tokens": 8, "output_tokens": 8},
        "requests": 1,
    },
    "fleet": {"pools": {"main": {"gpu": "h200-sxm", "tp": 2}}},
}


def test_a_pool_of_a_scenario_is_priced_with_its_engine_and_kernels():
    """Today's vLLM does norms inside all-reduces; Marlin's experts are slow at many tokens."""

    def gpu_s(**cost):
        scenario = ls.Scenario.parse(SCENARIO).override({"fleet.pools.main.cost": cost})
        return ls.step(scenario=scenario, prefill=[(4096, 0)]).breakdown.gpu_s

    bare_s = ls.step("gpt-oss-120b", "h200-sxm", tp=2, prefill=[(4096, 0)]).breakdown.gpu_s
    assert gpu_s(fused_norm=False) == bare_s
    assert gpu_s() < bare_s
    assert gpu_s(expert_kernel="marlin") > 1.3 * bare_s


def test_the_command_takes_a_scenario_and_changes_to_it():
    words = "show step --scenario quickstart --batch 8 --json --set fleet.pools.main.pp=2"
    told = json.loads(CliRunner().invoke(app, words.split()).stdout)
    assert told["plan"]["pp"] == 2
    assert [name for name, _ in told["stations_s"]] == ["host", "stage 0", "link 0", "stage 1"]


def test_changes_to_no_scenario_are_refused():
    words = "show step --model llama-3.1-8b --gpu h100-sxm --batch 1 --set seed=3"
    told = CliRunner().invoke(app, words.split())
    assert told.exit_code == 2
    assert "there is no scenario to change" in told.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "model: missing"),
        ({"model": "llama-3.1-8b"}, "gpu: missing"),
        ({"scenario": "quickstart", "model": "llama-3.1-8b"}, "the scenario says it already"),
        ({"scenario": "quickstart", "tp": 2}, "layout: the scenario says it already"),
        ({"scenario": "quickstart", "pool": "mian"}, "no pool 'mian'. It has main"),
        ({"model": "llama-3.1-8b", "gpu": "h100-sxm", "pool": "main"}, "no scenario that has one"),
        ({"scenario": "disaggregated"}, "has several pools. It has prefill, decode"),
    ],
)
def test_what_a_step_is_of_is_said_once(given, said):
    with pytest.raises(ls.InputError) as told:
        ls.step(**given, batch=1)
    assert said in str(told.value)


def test_a_cost_without_operators_says_so(monkeypatch):
    monkeypatch.setattr(Roofline, "bind", lambda self, place: object())
    with pytest.raises(ls.InputError, match="a price for a step, but no operators"):
        ls.step(scenario=ls.Scenario.parse(SCENARIO), batch=1)
