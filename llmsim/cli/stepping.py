"""`llmsim show step`: the price of one step, operator by operator."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from llmsim.api.stepping import StepPrice
from llmsim.cli.answering import plain, print_json
from llmsim.cli.looking import print_rows
from llmsim.core.errors import Fault, InputError


def chunks_of(texts: tuple[str, ...]) -> list[tuple[int, int]]:
    """Read ``NEW:PAST``; PAST may be left out.

    Raises
    ------
    InputError
        If a text is something else.
    """
    found: list[tuple[int, int]] = []
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


def print_step(price: StepPrice, as_json: bool) -> None:
    """Print what a step costs and what bounds each operator."""
    if as_json:
        print_json(plain(price) | {"seconds": price.seconds})
    else:
        print_rows(_table(price))
        typer.echo("")
        for line in _facts(price):
            typer.echo(line)
    for warning in price.warnings:
        typer.echo(f"note: {warning}", err=True)


def _table(price: StepPrice) -> Iterator[tuple[str, ...]]:
    yield ("operator", "calls", "time [us]", "share", "GFLOP", "MB", "dtype", "bound by")
    for row in price.breakdown.rows:
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


def _facts(price: StepPrice) -> Iterator[str]:
    step, plan, batch = price.breakdown, price.plan, price.batch
    prompt = sum(new for new, _ in price.prefill)
    gpus = f"{plan.gpus} x {price.gpu}" if plan.gpus > 1 else price.gpu
    yield f"step      {step.seconds * 1e3:.3f} ms on {gpus}, of which GPU {step.gpu_s * 1e3:.3f} ms"
    of_all = f" on each of {plan.dp} ranks" if plan.dp > 1 else ""
    of_one = " on one of them" if of_all and prompt else ""
    yield (
        f"tokens    {batch} decoded{of_all}, {prompt} of prompts{of_one}; "
        f"{step.tokens} with padding"
    )
    if batch:
        yield f"output    {price.output_tokens_per_s:,.0f} tokens/s at this batch and context"
    if price.stations_s:
        listed = ", ".join(f"{name} {time * 1e3:.3f}" for name, time in price.stations_s)
        yield f"stations  {listed} ms"
        times = [time for _, time in price.stations_s]
        every_s = max(*times, sum(times) / plan.pp)
        yield (
            f"pipeline  with {plan.pp} such micro-batches in flight one comes out every "
            f"{every_s * 1e3:.3f} ms"
        )
