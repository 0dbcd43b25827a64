"""Norms that the all-reduces of tensor parallelism do are not priced again."""

from __future__ import annotations

import pytest

from llmsim.costmodel import RooflineCost
from llmsim.specs import ParallelPlan, load_engine, load_gpu, load_link, load_model


def gpu_s_and_names(tp: int, fused: bool) -> tuple[float, list[str]]:
    card = load_gpu("b200")
    cost = RooflineCost(
        load_model("llama-3.1-8b"),
        card,
        load_link(card.link),
        ParallelPlan(tp),
        fused_norm=fused,
    )
    found = cost.explain(contexts=[1024] * 4)
    return found.gpu_s, [row.name for row in found.rows]


def test_a_fused_norm_leaves_the_step() -> None:
    apart_s, names = gpu_s_and_names(2, False)
    fused_s, fewer = gpu_s_and_names(2, True)
    assert set(names) - set(fewer) == {"norm"}
    # 32 layers, two norms each, at the floor of a small kernel.
    floor_s = load_gpu("b200").kernels.elementwise_floor_s
    assert apart_s - fused_s == pytest.approx(64 * floor_s)


def test_one_gpu_has_no_all_reduce_to_fuse_with() -> None:
    assert gpu_s_and_names(1, True) == gpu_s_and_names(1, False)


def test_engines_say_whether_they_fuse() -> None:
    assert load_engine("trtllm-1.2").fused_norm
    assert not load_engine("vllm-0.14").fused_norm
