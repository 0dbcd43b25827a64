"""Several models from one inventory and one budget."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
from test_plan import ASKED

from llmsim.core.errors import InputError
from llmsim.planner import Bucket, Column, Problem, pack
from llmsim.planner.several import fleets_of, plan_models, together
from llmsim.planner.splitting import split


def problem(large, small, rate):
    columns = (
        Column("large", "h100", 1, 4.0, {"all": large}),
        Column("small", "l40s", 1, 1.0, {"all": small}),
    )
    return Problem((Bucket("all", rate),), columns)


CHAT, CODE = problem(4.0, 1.2, 6.0), problem(2.0, 0.3, 3.0)
BOTH = {"chat": CHAT, "code": CODE}


def fits(asked, fleet):
    of = {column.name: column for column in asked.columns}
    carried = {name: float(count) for name, count in fleet.items() if count}
    divided = split(asked.buckets, of, carried) if carried else None
    return divided is not None and divided.peak <= 1 + 1e-9


@cache
def able(name):
    """Return every fleet that carries a model's traffic, with its cost."""
    return [
        (each, 4.0 * each[0] + each[1])
        for each in itertools.product(range(8), repeat=2)
        if fits(BOTH[name], dict(zip(("large", "small"), each, strict=True)))
    ]


def brute_force(available):
    """Return the least cost of two fleets that together keep within the inventory."""
    costs = [
        one[1] + other[1]
        for one, other in itertools.product(able("chat"), able("code"))
        if one[0][0] + other[0][0] <= available.get("h100", 99)
        and one[0][1] + other[0][1] <= available.get("l40s", 99)
    ]
    return min(costs)


@pytest.mark.parametrize("available", [{}, {"l40s": 4}, {"h100": 2}, {"h100": 3, "l40s": 4}])
def test_no_two_fleets_are_cheaper(available):
    packed = pack(together(BOTH, available))
    assert packed.usd_per_hour == pytest.approx(brute_force(available))
    fleets = fleets_of(packed, BOTH)
    assert all(fits(BOTH[name], fleet) for name, fleet in fleets.items())


def test_without_limits_each_has_the_fleet_that_it_has_alone():
    packed = pack(together(BOTH))
    assert fleets_of(packed, BOTH) == {name: pack(each).replicas for name, each in BOTH.items()}


def test_what_is_short_is_said_of_all_together():
    with pytest.raises(InputError, match=f"too little: {brute_force({}):.2f} are needed"):
        pack(together(BOTH, budget_usd_per_hour=9.0))
    with pytest.raises(InputError, match=r"available_gpus\.h100: 0 GPUs are too few"):
        pack(together(BOTH, {"h100": 0, "l40s": 10}))


def test_a_fleet_that_failed_rules_out_those_of_its_own_model():
    alone = pack(CHAT).replicas
    again = together({"chat": replace(CHAT, failed=(alone,)), "code": CODE})
    fleets = fleets_of(pack(again), BOTH)
    assert fleets["code"] == pack(CODE).replicas
    assert fleets["chat"] != alone
    assert any(count > alone.get(name, 0) for name, count in fleets["chat"].items())


def test_halves_go_with_halves_of_the_same_model():
    def half(role):
        return Column(role, "h100", 1, 1.0, {"all": 9.0}, role=role)

    apart = replace(CHAT, columns=(*CHAT.columns, half("prefill"), half("decode")))
    code = replace(CODE, columns=(*CODE.columns, half("prefill")))
    packed = pack(together({"chat": apart, "code": code}))
    assert fleets_of(packed, {"chat": apart, "code": code}) == {
        "chat": {"prefill": 1, "decode": 1},
        "code": pack(CODE).replicas,
    }


def test_what_is_one_for_all_must_be_one():
    with pytest.raises(InputError) as caught:
        together({"chat": replace(CHAT, zones=2), "code": replace(CODE, budget_usd_per_hour=3.0)})
    told = str(caught.value)
    assert "models.code: has limits of its own" in told
    assert "models.code.zones: 0 differs from 2 of 'chat'" in told
    with pytest.raises(InputError, match="none to plan for"):
        together({})


BARE = {gpu: {"usd_per_hour": offer["usd_per_hour"]} for gpu, offer in ASKED["gpus"].items()}
FILES = {
    "chat": ASKED | {"name": "chat", "gpus": BARE},
    "code": ASKED
    | {"name": "code", "gpus": BARE, "slo": {"ttft_s": 1.0, "tpot_s": 0.03}}
    | {"traffic": ASKED["traffic"] | {"arrivals": {"kind": "poisson", "rate_rps": 10.0}}},
}


def gpus(plans, card):
    used = [each for plan in plans.values() for each in plan.used if each.gpu == card]
    return sum(each.gpus * each.replicas for each in used)


@pytest.mark.slow
def test_models_are_planned_from_one_inventory():
    free = plan_models(FILES, simulate=False)
    assert set(free) == {"chat", "code"}
    most = gpus(free, "l40s") + gpus(free, "a100-80gb-sxm") + gpus(free, "h100-sxm")
    assert most > 2
    scarce = {"l40s": 2, "a100-80gb-sxm": 3}
    shared = plan_models(FILES, scarce, simulate=False)
    assert gpus(shared, "l40s") <= 2
    assert gpus(shared, "a100-80gb-sxm") <= 3
    cost = {
        name: sum(plan.usd_per_hour for plan in plans.values())
        for name, plans in (("free", free), ("shared", shared))
    }
    assert cost["shared"] >= cost["free"]
    rich = plan_models(FILES, budget_usd_per_hour=cost["free"] + 0.01, simulate=False)
    assert {name: plan.replicas for name, plan in rich.items()} == {
        name: plan.replicas for name, plan in free.items()
    }
    with pytest.raises(InputError, match="too little"):
        plan_models(FILES, budget_usd_per_hour=cost["free"] / 2, simulate=False)
