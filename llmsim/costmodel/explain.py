"""Where the time of one step goes: a row per operator that adds up to the step's price."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmsim.core.units import NS_PER_S
from llmsim.costmodel.attention import MixerPrice
from llmsim.costmodel.contract import Chunk
from llmsim.costmodel.operators import Floats, OpTable

if TYPE_CHECKING:
    from llmsim.costmodel.roofline import RooflineCost


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One operator of one step, on one rank.

    Parameters
    ----------
    name : str
    count : int
        Calls in the step.
    flops, bytes : float [FLOP], [bytes]
        Of all calls; bytes on the network for collectives.
    seconds : float [s]
        Of all calls.
    bound : str
        compute, memory, latency (the launch floor exceeds both), network or host.
    dtype : str
        Compute dtype, or elementwise, network, host.
    share_frac : float
        Part of the step.
    """

    name: str
    count: int
    flops: float
    bytes: float
    seconds: float
    bound: str
    dtype: str
    share_frac: float


@dataclass(frozen=True, slots=True)
class StepBreakdown:
    """The price of one step, split.

    Parameters
    ----------
    rows : tuple of OperatorRow
        Longest first.
    seconds : float [s]
        The step; the sum of the rows.
    gpu_s : float [s]
        Without the host.
    tokens : int [tokens]
        Computed, graph padding included.
    """

    rows: tuple[OperatorRow, ...]
    seconds: float
    gpu_s: float
    tokens: int


class StepParts(Protocol):
    """What an explanation asks of a cost model beside the price of attention."""

    def padded(self, tokens: Floats) -> Floats:
        """Round token counts up to captured graph sizes."""
        ...

    def token_operators(self, tokens: Floats) -> Iterator[OpTable]:
        """Yield every operator that depends on the number of tokens alone."""
        ...

    def head_tables(self, rows: Floats) -> Iterator[OpTable]:
        """Yield LM head and sampler."""
        ...

    def host_ns(self, tokens: int, decode: int, chunks: int) -> tuple[float, float]:
        """Return host work that adds to the GPU's, and that runs beside it [ns]."""
        ...


def explain_step(
    cost: RooflineCost, chunks: Sequence[Chunk], contexts: Sequence[int], logits: int
) -> StepBreakdown:
    """Split a step of a `RooflineCost`; see `RooflineCost.explain`."""
    return explain_parts(cost, chunks, contexts, logits, attention_rows(cost, chunks, contexts))


def explain_parts(
    cost: StepParts,
    chunks: Sequence[Chunk],
    contexts: Sequence[int],
    logits: int,
    attention: Iterable[OperatorRow],
) -> StepBreakdown:
    """Split a step whose attention has been split already."""
    tokens = sum(new for new, _ in chunks) + len(contexts)
    computed = cost.padded(np.array([float(tokens)]))
    rows = [table_row(table) for table in cost.token_operators(computed)] if tokens else []
    if logits:
        rows += [table_row(table) for table in cost.head_tables(np.array([float(logits)]))]
    rows += attention
    host_ns = cost.host_ns(tokens, len(contexts), len(chunks))
    return explain_rows(rows, host_ns, int(computed[0]))


def explain_rows(
    rows: Sequence[OperatorRow], host_ns: tuple[float, float], tokens: int
) -> StepBreakdown:
    """Add the host to the operators of a step, and up.

    Parameters
    ----------
    rows : sequence of OperatorRow
    host_ns : (float, float) [ns]
        What adds to the GPU's time, and what runs beside it.
    tokens : int [tokens]
    """
    rows = list(rows)
    gpu_s = sum(row.seconds for row in rows)
    added_ns, beside_ns = host_ns
    host_s = (added_ns + max(0.0, beside_ns - gpu_s * NS_PER_S)) / NS_PER_S
    if host_s > 0:
        rows.append(OperatorRow("host", 1, 0.0, 0.0, host_s, "host", "host", 0.0))
    total = gpu_s + host_s
    merged = _merge(rows, total)
    return StepBreakdown(merged, total, gpu_s, tokens)


def table_row(table: OpTable) -> OperatorRow:
    """Return the row of an operator that was priced for one size."""
    fixed, compute, memory = (
        float(part[0]) for part in (table.fixed_s, table.compute_s, table.memory_s)
    )
    count = table.count
    bound = _bound(fixed, compute, memory)
    if table.dtype == "network" and bound != "latency":
        bound = "network"
    return OperatorRow(
        name=table.name,
        count=count,
        flops=count * float(table.flops[0]),
        bytes=count * float(table.bytes[0]),
        seconds=count * float(table.seconds[0]),
        bound=bound,
        dtype=table.dtype,
        share_frac=0.0,
    )


