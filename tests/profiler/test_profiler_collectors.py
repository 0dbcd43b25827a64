"""Kernels of installed engines as rows: found, called with their interface, and gated."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from llmsim_kernels.profiler import collectors
from llmsim_kernels.profiler.blocks.decode import DecodeShape, rows
from llmsim_kernels.profiler.plan import Plan, Rates
from llmsim_kernels.profiler.spec import RowFault
from llmsim_kernels.profiler.synthetic import SyntheticDevice

PLAN = Plan(SyntheticDevice().facts, False, Rates(1e15, 5e12))
SHAPE = DecodeShape((33, 7), 8, 2, 64, "fp32", "fp32")


def test_only_installed_engines_have_rows(monkeypatch):
    def kernels():
        return {spec.key["kernel_id"] for spec in rows(PLAN)}

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not kernels() & set(collectors.COLLECTORS)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name if name == "flashinfer" else None
    )
    assert kernels() & set(collectors.COLLECTORS) == {"flashinfer.batch_decode"}


class Wrapper:
    """flashinfer's decode wrapper, by plain torch; scaled, to play a library that is wrong."""

    scale = 1.0

    def __init__(self, workspace, layout) -> None:
        assert layout == "NHD"

    def plan(self, starts, pages, last, heads_q, heads_kv, dim, page, **types) -> None:
        self.starts, self.pages, self.last, self.page = starts.tolist(), pages, last.tolist(), page
        assert set(types) == {"q_data_type", "kv_data_type"}

    def run(self, q, kv):
        from llmsim_kernels.ops import reference

        torch = sys.modules["torch"]
        counts = [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]
        width = max(counts)
        table = torch.zeros((len(counts), width), dtype=torch.int32)
        for row, (start, count) in enumerate(zip(self.starts, counts, strict=False)):
            table[row, :count] = self.pages[start : start + count]
        contexts = [
            (count - 1) * self.page + last for count, last in zip(counts, self.last, strict=True)
        ]
        found = reference.paged_attention(q, kv[0], kv[1], table, contexts, [1] * len(counts))
        return found * self.scale


def attend(q, k, v, *, max_seqlen_q, cu_seqlens_q, max_seqlen_k, seqused_k, causal, block_table):
    """vLLM's function, by plain torch."""
    from llmsim_kernels.ops import reference

    assert max_seqlen_q == 1
    assert causal
    assert cu_seqlens_q.tolist() == list(range(len(q) + 1))
    contexts = seqused_k.tolist()
    assert max(contexts) == max_seqlen_k
    return reference.paged_attention(q, k, v, block_table, contexts, [1] * len(q))


@pytest.mark.torch
@pytest.mark.parametrize("kernel_id", list(collectors.COLLECTORS))
def test_calls_pass_the_gate_when_the_library_is_right(monkeypatch, kernel_id):
    bench = _bench()
    _install(monkeypatch)
    call = collectors.paged_decode(bench, SHAPE, kernel_id)
    bench.pass_gate(call)
    assert bench.gates[call.gate] < 1e-6
    first, second = call.variants[0](), call.variants[1]()
    assert first.shape == (2, 8, 64)
    assert not (first == second).all()


@pytest.mark.torch
def test_a_wrong_library_is_not_timed(monkeypatch):
    bench = _bench()
    _install(monkeypatch)
    monkeypatch.setattr(Wrapper, "scale", 1.05)
    call = collectors.paged_decode(bench, SHAPE, "flashinfer.batch_decode")
    with pytest.raises(RowFault, match=r"flashinfer\.batch_decode fp32 is off its reference"):
        bench.pass_gate(call)


def _bench():
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from llmsim_kernels.profiler.torchbench import TorchBench

    return TorchBench("cpu", 1 << 16)


def _install(monkeypatch):
    fakes = {
        "flashinfer": SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper),
        "vllm": SimpleNamespace(),
        "vllm.vllm_flash_attn": SimpleNamespace(flash_attn_varlen_func=attend),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
