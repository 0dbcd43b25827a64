"""Several models from one inventory and one budget."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from functools import cache

import pytest
import yaml
from test_plan import ASKED
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.core.errors import InputError, ScenarioError
from llmsim.planner import Bucket, Column, Problem, pack
from llmsim.planner import several as several_module
from llmsim.planner.plan import Evidence
from llmsim.planner.reading import read_plan
from llmsim.planner.several import plan_models, plan_several
from llmsim.planner.several_folder import load_plans
from llmsim.planner.several_reading import read_several
from llmsim.planner.splitting import split
from llmsim.planner.together import fleets_of, together
from llmsim.results.wording import usd
from llmsim.scenario import Scenario


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


def judged_by_card(monkeypatch, passes):
    """Have plans say that they were simulated: who has a card that `passes`, by model, passes.

    What fails is as much of every other card as a model could have bought.
    """
    real, parts = several_module.plan_work, []

    def plan_work(work, *, simulate, executor, progress):
        plan = real(work, simulate=False, executor=executor, progress=progress)
        name = work.asked.keys.name
        offers = {gpu: offer.available for gpu, offer in work.asked.keys.gpus.items()}
        parts.append((name, offers))
        card = passes[name]
        if any(each.gpu == card for each in plan.used):
            return replace(plan, outcome="simulated")
        others = [each for each in work.problem().columns if each.gpu != card]
        most = {each.name: offers[each.gpu] or 0 for each in others}
        return replace(plan, outcome="not proven", evidence=(failing(most),))

    monkeypatch.setattr(several_module, "plan_work", plan_work)
    return parts


def failing(fleet):
    many = {"seeds": (1,), "attained_frac": (0.5,), "digests": ("",), "reason": "late"}
    none = {"overloaded": 0, "low_frac": 0.4, "high_frac": 0.6, "ttft_p99_s": None}
    return Evidence("search", fleet, "", 1.0, passed=False, tpot_p99_s=None, **many, **none)


SCARCE = {"l40s": 6, "a100-80gb-sxm": 4, "h100-sxm": 1}


@pytest.mark.slow
def test_what_there_is_is_divided_anew_where_a_part_was_too_small(monkeypatch):
    """The H100 goes to whom the program saves most with it, until the other fails without it."""
    files = {name: file | {"prove": {"micro_columns": 0}} for name, file in FILES.items()}
    alone = plan_models(files, SCARCE, simulate=False)
    (has,) = (name for name, plan in alone.items() if gpus({name: plan}, "h100-sxm"))
    lacks = "chat" if has == "code" else "code"
    judged_by_card(monkeypatch, {lacks: "h100-sxm", has: "a100-80gb-sxm"})
    plans = plan_models(files, SCARCE)
    assert gpus({lacks: plans[lacks]}, "h100-sxm") == 1
    assert {plan.outcome for plan in plans.values()} == {"simulated"}
    for card, most in SCARCE.items():
        assert gpus(plans, card) <= most


@pytest.mark.slow
def test_dividing_anew_ends_where_nothing_helps(monkeypatch):
    files = {name: file | {"prove": {"micro_columns": 0}} for name, file in FILES.items()}
    parts = judged_by_card(monkeypatch, {"chat": "none", "code": "none"})
    plans = plan_models(files, SCARCE)
    assert {plan.outcome for plan in plans.values()} == {"not proven"}
    assert len(parts) <= 2 * several_module.MOST_DIVISIONS


TOGETHER = {
    "llmsim": 1,
    "name": "both",
    "slo": ASKED["slo"],
    "engine": ASKED["engine"],
    "search": ASKED["search"],
    "gpus": BARE,
    "models": {
        name: {key: file[key] for key in ("model", "traffic", "slo")}
        for name, file in FILES.items()
    },
}


def test_what_stands_beside_models_holds_for_each():
    several = read_several(TOGETHER | {"spare_replicas": 1, "budget_usd_per_hour": 50.0})
    assert several.name == "both"
    assert several.budget_usd_per_hour == 50.0
    chat, code = several.asked["chat"], several.asked["code"]
    assert (chat.keys.slo.tpot_s, code.keys.slo.tpot_s) == (0.05, 0.03)
    assert chat.keys.spare_replicas == code.keys.spare_replicas == 1
    assert chat.keys.budget_usd_per_hour is None  # shared, so nobody's own
    assert chat.keys.engine.max_model_len == 12000
    part = chat.limited({"l40s": 3}, 7.5)
    again = read_plan(yaml.safe_load(part.text))
    assert again.keys == part.keys
    assert part.keys.gpus["l40s"].available == 3
    assert read_several(ASKED) is None
    with pytest.raises(ScenarioError, match="planned together"):
        read_plan(TOGETHER)


def test_every_fault_of_every_model_is_told_once_at_its_place(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(
        "llmsim: 1\n"
        "slo: {ttft_s: 1.0}\n"
        "gpus: {h100-sxn: {}}\n"
        "models:\n"
        "  chat:\n"
        "    model: llama-3.1-8\n"
        "    gpus: {l40s: {}}\n"
        "    traffic: {arrivals: {kind: poisson, rate_rps: -1}, lengths: {kind: fixed,"
        " prompt_tokens: 9, output_tokens: 9}, requests: 5}\n"
        "  code: 3\n"
        "  other:\n"
        "    model: llama-3.1-8b\n"
    )
    with pytest.raises(ScenarioError) as caught:
        read_several(path)
    told = [str(fault) for fault in caught.value.faults]
    for start in (
        "both.yaml:7  models.chat.gpus: is one for all",
        "both.yaml:9  models.code: is no section.",
        "both.yaml:6  models.chat.model: unknown model 'llama-3.1-8'. Did you mean 'llama-3.1-8b'",
        "both.yaml:8  models.chat.traffic.arrivals.rate_rps:",
        "both.yaml:3  gpus.h100-sxn: unknown gpu",
        "both.yaml  models.other.traffic: is missing",
    ):
        assert sum(each.startswith(start) for each in told) == 1, start
    assert len(told) == 6


def test_what_one_model_lacks_is_told_by_its_name():
    with pytest.raises(InputError, match=r"models\.code\.slo: .*are late on any configuration"):
        plan_several(TOGETHER, {"models.code.slo.ttft_s": 0.0001}, simulate=False)


@pytest.mark.slow
def test_the_command_plans_each_model_and_says_what_is_left(tmp_path):
    path, folder = tmp_path / "both.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(TOGETHER))
    words = ["plan", str(path), "--no-simulate", "-o", str(folder)]
    stock = ["--set", "gpus.h100-sxm.available=1", "--set", "gpus.a100-80gb-sxm.available=4"]
    ran = CliRunner().invoke(app, [*words, *stock, "--explain"])
    assert ran.exit_code == 0, ran.stderr
    plans = load_plans(folder)
    assert list(plans.plans) == ["chat", "code"]
    assert plans.available_gpus == {"h100-sxm": 1, "a100-80gb-sxm": 4}
    assert plans.gpus.get("h100-sxm", 0) <= 1
    assert plans.outcome == "not simulated"
    cost = math.fsum(plan.usd_per_hour for plan in plans.plans.values())
    assert plans.usd_per_hour == cost
    page = (folder / "report.html").read_text()
    assert "chat/report.html" in page
    assert usd(cost) in page
    assert (folder / "chat" / "report.html").is_file()
    again = CliRunner().invoke(app, ["report", str(folder)])
    assert again.exit_code == 0, again.stderr
    assert again.stdout.count("report.html") == 3
    Scenario.load(folder / "code" / "fleet.yaml")
    words[2:3] = ["--no-simulate", "--force", "--json"]
    told = json.loads(CliRunner().invoke(app, [*words, *stock]).stdout)
    assert told["plans"]["chat"]["usd_per_hour"] == plans.plans["chat"].usd_per_hour
