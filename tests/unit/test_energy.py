"""Energy: idle power all the time, and what bounds an operator on top; clocks and caps."""

import pytest

import llmsim as ls
from llmsim.core.errors import InputError
from llmsim.costmodel import RooflineCost, padded_sums
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.specs import EngineLimits, HostTerms, ParallelPlan, load_gpu, load_link, load_model

GPU = load_gpu("h100-sxm")
POWER = GPU.power
LIMITS = EngineLimits(max_num_seqs=256, max_num_batched_tokens=8192)


def priced(gpu=GPU, tp=1):
    model = load_model("llama-3.1-8b")
    host = HostTerms(0.0, 0.0, 0.0)
    return RooflineCost(model, gpu, load_link(gpu.link), ParallelPlan(tp), LIMITS, host=host)


def watts(cost, chunks, contexts):
    """Mean power of a step above idle, on one GPU."""
    padded, windowed = padded_sums(contexts, cost.context_tile, 0)
    rows = len(contexts) + len(chunks)
    given = (list(chunks), len(contexts), padded, windowed, rows)
    energy, time_ns = ActiveEnergy(cost), cost.step_ns(*given)
    return energy.priced_step_uj(*given[1:]) / time_ns * 1e3 / cost.plan.gpus


def test_decode_draws_what_memory_bound_kernels_draw_less_the_launch_floors():
    full = watts(priced(), [], [8192] * 256)
    assert 0.85 * (POWER.memory_w - POWER.idle_w) < full < POWER.memory_w - POWER.idle_w
    assert watts(priced(), [], [1024]) < full


def test_a_long_prompt_draws_nearly_what_compute_bound_kernels_draw():
    drawn = watts(priced(), [(8192, 0)], [])
    assert 0.9 * (POWER.compute_w - POWER.idle_w) < drawn < POWER.compute_w - POWER.idle_w


def test_a_stretch_is_the_sum_of_its_steps():
    cost, steps = priced(), 300
    energy = ActiveEnergy(cost)
    contexts, total, padded_sum = [700, 2000, 31], 0, 0
    for tick in range(steps):
        padded, windowed = padded_sums([c + tick for c in contexts], cost.context_tile, 0)
        total += energy.decode_uj(3, 1, padded, windowed)
        padded_sum += padded
    assert energy.decode_uj(3, steps, padded_sum, 0) == pytest.approx(total, abs=steps)


def test_a_step_without_prompts_remembers_none_of_the_step_before():
    cost = priced()
    energy = ActiveEnergy(cost)
    padded, _ = padded_sums([900] * 4, cost.context_tile, 0)
    cost.step_ns([(4096, 0)], 4, padded, 0, 5)
    cost.step_ns([], 4, padded, 0, 4)
    assert energy.priced_step_uj(4, padded, 0, 4) == energy.decode_uj(4, 1, padded, 0)


def test_every_gpu_of_a_replica_draws():
    assert ActiveEnergy(priced(tp=4)).idle_w == 4 * POWER.idle_w


def test_merged_and_single_steps_take_the_same_energy():
    small = {"traffic.requests": 300}
    runs = [ls.run("quickstart", small | {"engine.fast_forward": on}) for on in (True, False)]
    one, other = (run.metrics["power_mean_w"] for run in runs)
    # each step is rounded to a microjoule
    assert one == pytest.approx(other, rel=1e-5)
    fleet = ls.run("quickstart", small)
    busy = fleet.metrics["busy_mean_frac"]
    replicas = 2
    assert replicas * POWER.idle_w < one < replicas * (POWER.idle_w + busy * POWER.compute_w)
    series = fleet.timeline()
    assert series["power_w"].min() >= replicas * POWER.idle_w
    tokens = fleet.metrics["output_tokens_per_s"]
    assert fleet.metrics["joules_per_output_token"] == pytest.approx(one / tokens)


def test_a_lower_clock_slows_compute_and_spares_power():
    half = GPU.clocked(0.5)
    assert half.peak_flops_per_s["bf16"] == 0.5 * GPU.peak_flops_per_s["bf16"]
    assert half.memory_bytes_per_s == GPU.memory_bytes_per_s
    above = (half.power.compute_w - POWER.idle_w) / (POWER.compute_w - POWER.idle_w)
    assert above == pytest.approx(0.5**2.5)
    prompt, decode = ([(8192, 0)], 0, 0, 0, 1), ([], 16, 16 * 1024, 0, 16)
    slower = priced(half).step_ns(*prompt) / priced().step_ns(*prompt)
    assert 1.7 < slower <= 2.0
    assert priced(half).step_ns(*decode) < 1.25 * priced().step_ns(*decode)


def test_a_cap_clocks_down_until_it_is_kept():
    capped = GPU.clocked(power_cap_w=550.0)
    assert capped.power.compute_w == pytest.approx(550.0)
    assert GPU.clocked(power_cap_w=2000.0) is GPU
    with pytest.raises(InputError, match=r"power_cap_w: 100 W cannot be kept.*draws 133 W idle"):
        GPU.clocked(power_cap_w=100.0)
    with pytest.raises(InputError, match=r"clock_frac: is 1\.2"):
        GPU.clocked(1.2)


def test_a_pool_takes_clock_and_cap():
    keys = {"traffic.requests": 200, "fleet.pools.main.clock_frac": 0.6}
    slow, full = ls.run("quickstart", keys), ls.run("quickstart", {"traffic.requests": 200})
    assert slow.metrics["ttft_p50_s"] > full.metrics["ttft_p50_s"]
    assert slow.metrics["power_mean_w"] < full.metrics["power_mean_w"]
