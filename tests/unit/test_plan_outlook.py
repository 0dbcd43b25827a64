"""A planned fleet under other circumstances: what is changed, and where the promise breaks."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from plan_by_hand import PLAN
from test_report_html import Page

from llmsim.planner import outlook, simulating
from llmsim.planner.outlook import (
    LOADS,
    NEAR,
    OTHER,
    Outlook,
    Tried,
    _burstier,
    _headroom,
    _longer,
    _more_traffic,
    look_ahead,
    recorded_otherwise,
)
from llmsim.planner.outlook_words import breaking, power_said
from llmsim.planner.page import render_plan
from llmsim.planner.requests import write_requests
from llmsim.planner.traffic import sample_of
from llmsim.scenario import Scenario
from llmsim.study.executor import Executor
from llmsim.study.points import Point

QUICK = Scenario.load("quickstart")
HERE = Executor(jobs=1)


def assert_closed_in(headroom):
    """In order, kept up to one, which is near the first that is not."""
    factors = [each.factor for each in headroom]
    assert factors == sorted(set(factors))
    assert factors[0] == 1.0
    kept = sum(each.kept for each in headroom)
    assert [each.kept for each in headroom] == [True] * kept + [False] * (len(factors) - kept)
    assert factors[kept] < NEAR * factors[kept - 1]


@pytest.mark.parametrize("most", [0.9, 1.0, 1.3, 1.7, 2.4, 5.0, 9.0])
def test_the_load_that_breaks_it_is_closed_in(most):
    asked = []

    def at_load(factor):
        asked.append(factor)
        return tried(factor, 0.99, factor <= most)

    found = _headroom(at_load)
    assert len(asked) == len(set(asked)) <= len(LOADS) + 3
    if most < 1:
        assert [each.factor for each in found] == [1.0]
    elif most > LOADS[-1]:
        assert [each.factor for each in found] == list(LOADS)
    else:
        assert_closed_in(found)
        assert [each.kept for each in found] == [each.factor <= most for each in found]
        # nothing that was tried is hidden
        assert sorted(asked) == [each.factor for each in found]
        beyond = next(n for n, each in enumerate(found) if not each.kept)
        assert breaking(replace(OUTLOOK, headroom=tuple(found))).startswith(
            f"The promise holds up to {found[beyond - 1].factor:g} times the planned rate, and "
            f"breaks at {found[beyond].factor:g} times."
        )


def test_traffic_without_a_rate_has_no_headroom():
    assert _headroom(lambda factor: None) == []


def tried(factor, attained, kept, what="rate", **more):
    usual = {
        "seeds": 3,
        "overloaded": 0,
        "low_frac": attained - 0.01,
        "high_frac": min(1.0, attained + 0.01),
        "by_limit": {"ttft": attained, "tpot": 1.0},
        "busiest_frac": 0.9,
        "kv_peak_frac": 0.5,
        "preemptions": 0.0,
        "power_w": 1000.0,
        "joules_per_output_token": 0.5,
    }
    return Tried(what=what, factor=factor, attained_frac=attained, kept=kept, **(usual | more))


OUTLOOK = Outlook(
    (tried(1.0, 0.99, True), tried(1.25, 0.97, True), tried(1.5, 0.6, False, overloaded=2)),
    (tried(OTHER, 0.98, True, "burstiness"), tried(OTHER, 0.9, False, "prompts")),
    0.75,
    8,
    ("outputs: this traffic has no such number that can be changed",),
)


def test_what_breaks_is_traced_to_a_resource():
    # ttft broke; the fullest pool is small, whose prompts are nine tenths compute
    said = breaking(OUTLOOK, PLAN)
    assert said.startswith(breaking(OUTLOOK))
    assert said.endswith("computing prompts of small goes into compute 90.0%, bandwidth 10.0%.")
    pace = tried(2.0, 0.5, False, by_limit={"ttft": 1.0, "tpot": 0.5})
    said = breaking(replace(OUTLOOK, headroom=(pace,)), PLAN)
    assert said.endswith("the steps of small goes into compute 50.0%, bandwidth 30.0%, link 20.0%.")


def test_more_traffic_lasts_as_long():
    change = _more_traffic(QUICK, 1.5)
    assert change == {"traffic.arrivals.rate_rps": 12.0, "traffic.requests": 7200}
    timed = QUICK.override({"traffic.requests": None, "traffic.duration_s": 60})
    assert _more_traffic(timed, 2.0) == {"traffic.arrivals.rate_rps": 16.0}


def test_burstier_and_longer_change_one_number_each():
    bursty = QUICK.override(_burstier(QUICK, "burstiness")).traffic.arrivals.params
    assert bursty == QUICK.traffic.arrivals.params | {"cv": 2.0 * OTHER}
    even = QUICK.override({"traffic.arrivals": {"kind": "poisson", "rate_rps": 3}})
    assert even.override(_burstier(even, "")).traffic.arrivals.params["cv"] == OTHER
    assert _longer(QUICK, "prompts") == {"traffic.lengths.prompt_mean_tokens": 1000 * OTHER}
    assert _longer(QUICK, "outputs") == {"traffic.lengths.output_mean_tokens": 220 * OTHER}
    fixed = {"kind": "fixed", "prompt_tokens": 1000, "output_tokens": 10}
    whole = QUICK.override({"traffic.lengths": fixed})
    assert _longer(whole, "outputs") == {"traffic.lengths.output_tokens": 12}


@pytest.fixture
def recorded(tmp_path):
    """A trace of 600 requests at 5 a second, and its scenario."""
    draw = np.random.default_rng(2)
    arrivals = np.cumsum(draw.exponential(0.2, 600))
    path = write_requests(arrivals, draw.integers(100, 900, 600), np.full(600, 40), tmp_path)
    traffic = {"trace": {"kind": "azure-2023", "path": str(path)}, "warmup_s": 0.0}
    told = QUICK.resolved() | {"traffic": traffic}
    told["slo"] = {"ttft_s": 1.0, "tpot_s": 0.03, "attained_frac": 0.9}
    return Scenario.parse(told)


def test_a_trace_is_played_faster_and_made_burstier_or_longer(recorded, tmp_path):
    as_is = sample_of(recorded)
    assert _more_traffic(recorded, 2.0) == {"traffic.trace.rate_scale": 2.0}
    assert sample_of(recorded.override(_more_traffic(recorded, 2.0))).rate_rps == pytest.approx(
        2 * as_is.rate_rps, rel=1e-6
    )

    def made(what):
        changed = recorded.override(recorded_otherwise(recorded, what, tmp_path / "made"))
        return sample_of(changed)

    bursty = made("burstiness")
    gaps = [np.diff(each.arrival_s) for each in (as_is, bursty)]
    cv = [each.std() / each.mean() for each in gaps]
    assert cv[1] == pytest.approx(OTHER * cv[0], rel=1e-3)
    assert bursty.rate_rps == pytest.approx(as_is.rate_rps, rel=1e-3)
    assert (np.argsort(gaps[0], kind="stable") == np.argsort(gaps[1], kind="stable")).mean() > 0.9
    assert made("outputs").output_tokens.tolist() == [50] * 600
    assert made("prompts").prompt_tokens.sum() == pytest.approx(1.25 * as_is.prompt_tokens.sum(), 1)
    assert list(made("prompts").output_tokens) == list(as_is.output_tokens)


def test_a_trace_whose_prompts_share_prefixes_is_not_written_anew(tmp_path):
    shared = QUICK.override({"traffic.prompts": {"kind": "shared-prefix", "prefix_tokens": 200}})
    assert recorded_otherwise(shared, "prompts", tmp_path) is None


@pytest.mark.slow
def test_a_plan_from_a_trace_has_headroom_and_sensitivity(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = {
        "llmsim": 1,
        "name": "recorded",
        "model": "llama-3.1-8b",
        "slo": {"ttft_s": 1.0, "tpot_s": 0.03, "attained_frac": 0.9},
        "traffic": {"trace": recorded.resolved()["traffic"]["trace"]},
        "gpus": {"h100-sxm": {}},
    }
    slo = {"ttft_s": 1.0, "tpot_s": 0.03, "attained_frac": 0.9}
    plan = replace(
        PLAN, scenario_yaml=recorded.resolved_yaml(), slo=slo, plan_yaml=yaml.safe_dump(asked)
    )
    found = look_ahead(plan, seeds=2, draws=0, executor=HERE)
    # short prompts on eight replicas: they stand all that is tried
    assert [each.factor for each in found.headroom] == list(LOADS)
    assert all(each.kept for each in found.headroom)
    assert [each.what for each in found.sensitivity] == ["burstiness", "prompts", "outputs"]
    assert found.left_out == ("the cost model's error: no draws were asked for",)


def test_where_it_breaks_is_said_with_what_was_full():
    said = breaking(OUTLOOK)
    assert said.startswith("The promise holds up to 1.25 times the planned rate, and breaks at 1.5")
    assert "What breaks is ttft: 60.0% of the requests keep it." in said
    assert "Replicas do not keep up: the busiest replica is busy 90.0% of the time" in said
    unsure = tried(1.5, 0.95, False, sure=False, seeds=12)
    doubted = breaking(replace(OUTLOOK, headroom=(*OUTLOOK.headroom[:2], unsure)))
    assert doubted.startswith(
        "The promise holds up to 1.25 times the planned rate. 12 further seeds do not decide at "
        "1.5 times it: 95.0% attained, at least 94.0%."
    )
    alone = breaking(replace(OUTLOOK, headroom=(replace(unsure, factor=1.0),)), PLAN)
    assert alone.startswith("12 further seeds do not decide at the planned rate: 95.0%")
    assert [each.word for each in (*OUTLOOK.headroom[1:], OUTLOOK.sensitivity[1], unsure)] == [
        "kept",
        "overloaded",
        "not kept",
        "not sure",
    ]
    short = replace(OUTLOOK, headroom=(tried(1.0, 0.5, False, preemptions=40.0),))
    assert breaking(short).startswith("The promise does not hold at the planned rate.")
    assert "KV memory is short: 40" in breaking(short)
    ample = replace(OUTLOOK, headroom=OUTLOOK.headroom[:2])
    assert breaking(ample) == "The promise holds up to 1.25 times the planned rate, the most tried."


def test_it_is_saved_and_stands_on_the_page(tmp_path):
    OUTLOOK.save(tmp_path)
    assert Outlook.load(tmp_path) == OUTLOOK
    assert Outlook.load(tmp_path / "elsewhere") is None
    page = Page(render_plan(PLAN, OUTLOOK))
    said = " ".join(" ".join(page.words).split())
    assert len(page.svgs) == 4
    assert breaking(OUTLOOK) in said
    # 1 kW for 8766 h
    assert power_said(OUTLOOK) in said
    assert "1,000 W (8,766 kWh a year" in power_said(OUTLOOK)
    assert "rate x 1.25 97.0% 96.0% to 98.0% kept" in said
    assert "burstiness x 1.25 98.0% 97.0% to 99.0% kept" in said
    assert "shown to be kept in 75.0% of 8 draws" in said
    assert "Not tried: outputs" in said


@pytest.mark.slow
def test_a_fleet_is_tried_until_its_promise_breaks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    scenario = QUICK.override(
        {"traffic.requests": 400, "slo": {"ttft_s": 1.0, "tpot_s": 0.03, "attained_frac": 0.9}}
    )
    slo = {"ttft_s": 1.0, "tpot_s": 0.03, "attained_frac": 0.9}
    plan = replace(PLAN, scenario_yaml=scenario.resolved_yaml(), slo=slo)
    found = look_ahead(plan, seeds=2, draws=2, executor=HERE)
    assert_closed_in(found.headroom)
    first, last = found.headroom[0], found.headroom[-1]
    assert last.attained_frac < first.attained_frac
    assert last.low_frac < 0.9 or last.overloaded
    assert [each.what for each in found.sensitivity] == ["burstiness", "prompts", "outputs"]
    assert found.draws == 2
    assert 0 <= found.met_frac <= 1
    # the same seeds give the same answer, simulated anew and as it was kept
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert look_ahead(plan, seeds=2, draws=0, executor=HERE).headroom == found.headroom
    monkeypatch.setattr(simulating, "simulate_fleet", None)
    assert look_ahead(plan, seeds=2, draws=0, executor=HERE).headroom == found.headroom


@pytest.mark.parametrize(
    ("attained", "seeds", "word"),
    [
        # mean 0.93 above the target 0.9, but three seeds vary too much; six and twelve as well
        ((0.99, 0.80, 1.00), 12, "not sure"),
        ((0.99, 0.98, 1.00), 3, "kept"),
        ((0.50, 0.52, 0.51), 3, "not kept"),
    ],
)
def test_more_seeds_are_simulated_while_they_do_not_decide(attained, seeds, word, monkeypatch):
    """A plan that was shown to do is not called broken because three further seeds are few."""

    def made(scenarios, workers, store):
        return [
            Point({"slo_attained_frac": attained[each.seed % 3], "requests": 1000.0}, "", "stable")
            for each in scenarios
        ]

    monkeypatch.setattr(outlook, "points_of", made)
    slo = {"ttft_s": 1.0, "attained_frac": 0.9}
    plan = replace(PLAN, scenario_yaml=QUICK.resolved_yaml(), slo=slo)
    first = look_ahead(plan, seeds=3, draws=0, executor=HERE).headroom[0]
    assert (first.seeds, first.word) == (seeds, word)
