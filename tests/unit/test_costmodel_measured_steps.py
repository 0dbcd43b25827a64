"""`MeasuredCost`: steps equal lines, pieces stay within their error, explanations add up."""

from __future__ import annotations

import numpy as np
import pytest
from measured_profiles import rows, true_s, write_profile

from llmsim.api import run
from llmsim.core.errors import InputError, ScenarioError
from llmsim.costmodel import RooflineCost, StepCost, padded_sums
from llmsim.costmodel.contract import FOREVER
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.costmodel.measured import Context, MeasuredCost, load_profile
from llmsim.costmodel.measured.lines import MOST_PIECES, pieces_of
from llmsim.scenario.costs import COST, Measured, Placement
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    OperatorScales,
    ParallelPlan,
    load_gpu,
    load_link,
    load_model,
)

LIMITS = EngineLimits(max_model_len=32768)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_profile(tmp_path_factory.mktemp("profile"), rows(noise=0.03))


def cost_of(
    folder,
    model="llama-3.1-8b",
    tp=1,
    lookahead=1,
    host_s=0.0,
    mixed="card",
    scales=None,
    context=None,
) -> MeasuredCost:
    card = load_gpu("h100-sxm")
    base = RooflineCost(
        load_model(model),
        card,
        load_link(card.link),
        ParallelPlan(tp),
        LIMITS,
        lookahead=lookahead,
        host=HostTerms(base_s=host_s),
    )
    profile = load_profile(folder, card)
    return MeasuredCost(base, profile, context, mixed, scales or OperatorScales())


