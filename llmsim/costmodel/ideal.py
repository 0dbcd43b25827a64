"""The plain roofline: what bounds each operator, and what a use would need at the least.

No launch, no host, no network and no loss of efficiency: an operator takes the longer of its FLOPs
at peak and its bytes at full bandwidth. No product of a step is priced below this; what lies
between products may be, where it stays in the cache.

References
----------
Williams, Waterman and Patterson, Roofline (CACM 2009); for LLM inference the tables of LLM-Viewer
(arXiv 2402.16363) and the requirements of GenZ (arXiv 2406.01698).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmsim.core.errors import Fault, InputError
from llmsim.costmodel.contract import Chunk
from llmsim.costmodel.explain import StepBreakdown
from llmsim.costmodel.roofline import RooflineCost
from llmsim.specs import EngineLimits, GpuCard, ModelSpec


@dataclass(frozen=True, slots=True)
class IdealRow:
    """One operator of a step under the plain roofline.

    Parameters
    ----------
    name : str
    calls : int
        In the step.
    flops, bytes : float [FLOP], [bytes]
        Of one call.
    dtype : str
        Compute dtype, or elementwise.
    peak_flops_per_s : float [FLOP/s]
        Of the GPU in that type; infinite where an operator only moves bytes.
    memory_bytes_per_s : float [bytes/s]
    """

    name: str
    calls: int
    flops: float
    bytes: float
    dtype: str
    peak_flops_per_s: float
    memory_bytes_per_s: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes

    @property
    def ridge(self) -> float:
        """FLOPs per byte from which on compute bounds it."""
        return self.peak_flops_per_s / self.memory_bytes_per_s

    @property
    def attainable_flops_per_s(self) -> float:
        """Height of the roof at its intensity."""
        return min(self.peak_flops_per_s, self.intensity * self.memory_bytes_per_s)

    @property
    def bound(self) -> str:
        """What bounds it: compute or memory."""
        return "compute" if self.intensity > self.ridge else "memory"

    def seconds(self, compute: float = 1.0, bandwidth: float = 1.0) -> float:
        """Return the time of one call on a GPU of so many times the peak and the bandwidth [s]."""
        at_peak = self.flops / (compute * self.peak_flops_per_s)
        return max(at_peak, self.bytes / (bandwidth * self.memory_bytes_per_s))


def ideal_rows(step: StepBreakdown, gpu: GpuCard) -> tuple[IdealRow, ...]:
    """Return the operators of a priced step under the plain roofline, in the step's order.

    Parameters
    ----------
    step : StepBreakdown
    gpu : GpuCard
        That the step was priced on.
    """
    return tuple(
        IdealRow(
            row.name,
            row.count,
            row.flops / row.count,
            row.bytes / row.count,
            row.dtype,
            gpu.peak_flops_per_s.get(row.dtype, math.inf),
            gpu.memory_bytes_per_s,
        )
        for row in step.rows
        if row.dtype not in ("host", "network") and row.bytes > 0
    )


def ideal_seconds(rows: Sequence[IdealRow], compute: float = 1.0, bandwidth: float = 1.0) -> float:
    """Return the time of all rows one after another [s]; see `IdealRow.seconds`."""
    return sum(row.calls * row.seconds(compute, bandwidth) for row in rows)


@dataclass(frozen=True, slots=True)
class Use:
    """What a platform is to be used for.

    Parameters
    ----------
    prompt_tokens, output_tokens : int [tokens]
        Of each request.
    batch : int [requests]
        Decoded together, each at its full context.
    ttft_s : float [s]
        In which one prompt is computed alone.
    tpot_s : float [s]
        In which a step of the batch is computed.
    """

    prompt_tokens: int
    output_tokens: int
    batch: int
    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        faults = [
            Fault("", name, f"{value:g}, must be above 0.")
            for name, value in (
                ("prompt", self.prompt_tokens),
                ("output", self.output_tokens),
                ("batch", self.batch),
                ("ttft", self.ttft_s),
                ("tpot", self.tpot_s),
            )
            if not value > 0
        ]
        if faults:
            raise InputError("needs", faults)

    @property
    def context_tokens(self) -> int:
        """Tokens of a request at its end."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Need:
    """The least that a platform must have of something.

    Parameters
    ----------
    name : str
    amount : float
        In `unit`.
    unit : str
    gpus : float
        How many GPUs of the card have it together.
    """

    name: str
    amount: float
    unit: str
    gpus: float


