"""What the simulator takes for the cut of a launch is what the kernels' own rules say."""

from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.torch

from llmsim_kernels.ops import paged_decode, splits, wna16_gemm  # noqa: E402
from llmsim_kernels.ops.device import assumed  # noqa: E402

from llmsim.costmodel.measured import Device, Types  # noqa: E402
from llmsim.costmodel.measured.cuts import family_of, in_parts, in_steps  # noqa: E402
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
        part = -(-context // cut.splits)
        shape = {"batch": batch, "kv_len": context, "heads_q": heads * group, "heads_kv": heads}
        columns = {name: np.array([float(value)]) for name, value in shape.items()}
        columns["head_dim"] = np.array([float(width)])
        found = in_parts(columns, Types(kv=kv), H100).serial[0]
        assert found == -(-part // cut.tile) + (cut.splits > 1)


def test_products_with_few_bits_loop_wave_by_wave():
    for m, n, k in product((1, 16, 17, 100, 256, 257, 3000), (1024, 5760, 28_672), (1024, 14_336)):
        with assumed(90):
            cut = wna16_gemm.tiles_for(CPU, m, n, k)
        programs = -(-m // cut.m) * -(-n // cut.n) * cut.splits
        steps = -(-(k // cut.splits) // 128) if k % (cut.splits * 128) == 0 else None
        columns = {"m": np.array([float(m)]), "n": np.array([float(n)]), "k": np.array([float(k)])}
        found = in_steps(columns, Types(w="int4"), H100).serial[0]
        unit = -(-programs // H100.sm_count) * cut.m * cut.n / (64 * 128)
        if steps is None:  # parts of whole groups: the longest has one more
            steps = -(-(k / cut.splits) // 128)
        assert found == pytest.approx(unit * steps)


def test_kernels_without_a_known_cut_are_understood_as_their_family():
    gemm = FAMILIES["gemm"]
    assert family_of(gemm, "torch.linear") is gemm
    cut = family_of(gemm, wna16_gemm.KERNEL_ID)
    assert cut.work is in_steps
    assert family_of(cut, wna16_gemm.KERNEL_ID) is cut
    assert family_of(FAMILIES["attention_decode"], paged_decode.KERNEL_ID).work is in_parts
