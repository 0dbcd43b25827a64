"""Plan files whose fleets may compute prompts here and outputs there, end to end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

import llmsim as ls
from llmsim.core.errors import InputError
from llmsim.core.paths import list_data
from llmsim.planner import work as work_room
from llmsim.planner.candidates import Candidate, Candidates
from llmsim.planner.capacity import Capacity, Limits, Shape
from llmsim.planner.columns import Choice, Hand
from llmsim.planner.fleets import fleet_scenario
from llmsim.planner.plan import Plan
from llmsim.planner.problem import Column
from llmsim.planner.reading import read_plan
from llmsim.planner.splitting import Split
from llmsim.planner.traffic import Range
from llmsim.planner.work import prepare
from llmsim.scenario import Scenario
from llmsim.serving.build import build_handoff
from llmsim.serving.handoff import TransferPrice
from llmsim.study.executor import Executor

ASKED = {
    "llmsim": 1,
    "name": "apart",
    "model": "llama-3.1-8b",
    "slo": {"ttft_s": 0.5, "tpot_s": 0.012, "attained_frac": 0.9},
    "traffic": {
        "arrivals": {"kind": "poisson", "rate_rps": 40.0},
        "lengths": {
            "kind": "lognormal",
            "prompt_mean_tokens": 3000,
            "prompt_cv": 0.8,
            "prompt_max_tokens": 16000,
            "output_mean_tokens": 200,
            "output_cv": 0.6,
            "output_max_tokens": 1000,
        },
        "requests": 1500,
    },
    "engine": {"max_model_len": 20000},
    "gpus": {"h100-sxm": {"usd_per_hour": 3.0}},
    "search": {"tp": [1], "roles": ["mixed", "prefill", "decode"]},
}


@pytest.fixture(scope="module")
def found():
    return ls.plan(ASKED, simulate=False)


def test_a_tight_pace_is_kept_by_decoding_apart(found):
    """Prompts of 3,000 tokens hold up a pace of 12 ms: apart takes fewer GPUs, as in DistServe."""
    together = ls.plan(ASKED, {"search.roles": ["mixed"]}, simulate=False)
    assert {each.role for each in found.used} == {"prefill", "decode"}
    assert found.usd_per_hour < together.usd_per_hour
    for part in found.ranges:
        for role in ("prefill", "decode"):
            shares = [u.share.get(part.name, 0.0) for u in found.used if u.role == role]
            assert sum(shares) == pytest.approx(1.0)
    assert all(0 < each.port_frac < 0.6 for each in found.used)


def test_a_loose_pace_is_cheaper_together():
    loose = ls.plan(ASKED, {"slo.tpot_s": 0.1, "slo.ttft_s": 3.0}, simulate=False)
    assert {each.role for each in loose.used} == {"mixed"}
    reasons = {each.name: each.reason for each in loose.losers}
    assert "with h100-sxm-decode" in reasons["h100-sxm-prefill"]
    assert "with h100-sxm-prefill" in reasons["h100-sxm-decode"]


def test_the_fleet_is_a_scenario_that_hands_over(found):
    scenario = Scenario.parse(yaml.safe_load(found.scenario_yaml))
    assert {pool.role for pool in scenario.fleet.pools.values()} == {"prefill", "decode"}
    assert scenario.fleet.routing.kind == scenario.fleet.handoff.routing.kind == "least-loaded"
    result = ls.run(scenario, {"traffic.requests": 100})
    assert result.metrics["requests_finished"] == 100
    assert set(result.by_prefill_pool) == {"h100-sxm-prefill"}
    assert result.by_pool["h100-sxm-decode"]["requests"] > 90  # all but answers of one token
    assert Plan.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_thin_link_costs_until_apart_does_not_pay(tmp_path):
    """KV of 40 x 3,000 tokens a second is 16 GB/s; ports of 8 and 1 GB/s may carry 0.6 of it."""
    told = (list_data("profiles/links", ".yaml")["ethernet-64g"]).read_text()
    (tmp_path / "thin.yaml").write_text(told.replace("8.0e+9", "1.0e+9"))
    links = (None, "ethernet-64g", str(tmp_path / "thin.yaml"))
    plans = [ls.plan(ASKED, {"handoff.link": link}, simulate=False) for link in links]
    costs = [plan.usd_per_hour for plan in plans]
    assert costs == sorted(costs)
    assert {each.role for each in plans[0].used} == {"prefill", "decode"}
    assert {each.role for each in plans[-1].used} == {"mixed"}
    assert all(each.port_frac <= 0.6 + 1e-6 for plan in plans for each in plan.used)


def test_the_fleet_can_be_deployed(found):
    """One pool of either role: the router of the engine does what the plan asks for."""
    made = ls.deploy(Scenario.parse(yaml.safe_load(found.scenario_yaml)))
    assert {"launch/h100-sxm-prefill.sh", "launch/h100-sxm-decode.sh"} <= set(made.files)
    assert "llm-d/values.yaml" in made.files


def test_ports_and_ways_are_those_of_the_simulator():
    price = TransferPrice(1e5, 0.0, 64.0, 0.0, 1e-6)
    hand = Hand(price, 50e9, 16, first_token_at_decode=False)
    shape = Shape(3200, 101)
    way_s = 64 * 200 * 1e-6 + 3.2e8 / 50e9
    assert hand.seconds(shape) == pytest.approx(way_s)
    promised = Limits(0.5, 0.012)
    assert hand.limits(promised, shape, "prefill") == Limits(ttft_s=0.5)
    assert hand.limits(promised, shape, "decode").tpot_s == pytest.approx(0.012 - way_s / 100)
    assert hand.limits(Limits(0.5, way_s / 200), shape, "decode") is None
    late = replace(hand, first_token_at_decode=True)
    assert late.limits(promised, shape, "prefill").ttft_s == pytest.approx(0.5 - way_s)
    assert late.limits(promised, shape, "decode") == Limits(tpot_s=0.012)
    assert late.limits(Limits(way_s / 2), shape, "prefill") is None


def test_the_time_to_the_last_token_is_divided():
    """3 s: 0.5 s of prompts leave 2.5 s for 100 gaps; without them, 100 gaps of 12 ms leave 1.8."""
    price = TransferPrice(1e5, 0.0, 64.0, 0.0, 1e-6)
    hand = Hand(price, 50e9, 16, first_token_at_decode=False)
    shape = Shape(3200, 101)
    way_s = hand.seconds(shape)
    inf = float("inf")
    both = Limits(0.5, inf, 3.0)
    assert hand.limits(both, shape, "prefill") == Limits(ttft_s=0.5)
    assert hand.limits(both, shape, "decode").tpot_s == pytest.approx((2.5 - way_s) / 100)
    paced = Limits(inf, 0.012, 3.0)
    assert hand.limits(paced, shape, "prefill").ttft_s == pytest.approx(1.8)
    assert hand.limits(paced, shape, "decode").tpot_s == pytest.approx(0.012 - way_s / 100)
    assert hand.limits(Limits(inf, 0.03, 3.0), shape, "prefill") is None
    assert hand.limits(Limits(3.0, inf, 3.0), shape, "decode") is None
    one = Shape(3200, 1)  # no gaps
    assert hand.limits(paced, one, "prefill").ttft_s == pytest.approx(3.0)
    assert hand.limits(both, one, "decode").tpot_s == inf
    late = replace(hand, first_token_at_decode=True)
    assert late.limits(both, shape, "prefill").ttft_s == pytest.approx(0.5 - way_s)
    assert late.limits(both, shape, "decode").tpot_s == pytest.approx(0.025)


def test_a_tighter_end_is_never_cheaper_apart():
    """Answers of up to 1,000 tokens: 12 ms a token end within 12.5 s, so that 13 s say nothing."""
    costs = [
        ls.plan(ASKED, {"slo.e2e_s": end_s}, simulate=False).usd_per_hour
        for end_s in (13.0, 7.0, 6.0)
    ]
    assert costs == sorted(costs)
    assert costs[0] == ls.plan(ASKED, simulate=False).usd_per_hour
    assert costs[-1] > costs[0]


ALONE = {"slo.ttft_s": None, "slo.tpot_s": None}


def test_the_end_alone_is_divided_by_a_share():
    """3 s, a tenth of them for prompts: 2.7 s are left for 100 gaps and the way of the KV."""
    price = TransferPrice(1e5, 0.0, 64.0, 0.0, 1e-6)
    hand = Hand(price, 50e9, 16, first_token_at_decode=False)
    shape, inf = Shape(3200, 101), float("inf")
    way_s = hand.seconds(shape)
    end = Limits(inf, inf, 3.0, 0.1)
    assert hand.limits(end, shape, "prefill").ttft_s == pytest.approx(0.3)
    assert hand.limits(end, shape, "decode").tpot_s == pytest.approx((2.7 - way_s) / 100)
    one = Shape(3200, 1)  # nothing to divide
    assert hand.limits(end, one, "prefill").ttft_s == pytest.approx(3.0)


def test_the_end_alone_is_never_dearer_than_with_a_first_token_beside_it(monkeypatch):
    """A share that is tried, written as a promise of its own, only takes away."""

    def naive(change):
        return ls.plan(ASKED, change, simulate=False).waterfall[0].usd_per_hour

    for end_s, frac in ((6.0, 0.1), (4.0, 0.35)):
        monkeypatch.setattr(work_room, "FIRST_FRACS", (frac,))
        alone = naive({**ALONE, "slo.e2e_s": end_s})
        parted = {"slo.tpot_s": None, "slo.ttft_s": frac * end_s, "slo.e2e_s": end_s}
        assert alone <= naive(parted) * (1 + 1e-6)


def test_the_cheapest_share_is_taken(monkeypatch):
    tight = {**ALONE, "slo.e2e_s": 4.5}
    best = ls.plan(ASKED, tight, simulate=False)
    costs = {}
    for frac in work_room.FIRST_FRACS:
        with monkeypatch.context() as patch:
            patch.setattr(work_room, "FIRST_FRACS", (frac,))
            costs[frac] = ls.plan(ASKED, tight, simulate=False).usd_per_hour
    assert best.usd_per_hour == pytest.approx(min(costs.values()))
    assert min(costs.values()) < max(costs.values())  # it does matter


def test_a_tighter_end_alone_is_never_cheaper_and_says_how_it_was_divided():
    plans = [
        ls.plan(ASKED, {**ALONE, "slo.e2e_s": end_s}, simulate=False) for end_s in (12.0, 6.0, 4.0)
    ]
    costs = [each.usd_per_hour for each in plans]
    assert costs == sorted(costs)
    assert all(any("of e2e_s prompts" in note for note in each.notes) for each in plans)
    none = ls.plan(ASKED, {**ALONE, "slo.e2e_s": 6.0, "search.roles": ["mixed"]}, simulate=False)
    assert not any("of e2e_s prompts" in note for note in none.notes)
    assert plans[1].usd_per_hour <= none.usd_per_hour * (1 + 1e-6)


def test_an_end_that_nothing_reaches_is_told():
    with pytest.raises(InputError, match="to the last token"):
        ls.plan(ASKED, {**ALONE, "slo.e2e_s": 0.05}, simulate=False)


def test_what_is_planned_of_a_hand_over_is_what_is_simulated(found):
    work = prepare(read_plan(ASKED))
    plan = build_handoff(Scenario.parse(yaml.safe_load(found.scenario_yaml)))
    decode = work.candidates.of("h100-sxm-decode").column
    assert decode.port_bytes_per_s == plan.port_bytes_per_s[0]
    mean = sum(part.rate_rps * decode.handed_bytes[part.name] for part in work.ranges)
    tokens = float(work.sample.prompt_tokens.sum()) / work.sample.duration_s
    assert mean == pytest.approx(tokens * plan.prices[0].bytes_per_token, rel=2e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"search.roles": ["prefill"]}, "search.roles: prefill and decode go together"),
        ({"handoff.routing": "round-robin"}, "handoff.routing: is not set here"),
        ({"handoff.link": "infinibandd"}, "handoff.link: unknown link"),
        ({"zones": 1}, "zones: when the only zone is lost"),
    ],
)
def test_each_mistake_is_told_at_its_key(change, said):
    with pytest.raises(InputError, match=said) as caught:
        ls.plan(ASKED, change, simulate=False)
    assert len(caught.value.faults) == 1


def test_what_may_be_lost_at_a_time():
    """A node of H100 holds eight replicas of one GPU; a third of all are in each of three zones."""
    work = prepare(read_plan(ASKED, {"spare_nodes": 1, "zones": 3}))
    fleet = {"h100-sxm-prefill": 11, "h100-sxm-decode": 9}
    assert work.losses(fleet) == {
        "h100-sxm-prefill": {"h100-sxm-prefill": 8},
        "h100-sxm-decode": {"h100-sxm-decode": 8},
        "zone": {"h100-sxm-prefill": 4, "h100-sxm-decode": 3},
    }
    assert work.complete({"h100-sxm-prefill": 2}) == {}
    assert work.complete({"h100-sxm": 1, "h100-sxm-decode": 2}) == {"h100-sxm": 1}


def test_a_zone_more_costs_and_is_a_stage_of_its_own(found):
    safe = ls.plan(ASKED, {"zones": 2}, simulate=False)
    assert [step.name for step in safe.waterfall] == ["naive", "pooled", "loss"]
    assert safe.usd_per_hour > found.usd_per_hour
    for each in safe.used:
        bare = next(other for other in found.used if other.name == each.name)
        assert each.replicas - each.spare_replicas >= bare.replicas
        assert each.spare_replicas == -(-each.replicas // 2)


def candidate(name, role, rates):
    choice = Choice("h100-sxm", role=role)
    column = Column(name, choice.gpu, 1, 1.0, rates, role=role)
    kept = Capacity(1.0, 1, 0.1, 0.01, "none")
    return Candidate(choice, column, {"a": kept, "b": kept}, {"a": 0.0, "b": 0.0}, 8.0, 8.0)


def test_both_routers_divide_as_planned():
    """Long prompts are computed apart; the decoders share them out; short ones stay whole."""
    asked = read_plan(ASKED)
    kept = (
        candidate("mixed", "mixed", {"a": 1.0}),
        candidate("prefill", "prefill", {"a": 1.0, "b": 1.0}),
        candidate("decode", "decode", {"a": 1.0, "b": 1.0}),
        candidate("other", "decode", {"b": 1.0}),
    )
    share = {
        ("a", "mixed"): 1.0,
        ("b", "prefill"): 1.0,
        ("b", "decode"): 0.25,
        ("b", "other"): 0.75,
    }
    ranges = (Range("a", 1, 1.0, ("a",)), Range("b", 512, 1.0, ("b",)))
    fleet = dict.fromkeys(("mixed", "prefill", "decode", "other"), 1)
    divided = Split(share, {}, {})
    scenario = fleet_scenario(asked, Candidates(kept, (), {}), ranges, fleet, divided)
    doors, decoders = scenario.fleet.routing.params, scenario.fleet.handoff.routing.params
    assert doors["shares"] == {"mixed": [1.0, None], "prefill": [0.0, 1.0]}
    # nothing of the first range is planned to be handed over; what is passed on has a taker
    assert decoders["shares"] == {"decode": [1.0, 0.25], "other": [None, 0.75]}


@pytest.mark.slow
def test_the_plan_is_shown_by_simulation(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fast = {"traffic.requests": 400, "prove.seeds": [2, 4], "prove.most_fleets": 6}
    plan = ls.plan(ASKED, fast, executor=Executor("local", 1))
    assert {each.role for each in plan.corrected} == {"mixed", "prefill", "decode"}
    assert all(0.5 < each.factor < 2.0 for each in plan.corrected)
    assert plan.outcome != "not proven"
    assert {each.role for each in plan.used} >= {"prefill", "decode"}
    assert plan.proof is not None
    assert plan.proof.low_frac >= 0.9
