"""What a replica's time goes into: adds up to its closed form, and names what would help."""

from __future__ import annotations

import math

import pytest

import llmsim as ls
from llmsim.planner.capacity import _Replica
from llmsim.planner.reading import POOL, read_plan
from llmsim.planner.spending import _explaining, _turn, spending
from llmsim.planner.work import prepare
from llmsim.serving.build import build_pools


def asked(prompt, output, gpu="h100-sxm", model="llama-3.1-8b", **more):
    lengths = {"kind": "fixed", "prompt_tokens": prompt, "output_tokens": output}
    arrivals = {"kind": "poisson", "rate_rps": 10.0}
    told = {
        "llmsim": 1,
        "model": model,
        "slo": {"ttft_s": 2.0, "tpot_s": 0.05, "attained_frac": 0.9},
        "gpus": {gpu: {"usd_per_hour": 3.0}},
        "traffic": {"arrivals": arrivals, "lengths": lengths, "requests": 300},
        "search": {"tp": [1]},
    }
    return told | more


def spent(*args, **more):
    work = prepare(read_plan(asked(*args, **more)))
    return {each.role: spending(work.asked, each, work.demand) for each in work.candidates.kept}


def test_the_parts_add_up_to_the_turn_of_the_closed_form():
    work = prepare(read_plan(asked(3000, 300)))
    (candidate,) = work.candidates.kept
    plan = build_pools(work.asked.scenario.override(candidate.choice.overrides(POOL)))[0][0]
    shape = next(iter(work.demand.shapes.values()))
    explain = _explaining(plan)
    assert explain is not None
    prompts, outputs = _turn(explain, plan.config, shape, 40, True)
    replica = _Replica(plan.cost, plan.config, shape)
    told = math.fsum(prompts.values()) + math.fsum(outputs.values())
    turn_s = shape.output_tokens * replica.step_s(40) + 40 * replica.prompt_s(40)
    assert told == pytest.approx(turn_s, rel=0.01)


def test_prompts_compute_and_outputs_read():
    found = spent(4000, 8)["mixed"]
    assert found.prompts["compute"] > 0.8
    assert max(found.whole, key=found.whole.get) == "compute"
    found = spent(64, 1000)["mixed"]
    assert found.outputs["bandwidth"] > 0.8
    assert max(found.whole, key=found.whole.get) == "bandwidth"
    assert math.fsum(found.whole.values()) == pytest.approx(1.0)
    assert 0 < found.kv_frac <= 1
    assert 0 < found.seats_frac <= 1


def test_halves_spend_on_their_own_part_alone():
    search = {"tp": [1], "roles": ["mixed", "prefill", "decode"]}
    slo = {"ttft_s": 0.5, "tpot_s": 0.012, "attained_frac": 0.9}
    found = spent(3000, 200, search=search, slo=slo)
    assert not found["prefill"].outputs
    assert found["prefill"].whole == found["prefill"].prompts
    assert not found["decode"].prompts


def test_a_slow_link_is_seen():
    quick = spent(2000, 200, search={"tp": [8]})["mixed"]
    slow = spent(2000, 200, "l40s", search={"tp": [8]})["mixed"]
    assert slow.whole["link"] > 2 * quick.whole["link"]


def test_a_plan_says_it_and_keeps_it():
    plan = ls.plan(asked(1000, 100), simulate=False)
    assert plan.used[0].spending is not None
    assert type(plan).from_json(plan.as_json()) == plan
