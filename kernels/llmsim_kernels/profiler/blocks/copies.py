"""Block 9: copies between host and device, both ways at once, and gathers of KV blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from llmsim_kernels.profiler.plan import Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench

SIZES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20)
PIECES = (64, 16 << 10, 1 << 20)
"""Gathered at once [bytes]: a scale, a KV block of one layer, one of all layers."""

_GATHERED = 64 << 20


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return copies in every direction and kind of host memory, duplex copies, and gathers."""
    for way, memory, size in product(("h2d", "d2h"), ("pinned", "pageable"), SIZES):
        yield _row(f"{way}.{memory}", size, _copy(way, memory == "pinned", size))
    for size in SIZES[2:]:
        yield _row("duplex.pinned", size, _duplex(size))
    for piece in PIECES:
        build = _gather(piece)
        yield _row(f"gather{piece}", _GATHERED, build, graph=plan.graph, needs="", moved=2.0)


def _row(
    variant: str,
    size: int,
    build: Build,
    *,
    graph: bool = False,
    needs: str = "cuda",
    moved: float = 1.0,
) -> RowSpec:
    kernel = "torch.index_select" if variant.startswith("gather") else "cuda.memcpy"
    key: dict[str, Any] = {  # each way in a kernel id of its own: they share no line over size
        "op": "memcpy",
        "kernel_id": f"{kernel}.{variant}",
        "message_bytes": size,
        "variant": variant,
        "cold": True,
        "graph": graph,
    }
    return RowSpec(9, key, 0.0, moved * size, build, needs, size)


def _copy(way: str, pinned: bool, size: int) -> Build:
    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        host = torch.ones(size, dtype=torch.uint8, pin_memory=pinned)
        there = torch.ones(size, dtype=torch.uint8, device=bench.device)
        target, source = (there, host) if way == "h2d" else (host, there)
        return Call([lambda: target.copy_(source, non_blocking=pinned)])

    return build


def _duplex(size: int) -> Build:
    """Copy one way on this stream and the other way on a second one."""

    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        hosts = [torch.ones(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        there = [torch.ones(size, dtype=torch.uint8, device=bench.device) for _ in range(2)]
        other = torch.cuda.Stream(device=bench.device)

        def call() -> None:
            here = torch.cuda.current_stream()
            other.wait_stream(here)
            with torch.cuda.stream(other):
                hosts[0].copy_(there[0], non_blocking=True)
            there[1].copy_(hosts[1], non_blocking=True)
            here.wait_stream(other)

        return Call([call])

    return build


def _gather(piece: int) -> Build:
    def build(bench: TorchBench) -> Call:
        count = _GATHERED // piece
        pool = bench.rotated((4 * count, piece // 4), "fp32", 1)[0]
        order = bench.torch.randperm(4 * count)[:count].to(bench.device)
        return Call([lambda: pool.index_select(0, order)])

    return build
