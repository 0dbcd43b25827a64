"""`llmsim show step`: the price of one step, operator by operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import typer

from llmsim.cli.looking import print_rows
from llmsim.core.errors import Fault, InputError
from llmsim.costmodel import Chunk, RooflineCost, StepBreakdown, check_layout, padded_sums
from llmsim.costmodel.measured import MeasuredCost
from llmsim.costmodel.pipeline import PipelineCost, stage_host, stage_links
from llmsim.costmodel.ranks import RankedCost
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    ParallelPlan,
    load_gpu,
    load_link,
    load_model,
    stage_of,
)


@dataclass(frozen=True, slots=True)
class StepOrder:
    """Which step to show.

    Parameters
    ----------
    model, gpu : str
        Cards.
    plan : ParallelPlan
    batch : int [requests]
        Decoding requests, of each attention rank.
    context : int [tokens]
        Of each of them, this step's token included.
    prefill : tuple of str
        ``NEW:PAST`` [tokens], on one rank.
    """

    model: str
    gpu: str
    plan: ParallelPlan
    batch: int
    context: int
    prefill: tuple[str, ...]


def show_step_cost(order: StepOrder) -> None:
    """Print what a step costs and what bounds each operator.

    Raises
    ------
    InputError
        If a card or an option is wrong, or the model does not split over the GPUs.
    """
    chunks = _chunks(order.prefill)
    if not chunks and not order.batch:
        fault = Fault("", "", "the step is empty.", "Give --batch, --prefill, or both.")
        raise InputError("show step", [fault])
    model, gpu = load_model(order.model), load_gpu(order.gpu)
    tokens = order.batch + sum(new for new, _ in chunks)
    usual = EngineLimits()
    limits = EngineLimits(
        max_num_seqs=max(usual.max_num_seqs, order.batch + len(chunks)),
        max_num_batched_tokens=max(usual.max_num_batched_tokens, tokens),
        max_model_len=max(order.context, *(sum(chunk) for chunk in chunks), 1),
    )
    plan = order.plan
    link = load_link(gpu.link) if plan.gpus > 1 else None
    nodes = gpu.scale_out if plan.gpus > gpu.node_gpus else ""
    scale_out = load_link(nodes) if nodes else None
    contexts = [order.context] * order.batch
    if plan.pp > 1:
        check_layout(model, gpu, plan)
        parts = [
            RooflineCost(
                stage_of(model, stage, plan.pp),
                gpu,
                link,
                replace(plan, pp=1),
                limits,
                lookahead=0,
                host=stage_host(HostTerms()),
                scale_out=scale_out,
            )
            for stage in range(plan.pp)
        ]
        links = stage_links(plan, gpu, link, scale_out)
        _show_pipeline(order, PipelineCost(parts, HostTerms(), links), chunks, contexts)
        return
    cost = RooflineCost(model, gpu, link, plan, limits, scale_out=scale_out)
    if plan.dp > 1:
        step = RankedCost(cost).explain([(chunks, contexts), *[((), contexts)] * (plan.dp - 1)])
    else:
        step = cost.explain(chunks, contexts)
    print_rows(_table(step))
    typer.echo("")
    for line in _facts(order, cost, step, chunks):
        typer.echo(line)
    for warning in cost.warnings():
        typer.echo(f"note: {warning}", err=True)


def _show_pipeline(
    order: StepOrder, cost: PipelineCost, chunks: list[Chunk], contexts: list[int]
) -> None:
    step = cost.explain(chunks, contexts)
    print_rows(_table(step))
    typer.echo("")
    for line in _facts(order, cost.parts[0], step, chunks):
        typer.echo(line)
    padded, windowed = padded_sums(contexts, cost.context_tile, cost.window_tokens)
    rows = len(contexts) + len(chunks)
    times = cost.station_ns(chunks, len(contexts), padded, windowed, rows)
    listed = (f"{name} {time / 1e6:.3f}" for name, time in zip(cost.names, times, strict=True))
    typer.echo(f"stations  {', '.join(listed)} ms")
    most = max(times)
    typer.echo(
        f"pipeline  with {cost.stages} such micro-batches in flight one comes out every "
        f"{max(most, sum(times) / cost.stages) / 1e6:.3f} ms"
    )
    for warning in cost.warnings():
        typer.echo(f"note: {warning}", err=True)


def _chunks(texts: tuple[str, ...]) -> list[Chunk]:
    """Read ``NEW:PAST``; PAST may be left out."""
    found: list[Chunk] = []
    faults: list[Fault] = []
    for text in texts:
        new, _, past = text.partition(":")
        if new.isdecimal() and int(new) > 0 and (past or "0").isdecimal():
            found.append((int(new), int(past or 0)))
        else:
            message = f"'{text}' is not NEW:PAST."
            faults.append(Fault("", "--prefill", message, "Write it like 512:0, in tokens."))
    if faults:
        raise InputError("show step", faults)
    return found


def _table(step: StepBreakdown) -> Iterator[tuple[str, ...]]:
    yield ("operator", "calls", "time [us]", "share", "GFLOP", "MB", "dtype", "bound by")
    for row in step.rows:
        yield (
            row.name,
            f"{row.count:,}",
            f"{row.seconds * 1e6:,.1f}",
            f"{row.share_frac:.1%}",
            f"{row.flops / 1e9:,.2f}",
            f"{row.bytes / 1e6:,.1f}",
            row.dtype,
            row.bound,
        )


def _facts(
    order: StepOrder, cost: RooflineCost | MeasuredCost, step: StepBreakdown, chunks: list[Chunk]
) -> Iterator[str]:
    prompt = sum(new for new, _ in chunks)
    plan, batch = order.plan, order.batch
    gpus = f"{plan.gpus} x {cost.gpu.name}" if plan.gpus > 1 else cost.gpu.name
    yield f"step      {step.seconds * 1e3:.3f} ms on {gpus}, of which GPU {step.gpu_s * 1e3:.3f} ms"
    of_all = f" on each of {plan.dp} ranks" if plan.dp > 1 else ""
    of_one = " on one of them" if of_all and prompt else ""
    yield (
        f"tokens    {batch} decoded{of_all}, {prompt} of prompts{of_one}; "
        f"{step.tokens} with padding"
    )
    if batch:
        rate = batch * plan.dp / step.seconds
        yield f"output    {rate:,.0f} tokens/s at this batch and context"
