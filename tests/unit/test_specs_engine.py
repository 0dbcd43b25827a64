"""Engine cards: what the host adds by version, and that a scenario's version brings it along."""

from __future__ import annotations

from typing import get_args

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.core.errors import CardError, InputError
from llmsim.costmodel import RooflineCost
from llmsim.policies import ENGINE_RULES
from llmsim.scenario import Scenario
from llmsim.scenario.engine import EngineVersion
from llmsim.serving.build import build_pools
from llmsim.specs import (
    HostTerms,
    calibration_names,
    engine_names,
    load_calibration,
    load_engine,
    load_gpu,
    load_model,
)

SCENARIO = {
    "llmsim": 1,
    "name": "host",
    "model": "llama-3.1-8b",
    "traffic": {
        "arrivals": {"kind": "poisson", "rate_rps": 1.0},
        "lengths": {"kind": "fixed", "prompt_tokens": 64, "output_tokens": 8},
        "requests": 4,
    },
}


def step_ms(version: str, batch: int = 32, **cost: float) -> float:
    pool = {"gpu": "h100-sxm", "cost": {"kind": "roofline", **cost}}
    data = {**SCENARIO, "engine": {"version": version}, "fleet": {"pools": {"main": pool}}}
    plans, _ = build_pools(Scenario.parse(data))
    price = plans[0].cost
    assert isinstance(price, RooflineCost)
    return price.step_ns((), batch, batch * 128, 0, batch) / 1e6


def test_every_version_of_a_scenario_has_its_card():
    assert set(get_args(EngineVersion)) == set(engine_names())


@pytest.mark.parametrize("name", engine_names())
def test_cards_name_recorded_rules_and_sources(name):
    card = load_engine(name)
    assert card.name == name
    assert card.rules in ENGINE_RULES
    assert all(row.source and row.unit for row in card.rows())


def test_an_unknown_card_is_named_with_the_nearest():
    with pytest.raises(CardError, match=r"vllm-0\.12"):
        load_engine("vllm-0.13")


def test_a_synchronous_version_adds_its_host_to_the_gpu():
    host = load_engine("vllm-0.12").host
    zero = dict.fromkeys(("host_base_s", "host_per_request_s"), 0.0)
    bare = step_ms("vllm-0.12", **zero)
    added = 1e3 * (host.base_s + 32 * host.per_request_s)
    assert step_ms("vllm-0.12") - bare == pytest.approx(added, abs=1e-5)


def test_an_asynchronous_version_hides_its_host():
    zero = dict.fromkeys(("host_base_s", "host_per_request_s"), 0.0)
    assert step_ms("vllm-0.20") == step_ms("vllm-0.20", **zero)


def test_a_term_of_the_cost_goes_before_the_card():
    base = step_ms("vllm-0.12", host_base_s=0.0)
    assert step_ms("vllm-0.12", host_base_s=5e-3) - base == pytest.approx(5.0, abs=1e-5)


def test_launches_of_a_step_with_prefill_run_beside_the_gpu():
    model, gpu = load_model("llama-3.1-8b"), load_gpu("h100-sxm")
    bare = RooflineCost(model, gpu, host=HostTerms(0.0, 0.0, 0.0))
    slow = RooflineCost(model, gpu, host=HostTerms(0.0, 0.0, 0.0, prefill_layer_s=1e-3))
    chunk = [(64, 0)]
    assert slow.step_ns(chunk, 0, 0, 0, 1) == 32_000_000
    assert slow.step_ns((), 8, 1024, 0, 8) == bare.step_ns((), 8, 1024, 0, 8)
    big = [(4096, 0)]  # beyond the captured sizes: eager_layer_s counts instead
    assert slow.step_ns(big, 0, 0, 0, 1) == bare.step_ns(big, 0, 0, 0, 1)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_gap_adds_to_the_gpu_and_hides_beside_a_slow_host(lookahead):
    model, gpu = load_model("llama-3.1-8b"), load_gpu("h100-sxm")

    def step(batch: int, chunks: int, **terms: float) -> float:
        host = HostTerms(**{"base_s": 0.0, "per_request_s": 0.0, "eager_layer_s": 0.0, **terms})
        cost = RooflineCost(model, gpu, lookahead=lookahead, host=host)
        price = cost.step_ns([(600, 0)] * chunks, batch, 128 * batch, 0, batch + chunks)
        parts = cost.explain([(600, 0)] * chunks, [128] * batch)
        assert parts.seconds * 1e9 == pytest.approx(price, abs=1.0)
        return price / 1e6

    gap = {"gap_s": 1e-3, "gap_per_chunk_s": 2e-3}
    assert step(8, 0, **gap) - step(8, 0) == pytest.approx(1.0, abs=1e-5)
    assert step(8, 3, **gap) - step(8, 3) == pytest.approx(7.0, abs=1e-5)
    slow = step(8, 0, base_s=0.5, **gap)
    assert slow == pytest.approx(500.0 if lookahead else 500.0 + 1.0 + step(8, 0), abs=1e-5)


def test_the_card_is_shown():
    shown = CliRunner().invoke(app, ["show", "engine", "vllm-0.12"])
    assert shown.exit_code == 0
    assert "host.per_request_s" in shown.stdout
    assert "s/request" in shown.stdout


def test_a_calibration_that_does_not_exist_is_told_with_the_scenario():
    pool = {"gpu": "h100-sxm", "cost": {"kind": "roofline", "calibration": "vllm_h100"}}
    with pytest.raises(InputError, match=r"cost\.calibration"):
        Scenario.parse({**SCENARIO, "fleet": {"pools": {"main": pool}}})


@pytest.mark.parametrize("name", calibration_names())
def test_shipped_calibrations_say_what_they_saw_and_keep_within_limits(name):
    card = load_calibration(name)
    assert card.name == f"{card.engine}_{card.gpu}" == name
    assert load_gpu(card.gpu).name == card.gpu
    fields = {row.field for row in card.rows()}
    seen = {field.removeprefix("fitted_on.") for field in fields if field.startswith("fitted_on.")}
    assert seen
    assert seen <= set(card.without)
    assert {"errors.in_sample.before", "errors.in_sample.after"} <= fields
    stated = {row.field: row.value for row in card.rows()}
    assert stated["errors.never_seen.after"] <= stated["errors.never_seen.before"]
    every = [card.terms, *card.without.values()]
    assert all(0.6 <= value <= 1.7 for terms in every for value in terms.values())
