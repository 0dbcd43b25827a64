"""Factors on operator families: each reaches its own operators alone, and never the floor."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsim.core.errors import InputError
from llmsim.costmodel import RooflineCost, padded_sums
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    OperatorScales,
    ParallelPlan,
    load_gpu,
    load_link,
    load_model,
)

GPU = load_gpu("h100-sxm")
FAMILIES = {
    "gemm": {"qkv", "o", "router", "lm_head"},
    "attention_prefill": {"attention prefill"},
    "attention_decode": {"attention decode"},
    "moe": {"experts"},
    "communication": {"all-reduce", "gather logits"},
    "elementwise": {"norm", "rope+kv write", "embed", "final norm", "top-k", "sampler"},
}
CHUNKS, CONTEXTS = [(300, 100), (64, 0)], [700, 2000, 31]


def cost(scales=None, plan=None):
    return RooflineCost(
        load_model("mixtral-8x7b"),
        GPU,
        load_link(GPU.link),
        plan or ParallelPlan(2),
        EngineLimits(max_num_seqs=64, max_num_batched_tokens=1024),
        host=HostTerms(0.0, 0.0, 0.0),
        **({"scales": scales} if scales else {}),
    )


def seconds(priced):
    return {row.name: row.seconds for row in priced.explain(CHUNKS, CONTEXTS).rows}


def test_each_factor_reaches_its_family_and_nothing_else():
    plain = seconds(cost())
    assert set().union(*FAMILIES.values()) <= set(plain), sorted(plain)
    for family in (each.name for each in fields(OperatorScales)):
        changed = seconds(cost(OperatorScales(**{family: 1.5})))
        for name, value in plain.items():
            factor = 1.5 if name in FAMILIES[family] else 1.0
            assert changed[name] == pytest.approx(factor * value), (family, name)


@given(st.floats(1e-6, 4.0), st.integers(1, 60), st.integers(1, 8000))
def test_no_factor_takes_a_product_below_the_floor(factor, batch, context):
    priced = cost(OperatorScales(*[factor] * 6))
    for row in priced.explain(CHUNKS, [context] * batch).rows:
        if row.dtype in GPU.peak_flops_per_s:
            floor = max(
                row.flops / GPU.peak_flops_per_s[row.dtype], row.bytes / GPU.memory_bytes_per_s
            )
            assert row.seconds >= floor * (1 - 1e-9), row
    padded, windowed = padded_sums([context] * batch, priced.context_tile, 0)
    line = priced.decode_line(batch, padded)
    assert priced.step_ns([], batch, padded, windowed, batch) == round(
        line.base_ns + line.per_token_ns * padded
    )


def test_a_factor_of_nothing_is_said():
    with pytest.raises(InputError, match=r"gemm_scale: is 0.*(\n.*)*moe_scale: is inf"):
        OperatorScales(gemm=0.0, moe=float("inf"))
