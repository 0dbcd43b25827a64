"""Which kernels' rows may price an operator, and which profile's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from measured_profiles import rows, true_s, write_profile

from llmsim.core.errors import InputError
from llmsim.costmodel import RooflineCost
from llmsim.costmodel.measured import Context, MeasuredCost, Types, load_profile
from llmsim.costmodel.measured.operators import expert_rows
from llmsim.scenario.costs import Measured, Placement
from llmsim.specs import (
    EngineLimits,
    MoeMlp,
    ParallelPlan,
    by_marlin,
    load_gpu,
    load_link,
    load_model,
)

CARD = load_gpu("h100-sxm")


def base_of(model="mixtral-8x7b", tp=2):
    link = load_link(CARD.link)
    return RooflineCost(load_model(model), CARD, link, ParallelPlan(tp), EngineLimits())


def experts_s(cost) -> float:
    parts = {row.name: row for row in cost.explain(contexts=[2048] * 64).rows}
    return parts["experts"].seconds / parts["experts"].count


def test_a_glob_admits_the_kernels_that_it_matches_and_no_others(tmp_path):
    made = rows(("gemm",), kernel_id="cutlass.a") + rows(("gemm",), kernel_id="triton", factor=2.0)
    profile = load_profile(write_profile(tmp_path, made))
    shape = {"m": 32, "n": 4096, "k": 4096}
    found = profile.latency("gemm", shape, Context(kernels=(("gemm", "*triton*"),)))
    assert found.seconds == pytest.approx(2 * true_s("gemm", shape))
    assert not profile.covers("gemm", Context(kernels=(("gemm", "*marlin*"),)))
    other = Context(types=Types("fp8", "fp8"))
    assert profile.covers("gemm", other)
    assert not profile.covers("gemm", replace(other, kernels=(("gemm", "*triton*"),)))


def test_rows_of_wider_activations_say_nothing_of_products_in_four_bits(tmp_path):
    profile = load_profile(write_profile(tmp_path, rows(("gemm",))), CARD)
    assert profile.covers("gemm", Context(types=Types("fp8", "fp8")))
    assert profile.covers("gemm", Context(types=Types("bf16", "int4")))  # weights alone are narrow
    four = Context(types=Types("nvfp4", "nvfp4"))
    assert not profile.covers("gemm", four)
    found = profile.latency("gemm", {"m": 32, "n": 4096, "k": 4096}, four)
    assert found.source == "roofline"


def test_experts_without_rows_of_their_kernel_cost_what_the_roofline_says(tmp_path):
    profile = load_profile(write_profile(tmp_path, rows(factor=3.0)), CARD)
    base = base_of()
    measured = MeasuredCost(base, profile)
    assert experts_s(measured) > 1.5 * experts_s(base)
    asked = Context(kernels=(("moe", "*triton*"),))
    kept = MeasuredCost(base, profile, asked)
    assert experts_s(kept) == pytest.approx(experts_s(base))
    assert any("no rows, so roofline" in line and "experts" in line for line in kept.warnings())


def test_another_profile_may_price_a_single_operator(tmp_path):
    main = load_profile(write_profile(tmp_path / "main", rows()), CARD)
    slow = load_profile(write_profile(tmp_path / "slow", rows(("moe",), factor=2.0)), CARD)
    one, two = MeasuredCost(base_of(), main), MeasuredCost(base_of(), main, others={"moe": slow})
    assert experts_s(two) == pytest.approx(2 * experts_s(one), rel=0.02)
    parts = [
        {row.name: row.seconds for row in cost.explain(contexts=[64]).rows} for cost in (one, two)
    ]
    rest = [{name: s for name, s in each.items() if name != "experts"} for each in parts]
    assert rest[0] == pytest.approx(rest[1])


def told(profile, **changed: float) -> bool:
    shape = {"hidden": 4096.0, "experts": 8.0, "inter": 7168.0, **changed}
    return profile.reaches("moe", shape, Context())


def test_experts_unlike_all_that_were_measured_are_the_rooflines(tmp_path):
    profile = load_profile(write_profile(tmp_path, rows()), CARD)
    assert told(profile)
    assert told(profile, hidden=2048.0, experts=16.0)
    assert not told(profile, hidden=2000.0)
    assert not told(profile, experts=32.0)
    far = MeasuredCost(base_of(tp=8), profile)
    assert experts_s(far) == pytest.approx(experts_s(base_of(tp=8)))


def test_rows_of_one_width_say_nothing_of_others_and_rows_of_two_tell_what_is_between(tmp_path):
    made = rows()
    one = load_profile(write_profile(tmp_path / "one", made), CARD)
    assert not told(one, inter=3584.0)
    wider = [{**row, "inter": 1024} for row in made if row["op"] == "moe"]
    two = load_profile(write_profile(tmp_path / "two", made + wider), CARD)
    assert told(two, inter=3584.0)
    assert not told(two, inter=1000.0)


def test_mxfp4_experts_ask_for_the_activations_and_the_kernel_that_the_roofline_has():
    model = load_model("gpt-oss-120b")
    (form,) = {layer.mlp.format for layer in model.layers if isinstance(layer.mlp, MoeMlp)}
    assert list(expert_rows(form, load_gpu("b200"))) == [(Types("fp8", "mxfp4"), "")]
    assert list(expert_rows(form, CARD)) == [(Types("bf16", "mxfp4"), "")]
    marlin = by_marlin(model).layers[0].mlp
    assert isinstance(marlin, MoeMlp)
    found = list(expert_rows(marlin.format, CARD))
    assert found[0] == (Types("bf16", "mxfp4"), "*marlin*")
    assert {kernel for _, kernel in found} == {"*marlin*"}


def test_wrong_words_are_told(tmp_path):
    folder = write_profile(tmp_path, rows())
    place = Placement(load_model("llama-3.1-8b"), CARD, ParallelPlan(1), EngineLimits())
    with pytest.raises(InputError, match="'experts' is no operator"):
        Measured(profile=str(folder), profiles={"experts": str(folder)}).bind(place)
    with pytest.raises(InputError, match="attention is priced by the first profile"):
        Measured(profile=str(folder), profiles={"attention_decode": str(folder)}).bind(place)
