"""A profile as this package writes it prices a scenario: its rows are found, not passed over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llmsim_kernels.profiler.run import ProfileOrder, run_profile
from llmsim_kernels.profiler.synthetic import SyntheticDevice, Truth

import llmsim as ls
from llmsim.specs.gpu import load_gpu

CARD = load_gpu("h100-sxm")
OPERATORS = ("gemm", "attention_decode", "attention_prefill")


@pytest.fixture(scope="module")
def tpot_s(tmp_path_factory):
    """Return TPOT with all three operators at some speed [s], and the run's warnings."""
    known = {}

    def run(slower: float):
        if slower not in known:
            folder = tmp_path_factory.mktemp("profiles") / "p"
            truths = {op: Truth(4e-6 * slower, 0.7 / slower, 0.8 / slower) for op in OPERATORS}
            device = SyntheticDevice(
                truths,
                peak_flops_per_s=CARD.peak_flops_per_s["bf16"],
                memory_bytes_per_s=CARD.memory_bytes_per_s,
            )
            device.facts = replace(device.facts, details={"gpu_card": CARD.name})
            run_profile(ProfileOrder(out=folder, model="llama-3.1-8b"), None, device)
            cost = {"kind": "measured", "profile": str(folder)}
            # so rarely that nobody meets: a slower device would batch more, and hide the ratio
            rare = {"traffic.requests": 40, "traffic.arrivals.rate_rps": 0.02}
            given = rare | {"fleet.pools.main.cost": cost}
            result = ls.run("quickstart", given)
            known[slower] = (result.metrics["tpot_mean_s"], " ".join(result.warnings))
        return known[slower]

    return run


@pytest.mark.slow
def test_a_slower_device_makes_slower_tokens(tpot_s):
    fast, slow = tpot_s(1.0)[0], tpot_s(2.0)[0]
    # host time and elementwise operators are the same in both
    assert 1.5 < slow / fast < 2.0


@pytest.mark.slow
def test_most_shapes_are_measured_or_between_measured_ones(tpot_s):
    said = tpot_s(1.0)[1]
    assert "interpolated" in said
    assert "roofline of" not in said
    assert "transferred" not in said  # no row of another format or kernel had to stand in
