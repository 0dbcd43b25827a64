"""Block 7: gated delta rule (Qwen3-Next): one decode step by torch, prompts by `fla` if there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan
from llmsim_kernels.profiler.spec import Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench, in_turn

HEADS, HEAD_DIM = 32, 128
"""Value heads of Qwen3-Next-80B-A3B, and width of keys and values."""

TOKENS = (256, 1024, 4096, 16384)
BATCHES = (1, 8, 32, 64, 128, 256)
_CHUNK = 64  # of fla's chunked kernels
_STATE_BYTES = 4.0  # the state is kept in fp32


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return decode steps by batch, then prompts by length."""
    for batch in BATCHES:
        yield step(plan, batch)
    for tokens in TOKENS:
        yield prompt(plan, tokens)


def step(plan: Plan, batch: int) -> RowSpec:
    """Return the row of one token of each request: S <- g S + b k (v - k S)^T, out = q S.

    Parameters
    ----------
    plan : Plan
    batch : int [requests]
    """
    size = batch * HEADS * HEAD_DIM * HEAD_DIM * _STATE_BYTES
    key: dict[str, Any] = {
        "op": "recurrent_decode",
        "kernel_id": "torch.gated_delta_step",
        "dtype_a": "fp32",
        "phase": "decode",
        "batch": batch,
        "heads_q": HEADS,
        "head_dim": HEAD_DIM,
        "cold": True,
        "graph": plan.graph,
    }

    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        states = bench.rotated((batch, HEADS, HEAD_DIM, HEAD_DIM), "fp32", bench.copies(size))
        q, k, v = (bench.warm((batch, HEADS, 1, HEAD_DIM), "fp32") for _ in range(3))
        gate = torch.full((batch, HEADS, 1, 1), 0.9, device=bench.device)

        def call(state: Any) -> Any:
            change = gate * (v - k @ state)
            state.mul_(gate).add_(k.transpose(-1, -2) @ change)
            return q @ state

        return Call(in_turn(call, states))

    flops = 6.0 * batch * HEADS * HEAD_DIM**2
    return RowSpec(7, key, flops, 2.0 * size, build, "", size)


def prompt(plan: Plan, tokens: int) -> RowSpec:
    """Return the row of one prompt in chunks.

    Parameters
    ----------
    plan : Plan
    tokens : int
    """
    key: dict[str, Any] = {
        "op": "recurrent_prefill",
        "kernel_id": "fla.chunk_gated_delta_rule",
        "dtype_a": plan.dtype,
        "phase": "prefill",
        "tokens": tokens,
        "heads_q": HEADS,
        "head_dim": HEAD_DIM,
        "cold": False,
        "graph": False,
    }

    def build(bench: TorchBench) -> Call:
        kernels = importlib.import_module("fla.ops.gated_delta_rule")
        torch = bench.torch
        q, k, v = (bench.warm((1, tokens, HEADS, HEAD_DIM), plan.dtype) for _ in range(3))
        gate = -torch.rand((1, tokens, HEADS), device=bench.device)
        beta = torch.rand((1, tokens, HEADS), device=bench.device).to(q.dtype)
        return Call([lambda: kernels.chunk_gated_delta_rule(q, k, v, g=gate, beta=beta)])

    flops = 2.0 * tokens * HEADS * (_CHUNK * HEAD_DIM + 2.0 * HEAD_DIM**2)
    moved = 4.0 * tokens * HEADS * HEAD_DIM * ITEM_BYTES[plan.dtype]
    return RowSpec(7, key, flops, moved, build, "fla", moved)
