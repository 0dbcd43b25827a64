"""The Triton kernels as the profiler calls them, in Triton's interpreter: no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from llmsim_kernels.profiler.spec import Call, RowFault
from llmsim_kernels.profiler.torchbench import MOST_COPIES, TorchBench

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CALLS = """
import json
from llmsim_kernels.profiler.blocks.decode import DecodeShape
from llmsim_kernels.profiler.blocks.mixed import VarlenShape
from llmsim_kernels.profiler.blocks.moe import routing
from llmsim_kernels.profiler import triton_calls as calls
from llmsim_kernels.profiler.torchbench import TorchBench

bench = TorchBench("cpu", 1 << 16)
bench.gates = dict.fromkeys([], 0.0)
made = {
    "decode": calls.paged_decode(bench, DecodeShape((40, 7), 8, 2, 64, "fp32", "fp32")),
    "fp8": calls.paged_decode(bench, DecodeShape((40, 7), 8, 2, 64, "fp16", "fp8")),
    "int4": calls.paged_decode(bench, DecodeShape((40, 7), 8, 2, 64, "fp16", "int4")),
    "varlen": calls.varlen_attention(bench, VarlenShape(((9, 0), (1, 30)), 8, 2, 64, "fp32")),
    "window": calls.varlen_attention(
        bench, VarlenShape(((9, 0), (1, 30)), 8, 2, 64, "fp32", window=8, pack=False)
    ),
    "gemm": calls.weight_only_gemm(bench, 3, 64, 256, 4, 128, "fp16"),
    "w3": calls.weight_only_gemm(bench, 3, 64, 256, 3, 128, "fp16"),
    "w4a8": calls.w4a8_gemm(bench, 3, 64, 256, 128, "fp16"),
    "moe": calls.fused_moe(bench, [routing(bench, 4, 2, 5, 0.0)], 4, 64, 32, "fp32"),
    "norm": calls.fused_norm(bench, 3, 256, "fp32"),
    "quantise": calls.quantise(bench, 3, 256, "fp32"),
    "sample": calls.sample(bench, bench.warm((2, 300), "fp32"), 10, 0.9),
}
found = {}
for name, call in made.items():
    results = [variant() for variant in call.variants[:2]]
    first = results[0][0] if isinstance(results[0], tuple) else results[0]
    same = len(results) > 1 and bool((results[0] == results[1]).all())
    found[name] = [call.gate, call.limit, list(first.shape), len(call.variants), same]
bench.pass_gate(made["norm"])
bench.pass_gate(made["sample"])
found["gates"] = bench.gates
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def called():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_runs_on_the_operands_that_it_is_timed_on(called):
    shapes = {name: entry[2] for name, entry in called.items() if name != "gates"}
    assert shapes == {
        "decode": [2, 8, 64],
        "fp8": [2, 8, 64],
        "int4": [2, 8, 64],
        "varlen": [10, 8, 64],
        "window": [10, 8, 64],
        "gemm": [3, 64],
        "w3": [3, 64],
        "w4a8": [3, 64],
        "moe": [5, 64],
        "norm": [3, 256],
        "quantise": [3, 256],
        "sample": [2],
    }


def test_every_kernel_has_a_gate_and_weights_and_kv_rotate(called):
    for name in ("decode", "fp8", "int4", "varlen", "gemm", "w3", "w4a8"):
        gate, limit, _, variants, same = called[name]
        assert gate.startswith("triton.")
        assert 0 < limit <= 1e-2
        assert variants > 1
        assert not same  # each variant reads operands of its own


def test_gates_are_checked_once_by_the_catalogue(called):
    assert set(called["gates"]) == {
        "triton.rmsnorm.v1 same fp32",
        "triton.sampler.v2 top-k top-p fp32",
    }
    assert all(0 <= error <= 1e-3 for error in called["gates"].values())


def test_a_wrong_kernel_is_never_timed():
    bench = TorchBench("cpu", 1 << 20)
    checks = []
    call = Call([], "triton.wrong.v1", lambda: checks.append(1) or 0.3, 1e-2)
    for _ in range(2):
        with pytest.raises(RowFault, match=r"off its reference by 3\.00e-01"):
            bench.pass_gate(call)
    assert checks == [1]
    nan = Call([], "triton.nan.v1", lambda: float("nan"), 1e-2)
    with pytest.raises(RowFault, match="off its reference"):
        bench.pass_gate(nan)


def test_rotation_covers_three_caches_and_is_random():
    bench = TorchBench("cpu", 1 << 20)
    size = 256 * 1024
    copies = bench.copies(size)
    assert copies * size >= 3 << 20
    assert bench.copies(1) == MOST_COPIES
    assert bench.copies(1 << 30) == 1
    operands = bench.rotated((256, 256), "fp32", copies)
    starts = [operand.data_ptr() for operand in operands]
    assert all(b - a == size for a, b in pairwise(starts))
    assert all(0.05 < float(operand.std()) < 0.2 for operand in operands[:3])
    assert float(bench.rotated((64, 64), "fp8", 1)[0].float().std()) > 0.05
    assert bench.rotated((64, 64), "int8", 1)[0].float().std() > 10
