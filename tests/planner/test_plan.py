"""Plan files end to end, without simulation: what is bought, what is said, what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import plan_keys
import pytest
import yaml
from typer.testing import CliRunner

import llmsim as ls
from llmsim.cli.app import app
from llmsim.core.errors import InputError, ScenarioError
from llmsim.core.paths import list_data
from llmsim.planner.folder import load_plan
from llmsim.planner.plan import Plan
from llmsim.planner.planning import solve_stages
from llmsim.planner.reading import read_plan
from llmsim.planner.several_reading import read_several
from llmsim.planner.traffic import Sample, prompt_edges, ranges_of
from llmsim.planner.work import prepare
from llmsim.scenario import Scenario

ASKED = {
    "llmsim": 1,
    "name": "small",
    "model": "llama-3.1-8b",
    "slo": {"ttft_s": 1.0, "tpot_s": 0.05},
    "traffic": {
        "arrivals": {"kind": "gamma", "rate_rps": 30.0, "cv": 2.0},
        "lengths": {
            "kind": "lognormal",
            "prompt_mean_tokens": 1000,
            "prompt_cv": 1.2,
            "prompt_max_tokens": 8000,
            "output_mean_tokens": 220,
            "output_cv": 1.0,
            "output_max_tokens": 2000,
        },
        "requests": 2000,
    },
    "engine": {"max_model_len": 12000},
    "gpus": {
        "h100-sxm": {"usd_per_hour": 4.0},
        "a100-80gb-sxm": {"usd_per_hour": 2.8},
        "l40s": {"usd_per_hour": 1.0, "available": 2},
    },
    "search": {"tp": [1]},
}


def asked(**changes):
    return ASKED | changes


@pytest.fixture(scope="module")
def found():
    today = {"current": [{"gpu": "h100-sxm", "replicas": 4}]}
    return ls.plan(ASKED, today, simulate=False)


def test_the_fleet_adds_up(found):
    assert found.usd_per_hour == pytest.approx(
        sum(each.replicas * each.usd_per_hour for each in found.used)
    )
    assert found.bound.usd_per_hour <= found.usd_per_hour
    assert found.bound.gap_frac == pytest.approx(1 - found.bound.usd_per_hour / found.usd_per_hour)
    for part in found.ranges:
        assert sum(each.share.get(part.name, 0.0) for each in found.used) == pytest.approx(1.0)
    assert sum(part.rate_rps for part in found.ranges) == pytest.approx(found.rate_rps)
    costs = [step.usd_per_hour for step in found.waterfall]
    assert costs == sorted(costs)
    assert all(0 < each.utilisation_frac < 1 for each in found.used)


def test_no_single_card_is_cheaper_and_today_is_priced(found):
    rivals = [rival.usd_per_hour for rival in found.rivals if rival.usd_per_hour is not None]
    assert rivals
    assert min(rivals) >= found.usd_per_hour - 1e-9
    assert found.current.usd_per_hour == pytest.approx(16.0)
    assert 0 < found.current.utilisation_frac < 1
    two = next(rival for rival in found.rivals if rival.gpu == "l40s")
    assert two.usd_per_hour is None


def test_a_plan_is_bought_at_the_terms_it_asks_for(monkeypatch, tmp_path):
    """Committed for a year, three years, or of a catalog in which a card is on no other terms."""
    prices = tmp_path / "profiles/prices/catalog.csv"
    prices.parent.mkdir(parents=True)
    prices.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,ReservedPrice,ReservedFor\n"
        "x,H100,8,32,,24,1y\nx,H100,8,,,16,3y\nx,L40S,1,,0.5,,\n"
    )
    monkeypatch.setenv("LLMSIM_PATH", str(tmp_path))
    per_gpu = {None: 4.0, "reserved-1y": 3.0, "reserved-3y": 2.0, "reserved": 2.0, "prices": 4.0}
    for terms, usd in per_gpu.items():
        gpus = {"h100-sxm": {"price": terms}}
        plan = ls.plan(asked(gpus=gpus), simulate=False)
        assert plan.usd_per_hour == pytest.approx(usd * sum(each.replicas for each in plan.used))
    work = prepare(read_plan(asked(gpus={"l40s": {"price": "spot"}})))
    assert {column.usd_per_hour for column in work.candidates.columns} == {0.5}
    with pytest.raises(InputError, match=r"gpus\.l40s: no price is known of it"):
        read_plan(asked(gpus={"l40s": {}}))


def test_every_configuration_is_bought_or_has_a_reason(found):
    names = {each.name for each in found.used} | {each.name for each in found.losers}
    assert names >= {"h100-sxm", "a100-80gb-sxm", "l40s"}
    assert all(each.reason for each in found.losers)


def test_a_plan_survives_json(found):
    assert Plan.from_json(json.loads(json.dumps(found.as_json()))) == found
    with pytest.raises(InputError, match="used"):
        Plan.from_json({"name": "x"})


def test_the_fleet_is_a_scenario_that_runs(found):
    scenario = Scenario.parse(yaml.safe_load(found.scenario_yaml))
    result = ls.run(scenario, {"traffic.requests": 300})
    assert result.metrics["requests_finished"] == 300
    assert result.metrics["usd_per_hour"] == pytest.approx(found.usd_per_hour)


def test_what_was_asked_plans_the_same(found):
    again = ls.plan(yaml.safe_load(found.plan_yaml), simulate=False)
    assert again.used == found.used
    fields = [field.name for field in dataclasses.fields(Plan) if field.name != "seconds"]
    same = [name for name in fields if getattr(again, name) == getattr(found, name)]
    assert set(fields) - set(same) == {"waterfall"}  # holds seconds


def cost(**overrides):
    work = prepare(read_plan(ASKED, {key.replace("__", "."): v for key, v in overrides.items()}))
    return solve_stages(work)[-1].packed.usd_per_hour


@pytest.mark.slow
def test_a_tighter_promise_is_never_cheaper_and_a_further_card_never_dearer():
    costs = [cost(slo__tpot_s=limit) for limit in (0.08, 0.05, 0.03, 0.02)]
    assert costs == sorted(costs)
    fewer = {key: offer for key, offer in ASKED["gpus"].items() if key != "l40s"}
    work = prepare(read_plan(asked(gpus=fewer)))
    assert solve_stages(work)[-1].packed.usd_per_hour >= cost() - 1e-9
    assert cost(spare_replicas=1) >= cost()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"slo.ttft_s": 0.001},
            r"slo: 100.0% of the requests are late .* TTFT 0.0\d+ s against 0.001",
        ),
        ({"gpus.h100-smx": {}}, "gpus.h100-smx: unknown gpu 'h100-smx'. Did you mean 'h100-sxm'"),
        ({"gpus.a40": {}}, "gpus.a40: no price is known of it. Give usd_per_hour."),
        ({"gpus.l40s.usd_per_hour": None, "gpus.l40s.price": "lambda"}, "no price of l40s from"),
        ({"traffic.requests": 0}, "traffic.requests: .*greater than or equal to 1"),
        ({"budget_usd_per_hour": 1.0}, r"budget_usd_per_hour: 1 USD/h is too little: \d"),
        ({"slo.tpot_s": None, "slo.ttft_s": None}, "slo: sets no limit"),
        ({"current": [{"gpu": "h200", "replicas": 1}]}, "current.0.gpu: 'h200' is not among gpus"),
        ({"pool.replicas": 3}, "pool.replicas: is not set here"),
        ({"pool.batchin": "vllm"}, "pool.batchin: unknown key. Did you mean 'batching'"),
        ({"search.tq": [1]}, "search.tq: unknown key. Did you mean 'tp'"),
        (
            {
                "traffic.requests": None,
                "traffic.arrivals": {
                    "kind": "closed-loop",
                    "in_flight": 3,
                    "requests_per_slot": 9,
                },
            },
            "traffic.arrivals: closed-loop has no rate",
        ),
    ],
)
def test_each_mistake_is_told_at_its_key(change, said):
    with pytest.raises(InputError, match=said) as caught:
        ls.plan(ASKED, change)
    assert len(caught.value.faults) == 1


def test_too_few_gpus_are_told_at_their_key():
    few = {gpu: {**offer, "available": 0} for gpu, offer in ASKED["gpus"].items()}
    few["h100-sxm"]["available"] = 1
    with pytest.raises(InputError, match=r"gpus.h100-sxm.available: 1 GPU is too few: \d"):
        ls.plan(asked(gpus=few))


def test_a_file_is_blamed_line_by_line(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(ASKED | {"gpus": {"h100-smx": {}}, "budget": 3}))
    lines = path.read_text().splitlines()
    with pytest.raises(ScenarioError) as caught:
        read_plan(path)
    places = {fault.path: fault.where for fault in caught.value.faults}
    assert places["gpus.h100-smx"] == f"wrong.yaml:{lines.index('  h100-smx: {}') + 1}"
    assert places["budget"] == f"wrong.yaml:{lines.index('budget: 3') + 1}"
    with pytest.raises(ScenarioError, match="Did you mean 'chat'"):
        read_plan("chatt")


def test_the_command_writes_all_or_nothing(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(ASKED))
    out = tmp_path / "out"
    run = CliRunner()
    failed = run.invoke(app, ["plan", str(path), "-o", str(out), "--set", "slo.tpot_s=1e-5"])
    assert failed.exit_code == 2
    assert "small.yaml:" in failed.output
    assert not out.exists()
    done = run.invoke(app, ["plan", str(path), "-o", str(out), "--explain", "--no-simulate"])
    assert done.exit_code == 0, done.output
    assert "not bought because" in done.output
    names = {each.name for each in out.iterdir()}
    assert names >= {"plan.json", "fleet.yaml", "plan.yaml", "columns.csv", "meta.json"}
    assert load_plan(out).usd_per_hour > 0
    assert run.invoke(app, ["check", str(out / "fleet.yaml")]).exit_code == 0
    taken = run.invoke(app, ["plan", str(path), "-o", str(out)])
    assert taken.exit_code == 2


def test_every_key_is_described():
    text = plan_keys.PAGE.read_text(encoding="utf-8")
    assert plan_keys.page(text) == text, "call tests/planner/plan_keys.py"


@pytest.mark.parametrize("name", sorted(list_data("scenarios/plans", ".yaml")))
def test_every_shipped_plan_is_right(name):
    several = read_several(name)
    assert (read_plan(name).keys.name if several is None else several.name) == name


def test_few_requests_are_no_range_of_their_own():
    prompts = np.array([100] * 500 + [600] * 480 + [5000] * 15 + [9000] * 5)
    sample = Sample(np.linspace(0, 99.9, 1000), prompts, np.full(1000, 50), 100.0)
    ranges, demand = ranges_of(sample)
    found = [(part.low_tokens, round(part.rate_rps, 9)) for part in ranges]
    assert found == [(1, 5.0), (512, 4.8), (4096, 0.2)]
    assert {name for part in ranges for name in part.buckets} == {b.name for b in demand.buckets}
    assert prompt_edges(ranges) == (512, 4096)


def test_dispersion_is_one_for_poisson_and_more_for_bursts():
    draw = np.random.default_rng(3)
    even = np.cumsum(draw.exponential(0.1, 20_000))
    bursty = np.cumsum(draw.gamma(0.25, 0.4, 20_000))  # squared coefficient of variation 4
    lengths = np.full(20_000, 10)
    for times, expected in ((even, 1.0), (bursty, 4.0)):
        found = Sample(times, lengths, lengths, float(times[-1])).dispersion(20.0)
        assert found == pytest.approx(expected, rel=0.25)


def test_shared_prefixes_are_noted(found):
    prompts = {"traffic.prompts": {"kind": "shared-prefix", "prefix_tokens": 200}}
    shared = ls.plan(ASKED, prompts, simulate=False)
    assert any("share prefixes" in note for note in shared.notes)
    assert not any("share prefixes" in note for note in found.notes)