@pytest.mark.parametrize(("lookahead", "host_s"), [(1, 0.0), (0, 1e-3), (1, 8e-3), (1, 1.0)])
@pytest.mark.parametrize("batch", [1, 7, 64, 256, 300])
def test_step_equals_line_exactly(folder, batch, lookahead, host_s):
    cost: StepCost = cost_of(folder, lookahead=lookahead, host_s=host_s)
    for context in (1, 128, 129, 1000, 4096, 32768, 100_000):
        padded = batch * (-(-context // 128) * 128)
        line = cost.decode_line(batch, padded)
        assert padded <= line.until_tokens
        expected = line.base_ns + line.per_token_ns * padded
        assert cost.step_ns((), batch, padded, 0, batch) == max(1, round(expected))


def test_lines_follow_each_other_without_a_step(folder):
    cost = cost_of(folder, host_s=4e-3)
    padded, met, before = 0, 0, 0.0
    while padded < 64 * 32768:
        line = cost.decode_line(64, padded)
        assert line.per_token_ns >= 0.0
        first = line.base_ns + line.per_token_ns * padded
        assert first >= before * (1 - 1e-3) or not met
        before = line.base_ns + line.per_token_ns * min(line.until_tokens, 64 * 32768)
        padded, met = line.until_tokens + 1, met + 1
    assert 3 <= met <= MOST_PIECES + 1


def test_pieces_stay_within_their_stated_error(folder):
    cost = cost_of(folder)
    for batch in (1, 40, 200):
        for context in np.unique(np.geomspace(1, 255, 40).round()).astype(int) * 128:
            exact = cost.explain(contexts=[int(context)] * batch).gpu_s
            priced = cost.step_ns((), batch, int(batch * context), 0, batch) * 1e-9
            assert priced == pytest.approx(exact, rel=0.003)
    assert 0.0 < cost.line_error <= 0.002


def test_prices_are_those_of_the_measured_kernels(folder):
    cost = cost_of(folder)
    parts = {row.name: row for row in cost.explain(contexts=[2048] * 64).rows}
    down = true_s("gemm", {"m": 64, "n": 4096, "k": 14336})
    assert parts["down"].seconds == pytest.approx(32 * down, rel=0.10)
    shape = {"batch": 64, "kv_len": 2048, "heads_q": 32, "heads_kv": 8, "head_dim": 128}
    attention = true_s("attention_decode", shape)
    assert parts["attention decode"].seconds == pytest.approx(32 * attention, rel=0.10)
    norm = true_s("norm", {"tokens": 64, "hidden": 4096})
    assert parts["norm"].seconds == pytest.approx(64 * norm, rel=0.10)
    (prefill,) = (r for r in cost.explain([(1024, 1024)]).rows if r.name == "attention prefill")
    one = {**shape, "batch": 1, "q_len": 1024, "kv_len": 1024}
    assert prefill.seconds == pytest.approx(32 * true_s("attention_prefill", one), rel=0.12)


@pytest.mark.parametrize("mixed", ["card", "split", "fused_varlen", "streams"])
@pytest.mark.parametrize(
    ("model", "tp"), [("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("mixtral-8x7b", 2)]
)
@pytest.mark.many
def test_explanation_adds_up(folder, model, tp, mixed):
    cost = cost_of(folder, model, tp, mixed=mixed)
    for chunks, contexts in (
        ((), [1024] * 64),
        (((2048, 0),), []),
        (((512, 4096), (100, 0)), [300, 9000, 20_000]),
    ):
        parts = cost.explain(chunks, contexts)
        padded, windowed = padded_sums(contexts, cost.context_tile, cost.window_tokens)
        rows_ = len(contexts) + len(chunks)
        ns = cost.step_ns(chunks, len(contexts), padded, windowed, rows_)
        assert sum(row.seconds for row in parts.rows) * 1e9 == pytest.approx(ns, rel=0.003)


def test_mixed_descriptors_are_ordered(folder):
    """One launch saves a floor, two streams hide the shorter part."""
    args = ([(512, 2048)], 32, 32 * 1024, 0, 33)
    split, fused, streams = (
        cost_of(folder, mixed=kind).step_ns(*args) for kind in ("split", "fused_varlen", "streams")
    )
    assert streams < split
    assert split - fused == pytest.approx(32 * 9e3, rel=0.25)


def test_scales_change_their_family_alone(folder):
    plain, doubled = (
        cost_of(folder, scales=scales)
        for scales in (OperatorScales(), OperatorScales(attention_decode=2.0))
    )
    one = {row.name: row.seconds for row in plain.explain(contexts=[4096] * 64).rows}
    two = {row.name: row.seconds for row in doubled.explain(contexts=[4096] * 64).rows}
    assert two["attention decode"] == pytest.approx(2 * one["attention decode"])
    assert {name: s for name, s in two.items() if "attention" not in name} == {
        name: s for name, s in one.items() if "attention" not in name
    }


def test_what_was_not_measured_is_said_and_strict_refuses_it(folder):
    cost = cost_of(folder)
    text = "\n".join(cost.warnings())
    assert "no rows, so roofline: act, embed" in text
    assert "shapes priced" in text
    with pytest.raises(InputError, match="act: was not measured"):
        cost_of(folder, context=Context(strict=True))


def test_windowed_layers_take_their_own_sum(folder, tmp_path):
    """Llama with a window of 4,096: beyond it the price stands still."""
    import json

    config = {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "sliding_window": 4096,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 32768,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    cost = cost_of(folder, str(path))
    assert cost.window_tokens == 4096
    price = [
        cost.step_ns((), 8, *padded_sums([s] * 8, 128, 4096), 8) for s in (1024, 4096, 8192, 32768)
    ]
    assert price[0] < price[1] == price[2] == price[3]


def test_pieces_of_a_straight_line_are_one():
    sizes = np.arange(1.0, 500.0)
    pieces = pieces_of(sizes, 3.0 + 2.0 * sizes)
    assert pieces.untils == [FOREVER]
    assert pieces.at(1000) == pytest.approx(2003.0)
    bent = pieces_of(sizes, np.where(sizes < 100, 200.0, 2.0 * sizes))
    assert bent.error <= 0.001
    assert [bent.at(size) for size in (50, 400)] == pytest.approx([200.0, 800.0], rel=1e-3)


def test_the_kind_measured_binds_a_profile(folder):
    made = COST.get("measured")(profile=str(folder), attention_decode_scale=1.5)
    assert isinstance(made, Measured)
    card = load_gpu("h100-sxm")
    place = Placement(load_model("llama-3.1-8b"), card, ParallelPlan(), LIMITS)
    cost, again = made.bind(place), made.bind(place)
    assert cost.scales.attention_decode == 1.5
    args = ([(512, 0)], 8, 8 * 1024, 0, 9)
    assert cost.step_ns(*args) == again.step_ns(*args)
    assert cost.warnings() == again.warnings()


def test_a_run_says_what_priced_it_and_merged_steps_leave_no_trace(folder):
    """Fast-forward on and off are the same run, bit for bit, with a profile too."""
    merged, stepped = (
        run(
            "quickstart",
            {
                "traffic.requests": 60,
                "fleet.pools.main.cost": {"kind": "measured", "profile": str(folder)},
                "engine.fast_forward": fast,
            },
        )
        for fast in (True, False)
    )
    assert merged.digest == stepped.digest
    assert any("shapes priced" in line for line in merged.warnings)


def test_a_missing_profile_is_a_fault_of_the_scenario():
    with pytest.raises(ScenarioError, match="profile: is missing"):
        run("quickstart", {"fleet.pools.main.cost": {"kind": "measured"}})


def test_energy_of_measured_times(folder):
    """Twice the time at the same work is twice the energy above idle, less the launches."""
    cost = cost_of(folder)
    slow = cost_of(folder, scales=OperatorScales(2.0, 2.0, 2.0, 2.0, 2.0, 2.0))
    energy, slowed = ActiveEnergy(cost.base, cost), ActiveEnergy(slow.base, slow)
    assert energy.idle_w == ActiveEnergy(cost.base).idle_w
    for given in (([(4096, 0)], 0, 0, 0, 1), ([(2048, 512)], 16, 16 * 2048, 0, 17)):
        for one in (cost, slow):
            one.step_ns(*given)
        ratio = slowed.priced_step_uj(*given[1:]) / energy.priced_step_uj(*given[1:])
        assert ratio == pytest.approx(2.0, rel=0.02)
    watts = energy.decode_uj(64, 1, 64 * 8192, 0) * 1e3 / cost.step_ns([], 64, 64 * 8192, 0, 64)
    power = cost.gpu.power
    assert 0.5 < watts / (power.memory_w - power.idle_w) < 1.0


def test_energy_of_a_stretch_is_that_of_its_steps(folder):
    cost, ticks = cost_of(folder), 200
    energy = ActiveEnergy(cost.base, cost)
    total, padded_sum = 0, 0
    for tick in range(ticks):
        padded, _ = padded_sums([700 + tick, 2000 + tick], cost.context_tile, 0)
        total += energy.decode_uj(2, 1, padded, 0)
        padded_sum += padded
    assert energy.decode_uj(2, ticks, padded_sum, 0) == pytest.approx(total, abs=ticks)


def test_widths_come_from_what_answered(folder):
    prior = dict.fromkeys(OperatorScales().by_family(), 0.3)
    widths = cost_of(folder).family_log_sd(prior)
    assert 0.03 <= widths["gemm"] < 0.12
    assert 0.03 <= widths["attention_decode"] < 0.3
    assert widths["moe"] == widths["communication"] == 0.3  # a dense model on one GPU has neither
    other = cost_of(folder, context=Context(libs="lib 2")).family_log_sd(prior)
    assert other["gemm"] >= widths["gemm"]


def test_rows_that_say_how_they_repeat_are_as_certain_as_that(tmp_path):
    made = [{**row, "t_mad_us": 0.01 * row["t_median_us"]} for row in rows()]
    table = load_profile(write_profile(tmp_path / "profile", made)).tables("gemm")[0]
    assert table.near_sigma == pytest.approx(0.0148, rel=0.01)
    told = table.price({"m": np.array([8.0]), "n": np.array([4096.0]), "k": np.array([4096.0])})
    assert told.sigma[0] == table.near_sigma
