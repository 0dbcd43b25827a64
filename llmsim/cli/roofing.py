"""`llmsim show roofline` and `llmsim show needs`: the plain roofline, forwards and backwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from llmsim.cli.answering import JsonOption, plain, print_json
from llmsim.cli.ending import exit_code_for_errors

if TYPE_CHECKING:
    from llmsim.costmodel.ideal import IdealRow
    from llmsim.specs import GpuCard, ModelSpec

ModelOption = Annotated[str, typer.Option(help="Model card, or a path to a config.json.")]
GpuOption = Annotated[str, typer.Option(help="GPU card.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Requests decoded together.")]
QuantisationOption = Annotated[
    str | None, typer.Option(help="As another checkpoint: fp8, fp8_block, int4_awq ...")
]
KvOption = Annotated[str | None, typer.Option(help="KV cache as bf16 or fp8.")]

_PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


@dataclass(frozen=True, slots=True)
class _Cards:
    """What a table is about, as it was named."""

    model: str
    gpu: str
    quantisation: str | None


def show_roofline(
    model: ModelOption,
    gpu: GpuOption,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, and of context.")] = 2048,
    batch: BatchOption = 1,
    quantisation: QuantisationOption = None,
    kv_dtype: KvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what bounds each operator: FLOPs, bytes, intensity and the roof above it.

    Example: llmsim show roofline --model llama-2-7b --gpu a40 --prompt 2048
    """
    with exit_code_for_errors():
        from llmsim.cli.looking import print_rows
        from llmsim.costmodel.ideal import decode_rows, ideal_cost, ideal_seconds, prefill_rows

        spec, card = _load(_Cards(model, gpu, quantisation))
        cost = ideal_cost(spec, card, batch, prompt, kv_dtype)
        prefill = prefill_rows(cost, [(prompt, 0)] * batch)
        decode = decode_rows(cost, batch, prompt)
        if as_json:
            told = {"prompt_tokens": prompt, "batch": batch}
            sides = {"prefill": _document(prefill), "decode": _document(decode)}
            print_json({"model": spec.name, "gpu": card.name} | told | sides)
            return
        shown = {
            f"prefill: {batch} x {prompt:,} tokens": prefill,
            f"decode: batch of {batch} at {prompt:,} tokens": decode,
        }
        typer.echo(f"{spec.name} on {card.name}")
        for title, rows in shown.items():
            typer.echo(f"\n{title}: {ideal_seconds(rows) * 1e3:,.3f} ms at the least")
            print_rows(list(_table(rows)))


def show_needs(
    model: ModelOption,
    gpu: Annotated[str, typer.Option(help="GPU card to count in.")],
    ttft: Annotated[float, typer.Option(help="In which a prompt must be computed [s].")],
    tpot: Annotated[float, typer.Option(help="In which a decode step must be computed [s].")],
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 2048,
    output: Annotated[int, typer.Option(help="Tokens of an output.")] = 256,
    batch: Annotated[int, typer.Option(help="Requests decoded together.")] = 1,
    efficiency: Annotated[
        float, typer.Option(help="Share of peak and bandwidth that is reached.")
    ] = 1.0,
    quantisation: QuantisationOption = None,
    kv_dtype: KvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a use needs at the least: memory, bandwidth and compute, also in GPUs.

    Example: llmsim show needs --model llama-3.1-70b --gpu h100-sxm --batch 32 --prompt 8000
    --output 192 --ttft 1 --tpot 0.04
    """
    with exit_code_for_errors():
        from llmsim.cli.looking import print_rows
        from llmsim.costmodel.ideal import Use, needs

        spec, card = _load(_Cards(model, gpu, quantisation))
        use = Use(prompt, output, batch, ttft, tpot)
        found = needs(spec, card, use, efficiency, kv_dtype)
        most = max(found, key=lambda need: need.gpus)
        if as_json:
            told = {"gpus": math.ceil(most.gpus), "bound_by": most.name, "needs": found}
            print_json({"model": spec.name, "gpu": card.name} | told)
            return
        rows = [(each.name, _amount(each.amount, each.unit), f"{each.gpus:,.2f}") for each in found]
        print_rows([("needs at the least", "", f"{card.name}s"), *rows])
        typer.echo(
            f"\n{math.ceil(most.gpus)} x {card.name} by {most.name}; whole GPUs, their links, "
            "activations and scheduling come on top."
        )


def _load(cards: _Cards) -> tuple[ModelSpec, GpuCard]:
    from llmsim.specs import load_gpu, load_model, requantise

    model = load_model(cards.model)
    if cards.quantisation:
        model = requantise(model, cards.quantisation)
    return model, load_gpu(cards.gpu)


def _document(rows: Sequence[IdealRow]) -> dict[str, object]:
    from llmsim.costmodel.ideal import ideal_seconds

    told = [plain(row) | {"seconds": row.seconds(), "bound": row.bound} for row in rows]
    return {"seconds": ideal_seconds(rows), "operators": told}


def _table(rows: Sequence[IdealRow]) -> Iterator[tuple[str, ...]]:
    yield (
        "operator",
        "calls",
        "FLOP",
        "bytes",
        "FLOP/byte",
        "roof FLOP/s",
        "time [us]",
        "bound by",
    )
    for row in sorted(rows, key=lambda row: -row.calls * row.seconds()):
        yield (
            row.name,
            f"{row.calls:,}",
            _amount(row.flops, ""),
            _amount(row.bytes, ""),
            f"{row.intensity:,.1f}",
            _amount(row.attainable_flops_per_s, ""),
            f"{row.seconds() * 1e6:,.1f}",
            row.bound,
        )


def _amount(value: float, unit: str) -> str:
    """Return a number with the prefix that suits it, three digits."""
    from llmsim.results.wording import number

    for prefix, size in _PREFIXES:
        if value >= size:
            return f"{number(value / size)} {prefix}{unit}"
    return f"{number(value)} {unit}".rstrip()