def prefill_rows(cost: RooflineCost, chunks: Sequence[Chunk]) -> tuple[IdealRow, ...]:
    """Return the operators of a step of prompts alone."""
    return ideal_rows(cost.explain(chunks, []), cost.gpu)


def decode_rows(cost: RooflineCost, batch: int, context: int) -> tuple[IdealRow, ...]:
    """Return the operators of a decode step of equal contexts [tokens]."""
    return ideal_rows(cost.explain([], [context] * batch), cost.gpu)


def ideal_cost(
    model: ModelSpec, gpu: GpuCard, batch: int, context: int, kv_dtype: str | None = None
) -> RooflineCost:
    """Return the cost model whose operators the plain roofline takes, of one device.

    Parameters
    ----------
    model : ModelSpec
    gpu : GpuCard
    batch : int [requests]
    context : int [tokens]
        The longest.
    kv_dtype : str, optional
        The checkpoint's own when absent.

    Notes
    -----
    Without graph sizes, to which steps would be padded.
    """
    limits = EngineLimits(
        max_num_seqs=batch,
        max_num_batched_tokens=max(batch, context),
        max_model_len=context,
        cuda_graphs=False,
    )
    return RooflineCost(model, gpu, None, None, limits, kv_dtype)


def needs(
    model: ModelSpec,
    gpu: GpuCard,
    use: Use,
    efficiency_frac: float = 1.0,
    kv_dtype: str | None = None,
) -> tuple[Need, ...]:
    """Return what a use needs at the least, each for itself: the roofline read backwards.

    Parameters
    ----------
    model : ModelSpec
    gpu : GpuCard
        What the needs are counted in; its types decide in which precision products run.
    use : Use
    efficiency_frac : float
        Share of peak and bandwidth that is reached, in (0, 1].
    kv_dtype : str, optional

    Raises
    ------
    InputError
        If the efficiency is no such share.

    Notes
    -----
    Bytes and FLOPs of a step over TPOT, those of a prompt over TTFT, and weights plus KV of all
    requests at their end, windowed layers included. The network between GPUs is not counted.
    """
    if not 0 < efficiency_frac <= 1:
        fault = Fault("", "efficiency", f"{efficiency_frac:g}, must be above 0 and at most 1.")
        raise InputError("needs", [fault])
    cost = ideal_cost(model, gpu, use.batch, use.context_tokens, kv_dtype)
    decode = decode_rows(cost, use.batch, use.context_tokens)
    prefill = prefill_rows(cost, [(use.prompt_tokens, 0)])
    per_token = model.kv_bytes_per_token(kv_dtype=cost.kv_dtype)
    held = model.weight_bytes() + use.batch * (
        use.context_tokens * per_token + model.state_bytes_per_sequence()
    )
    decode_s, prefill_s = (share * efficiency_frac for share in (use.tpot_s, use.ttft_s))
    return (
        Need("memory", held, "bytes", held / gpu.memory_bytes),
        *_rates("decode", decode, decode_s),
        *_rates("prompt", prefill, prefill_s),
    )


def _rates(phase: str, rows: Sequence[IdealRow], seconds: float) -> Iterator[Need]:
    moved = sum(row.calls * row.bytes for row in rows)
    flops = sum(row.calls * row.flops for row in rows)
    at_peak = sum(row.calls * row.flops / row.peak_flops_per_s for row in rows)
    bandwidth = moved / seconds
    gpus = bandwidth / rows[0].memory_bytes_per_s
    yield Need(f"bandwidth, {phase}", bandwidth, "bytes/s", gpus)
    yield Need(f"compute, {phase}", flops / seconds, "FLOP/s", at_peak / seconds)