def _bound(fixed: float, compute: float, memory: float) -> str:
    if fixed >= max(compute, memory):
        return "latency"
    return "compute" if compute > memory else "memory"


def attention_rows(
    cost: RooflineCost, chunks: Sequence[Chunk], contexts: Sequence[int]
) -> Iterator[OperatorRow]:
    """Yield a row per mixer and phase."""
    for mixer in cost.mixers:
        if chunks:
            yield _prefill_row(cost, mixer, chunks)
        if contexts:
            yield _decode_row(cost, mixer, contexts, mixed=bool(chunks))


def _prefill_row(cost: RooflineCost, mixer: MixerPrice, chunks: Sequence[Chunk]) -> OperatorRow:
    sums = cost.chunk_sums(chunks)
    compute, memory = mixer.limits_ns(sums)
    return OperatorRow(
        name=f"{mixer.name} prefill",
        count=mixer.layers,
        flops=mixer.layers * mixer.prefill_flops.of(sums),
        bytes=mixer.layers * mixer.prefill_bytes.of(sums),
        seconds=mixer.prefill_ns(sums) / NS_PER_S,
        bound=_bound(mixer.prefill_fixed_ns, compute, memory),
        dtype=mixer.dtype,
        share_frac=0.0,
    )


def _decode_row(
    cost: RooflineCost, mixer: MixerPrice, contexts: Sequence[int], mixed: bool
) -> OperatorRow:
    padded, windowed = padded_sums(contexts, cost.context_tile, cost.window_tokens)
    sums = (padded, windowed, len(contexts))

    def total(weights: Sequence[float]) -> float:
        return sum(weight * size for weight, size in zip(weights, sums, strict=True))

    flops, moved, variable = (
        total(mixer.decode_flops),
        total(mixer.decode_bytes),
        total(mixer.decode_ns),
    )
    fixed = mixer.mixed_fixed_ns if mixed else mixer.decode_fixed_ns
    scale = mixer.mixed_scale if mixed else 1.0
    peak = cost.gpu.peak_flops_per_s[mixer.dtype]
    bandwidth = cost.gpu.memory_bytes_per_s
    return OperatorRow(
        name=f"{mixer.name} decode",
        count=mixer.layers,
        flops=mixer.layers * flops,
        bytes=mixer.layers * moved,
        seconds=(fixed + scale * variable) / NS_PER_S,
        bound="latency"
        if fixed >= scale * variable
        else _bound(0.0, flops / peak, moved / bandwidth),
        dtype=mixer.dtype,
        share_frac=0.0,
    )


def padded_sums(contexts: Sequence[int], tile: int, window: int) -> tuple[int, int]:
    """Return the padded and the clipped padded context sum of a decode batch.

    Parameters
    ----------
    contexts : sequence of int [tokens]
    tile, window : int [tokens]
        `StepCost.context_tile` and `StepCost.window_tokens`.

    Returns
    -------
    tuple of int [tokens]
        The second is 0 without a window.
    """
    padded = [-(-context // tile) * tile for context in contexts]
    edge = -(-window // tile) * tile
    return sum(padded), sum(min(size, edge) for size in padded) if window else 0


def overhang_of(contexts: Sequence[int]) -> int:
    """Return by how much the longest context exceeds the mean of the others [tokens].

    Parameters
    ----------
    contexts : sequence of int [tokens]
    """
    others = len(contexts) - 1
    if others < 1:
        return 0
    return (len(contexts) * max(contexts) - sum(contexts)) // others


def _merge(rows: Sequence[OperatorRow], total_s: float) -> tuple[OperatorRow, ...]:
    """Join rows of equal name and bound, state shares, sort by time."""
    joined: dict[tuple[str, str, str], OperatorRow] = {}
    for row in rows:
        key = (row.name, row.bound, row.dtype)
        old = joined.get(key)
        count, flops, moved, seconds = row.count, row.flops, row.bytes, row.seconds
        if old is not None:
            count += old.count
            flops += old.flops
            moved += old.bytes
            seconds += old.seconds
        share = seconds / total_s if total_s else 0.0
        joined[key] = OperatorRow(
            row.name, count, flops, moved, seconds, row.bound, row.dtype, share
        )
    return tuple(sorted(joined.values(), key=lambda row: -row.seconds))
