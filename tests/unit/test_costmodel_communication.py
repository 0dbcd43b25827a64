"""Collectives: the measured reference row, the minimum over algorithms, the ring fallback."""

from __future__ import annotations

import numpy as np
import pytest

from llmsim.costmodel import RooflineCost
from llmsim.costmodel.communication import algorithms, all_gather, all_reduce, token_collectives
from llmsim.specs import load_gpu, load_link, load_model

KIB, MIB = 1024, 1024**2


def test_reference_row() -> None:
    """H200, 8 GPUs, graph-captured custom against NCCL (aiconfigurator tables, 095f58a51).

    A two-parameter line misses 8-15% in the median and more mid-range.
    """
    sizes = np.array([16 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 256 * MIB], dtype=float)
    table = all_reduce("all-reduce", 1, sizes, load_link("nvlink4"), 8)
    measured_us = [5.2, 18.0, 48.0, 166.0]
    assert (table.seconds[:4] * 1e6).tolist() == pytest.approx(measured_us, rel=0.25)
    bus = 2 * 7 / 8 * sizes[-1] / table.seconds[-1]
    assert 350e9 < bus < 375e9


@pytest.mark.parametrize("name", ["nvlink3", "nvlink4", "nvlink5", "pcie-gen5"])
@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_price_is_the_cheapest_enabled_algorithm(name: str, gpus: int) -> None:
    link = load_link(name)
    sizes = np.logspace(8, 30, 12, base=2)
    table = all_reduce("all-reduce", 1, sizes, link, gpus)
    lines = np.array(
        [
            prior.alpha_s + 2 * (gpus - 1) / gpus * sizes / prior.bus_bytes_per_s
            for prior in link.all_reduce
            if prior.gpus == gpus
        ]
    )
    assert len(lines) == 2
    np.testing.assert_allclose(table.seconds, lines.min(axis=0))
    assert (np.diff(table.seconds) > 0).all()


def test_unmeasured_group_is_a_ring() -> None:
    link = load_link("ib-ndr")
    (ring,) = algorithms(link, 4)
    assert ring.algorithm == "ring"
    size = np.array([64.0 * MIB])
    seconds = all_reduce("all-reduce", 1, size, link, 4).seconds[0]
    assert seconds == pytest.approx(6 * 7e-6 + 1.5 * 64 * MIB / 35e9)
    gathered = all_gather("gather", 1, size, link, 4).seconds[0]
    assert gathered == pytest.approx(6 * 7e-6 + 0.75 * 64 * MIB / 35e9)


def test_a_norm_over_all_heads_needs_an_all_reduce_of_its_own() -> None:
    """MiniMax-M2 adds up two fp32 variances per token and layer, beside two usual all-reduces."""
    model, link, tokens = load_model("minimax-m2.5"), load_link("nvlink4"), np.array([4.0])
    usual, small = token_collectives(model, 4, tokens, link)
    assert (usual.count, small.count) == (2 * 62, 62)
    assert small.bytes / usual.bytes == pytest.approx(8 / (2 * 3072))
    (only,) = token_collectives(load_model("qwen3-32b"), 4, tokens, link)
    assert only.count == 2 * 64
    names = [
        table.name for table in RooflineCost(model, load_gpu("mi325x")).token_operators(tokens)
    ]
    assert "qk norm" in names
    assert not any("all-reduce" in name for name in names)
