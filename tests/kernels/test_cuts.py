"""What the simulator takes for the cut of a launch is what the kernels' own rules say."""

from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.torch

from llmsim_kernels.ops import paged_decode, splits, w4a16_gemm, wna16_gemm  # noqa: E402
from llmsim_kernels.ops.device import assumed  # noqa: E402

from llmsim.costmodel.measured import Device, Types  # noqa: E402
from llmsim.costmodel.measured.cuts import (  # noqa: E402
    family_of,
    in_parts,
    in_short_parts,
    in_steps,
    in_wide_steps,
)
from llmsim.costmodel.measured.families import FAMILIES  # noqa: E402
from llmsim.specs import load_gpu  # noqa: E402

CPU = torch.device("cpu")
H100 = Device.of_card(load_gpu("h100-sxm"))


@pytest.mark.parametrize(("kind", "kv"), [("same", "bf16"), ("fp8", "fp8"), ("int4", "int4")])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_decode_loops_as_long_as_its_longest_part(kind, kv, width):
    for batch, context, (heads, group) in product(
        (1, 3, 8, 31, 256), (1, 300, 4095, 4096, 70_000), ((8, 4), (1, 8), (1, 128))
    ):
        with assumed(90):
            cut = splits.tiles_for(CPU, batch, heads, group, width, context, kind)
        parts = max(min(cut.wanted, -(-context // 128)), -(-context // cut.most))
        assert parts == cut.splits  # the longest context needs all programs
        part = -(-context // parts)
        shape = {"batch": batch, "kv_len": context, "heads_q": heads * group, "heads_kv": heads}
        columns = {name: np.array([float(value)]) for name, value in shape.items()}
        columns["head_dim"] = np.array([float(width)])
        found = in_short_parts(columns, Types(kv=kv), H100).serial[0]
        assert found == -(-part // cut.tile) + (cut.splits > 1)


def test_profiles_of_the_first_decode_kernel_keep_its_rule():
    # as many parts for all: two waves over 132 multiprocessors, of at least 256 tokens each
    columns = {
        "batch": np.array([1.0, 8.0, 256.0, 1.0]),
        "kv_len": np.array([8192.0, 8192.0, 8192.0, 300.0]),
        "heads_q": np.full(4, 32.0),
        "heads_kv": np.full(4, 8.0),
        "head_dim": np.full(4, 128.0),
    }
    assert in_parts(columns, Types(kv="bf16"), H100).serial.tolist() == [
        5.0,  # 32 parts of 256 tokens: 4 tiles, and the join
        27.0,  # 5 parts of 1,639: 26 tiles
        128.0,
        5.0,
    ]


def test_products_with_few_bits_loop_wave_by_wave():
    for m, n, k in product((1, 16, 17, 100, 256, 257, 3000), (1024, 5760, 28_672), (1024, 14_336)):
        with assumed(90):
            cut = wna16_gemm.tiles_for(CPU, m, n, k)
        programs = -(-m // cut.m) * -(-n // cut.n) * cut.splits
        steps = -(-(k // cut.splits) // 128) if k % (cut.splits * 128) == 0 else None
        columns = {"m": np.array([float(m)]), "n": np.array([float(n)]), "k": np.array([float(k)])}
        found = in_steps(columns, Types(w="int4"), H100).serial[0]
        assert in_wide_steps(columns, Types(w="int8"), H100).serial[0] == found
        unit = -(-programs // H100.sm_count) * cut.m * cut.n / (64 * 128)
        if steps is None:  # parts of whole groups: the longest has one more
            steps = -(-(k / cut.splits) // 128)
        assert found == pytest.approx(unit * steps)


def test_products_with_four_bits_loop_over_their_own_tiles():
    for m, n, k in product((1, 17, 33, 64, 100, 256, 257, 3000), (1024, 5760), (1024, 4096, 14336)):
        with assumed(90):
            cut = w4a16_gemm.tiles_for_four(CPU, m, n, k)
        waves = -(-(-(-m // cut.m) * -(-n // cut.n) * cut.splits) // H100.sm_count)
        loop = -(-(k // cut.k) // cut.splits)  # steps of the longest part, as the kernel cuts it
        columns = {"m": np.array([float(m)]), "n": np.array([float(n)]), "k": np.array([float(k)])}
        found = in_wide_steps(columns, Types(w="int4"), H100).serial[0]
        work = cut.m * cut.n * cut.k / (64 * 128 * 128)
        assert found == pytest.approx(waves * loop * work)


def test_kernels_without_a_known_cut_are_understood_as_their_family():
    gemm = FAMILIES["gemm"]
    assert family_of(gemm, "torch.linear") is gemm
    assert family_of(gemm, "triton.wna16_gemm.v1").work is in_steps  # of profiles that are there
    cut = family_of(gemm, wna16_gemm.KERNEL_ID)
    assert cut.work is in_wide_steps
    assert family_of(cut, wna16_gemm.KERNEL_ID) is cut
    decode = FAMILIES["attention_decode"]
    assert family_of(decode, paged_decode.KERNEL_ID).work is in_short_parts
    assert family_of(decode, "triton.paged_decode.v1").work is in_parts  # of earlier profiles
