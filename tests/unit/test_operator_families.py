"""Which kernel terms a weight format is priced with, and what those terms add."""

from dataclasses import replace

import numpy as np
import pytest

from llmsim.costmodel.operators import gemm, gemm_family, moe_family
from llmsim.specs import Linear, load_gpu
from llmsim.specs.layers import BF16
from llmsim.specs.quantisation import INT8, fp8, integer, mxfp4, nvfp4

B200, H200, A100 = (load_gpu(name) for name in ("b200", "h200-sxm", "a100-80gb-sxm"))
BLOCK = fp8((128, 128))
FOUR = integer(4, 128, zero_points=True)


@pytest.mark.parametrize(
    ("form", "gpu", "family"),
    [
        (BF16, B200, ("bf16", "bf16")),
        (fp8(), B200, ("fp8", "fp8")),
        (BLOCK, B200, ("fp8_block", "fp8")),
        (nvfp4(), B200, ("fp4", "fp4")),
        (INT8, A100, ("int8", "int8")),
        (FOUR, A100, ("w4a16", "bf16")),
        (fp8(), A100, ("w8a16", "bf16")),
        (nvfp4(), H200, ("w4a16", "bf16")),
    ],
)
def test_gemm_family(form, gpu, family) -> None:
    assert gemm_family(form, gpu) == family
    assert family[0] in gpu.kernels.gemm


@pytest.mark.parametrize(
    ("form", "gpu", "family"),
    [
        (fp8(), H200, ("fp8", "fp8")),
        (BLOCK, H200, ("fp8_block", "fp8")),
        (INT8, A100, ("fp8", "int8")),
        (FOUR, H200, ("w4a16", "bf16")),
        (mxfp4(), H200, ("mxfp4", "bf16")),
        (mxfp4(), B200, ("mxfp4_fp8", "fp8")),  # Blackwell's kernels quantise activations
        (mxfp4("fp4"), B200, ("fp4", "fp4")),
    ],
)
def test_expert_family(form, gpu, family) -> None:
    assert moe_family(form, gpu) == family
    assert family[0] in gpu.kernels.moe


def test_a_narrow_product_by_hand() -> None:
    """Every limit of an fp8 product of one token on H200, joined by the norm."""
    linear, rows = Linear("x", 4096, 8192, fp8()), np.array([1.0, 4096.0])
    terms = H200.kernels.gemm["fp8"]
    roof, peak = terms.roofline, H200.peak_flops_per_s["fp8"]
    flops = 2 * 4096 * 8192 * rows
    tiles = np.array([1, 32]) * 32  # of 128 x 128 outputs
    compute = flops * (1 + terms.half_tiles_per_sm * 132 / tiles) / (roof.compute_frac * peak)
    moved = 4096 * 8192 + 2 * (4096 + 8192) * rows
    memory = moved / (roof.memory_frac * 4.8e12)
    joined = (compute**roof.norm + memory**roof.norm + (8 * terms.loop_s) ** roof.norm) ** (
        1 / roof.norm
    )
    quantised = terms.quantise_s_per_byte * 3 * 8192 * rows  # read 16 bits, write 8
    priced = gemm(linear, 1, rows, H200)
    assert priced.seconds == pytest.approx(roof.t0_s + joined + quantised)
    assert priced.flops == pytest.approx(flops)


def test_sixteen_bit_activations_are_not_quantised() -> None:
    for family in ("bf16", "w8a16", "w4a16"):
        assert A100.kernels.gemm[family].quantise_s_per_byte == 0.0


def test_a_long_inner_loop_holds_a_small_product_up() -> None:
    terms = H200.kernels.gemm["bf16"]
    slow = {"bf16": replace(terms, loop_s=1e-5)}
    gpu = replace(H200, kernels=replace(H200.kernels, gemm={**H200.kernels.gemm, **slow}))
    one = np.array([1.0])
    deep = gemm(Linear("x", 128, 16384, BF16), 1, one, gpu).seconds[0]
    flat = gemm(Linear("x", 16384, 128, BF16), 1, one, gpu).seconds[0]
    assert deep > 16e-5 > 10 * flat
