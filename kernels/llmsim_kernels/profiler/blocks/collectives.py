"""Block 10: NCCL collectives over the GPUs of this machine, one process for each."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from llmsim_kernels.profiler.plan import Plan
from llmsim_kernels.profiler.spec import (
    REPLAY_S,
    WARMUPS,
    Call,
    RowFault,
    RowSpec,
    Timing,
    timing_of,
)

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
SIZES = tuple(256 * 4**step for step in range(11))
"""256 B to 256 MiB: the tensor on each GPU [bytes]."""

_REPEATS = 7
_TIMEOUT_S = 240.0


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return every kind and size for 2, 4 and 8 GPUs, as far as there are so many."""
    if plan.facts.kind != "cuda":
        return
    for gpus in (2, 4, 8):
        if gpus <= plan.facts.gpus:
            group = _Group(gpus)
            for kind, size in product(KINDS, SIZES):
                yield _row(group, kind, size)


def _row(group: _Group, kind: str, size: int) -> RowSpec:
    key: dict[str, Any] = {
        "op": kind,
        "kernel_id": "nccl",
        "dtype_a": "bf16",
        "message_bytes": size,
        "gpus": group.gpus,
        "nodes": 1,
        "cold": False,
        "graph": True,
    }

    def nothing(bench: Any) -> Call:
        raise RowFault("unsupported", "collectives run in processes of their own")

    return RowSpec(
        10,
        key,
        0.0,
        float(size),
        nothing,
        "cuda",
        float(size),
        measure=lambda device: group.timing(kind, size),
    )


class _Group:
    """All times of one group size, measured together when the first is asked for."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self._found: dict[tuple[str, int], list[float]] | None = None
        self._fault = ""

    def timing(self, kind: str, size: int) -> Timing:
        """Return the times of one collective.

        Raises
        ------
        RowFault
            If the processes failed.
        """
        if self._found is None and not self._fault:
            try:
                self._found = self._measure()
            except Exception as error:  # a process of the group died: whatever it raised
                self._fault = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if self._found is None or (kind, size) not in self._found:
            raise RowFault("error", self._fault or "no time came back")
        return timing_of(self._found[kind, size])

    def _measure(self) -> dict[tuple[str, int], list[float]]:
        import torch.multiprocessing as processes

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with processes.Manager() as manager:
            found = manager.dict()
            group = processes.spawn(
                _process, args=(self.gpus, port, found), nprocs=self.gpus, join=False
            )
            group.join(timeout=_TIMEOUT_S)
            return dict(found)


def _process(rank: int, gpus: int, port: int, found: Any) -> None:
    """Time every collective on one GPU; the first one reports."""
    import torch
    from torch import distributed

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", rank=rank, world_size=gpus)
    try:
        for kind, size in product(KINDS, SIZES):
            samples = _times(kind, size, gpus)
            if rank == 0:
                found[kind, size] = samples
    finally:
        distributed.destroy_process_group()


def _times(kind: str, size: int, gpus: int) -> list[float]:
    """Return the time of one call in each replay of a graph [s], on this GPU."""
    import torch
    from torch import distributed

    values = torch.randn(size // 2, device="cuda").bfloat16()
    whole = torch.empty(size // 2 * gpus, device="cuda", dtype=torch.bfloat16)
    part = torch.empty(max(1, size // 2 // gpus), device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(values)
    calls_by_kind: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: distributed.all_reduce(values),
        "all_gather": lambda: distributed.all_gather_into_tensor(whole, values),
        "reduce_scatter": lambda: distributed.reduce_scatter_tensor(part, values),
        "all_to_all": lambda: distributed.all_to_all_single(out, values),
    }
    call = calls_by_kind[kind]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            call()
    torch.cuda.synchronize()
    # the same count on every GPU: a collective that one of them leaves out hangs all the others
    calls = max(2, int(REPLAY_S / (2e-5 + size / 2e11)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    samples = []
    for turn in range(WARMUPS + _REPEATS):
        distributed.barrier()
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            start.record()
            graph.replay()
            end.record()
        end.synchronize()
        if turn >= WARMUPS:
            samples.append(start.elapsed_time(end) / 1e3 / calls)
    return samples
