"""`llmsim show model`: layers, weights, KV cache and the work of one token, in 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import typer

from llmsim.cli.answering import print_json
from llmsim.core.units import GIB
from llmsim.costmodel.per_token import token_operators
from llmsim.specs import ModelSpec, load_model, requantise
from llmsim.specs.anatomy import mixer_words, mlp_words, weight_classes

_WIDTH = 80
_STATED = "published.total_parameters"
_MOST_ENTRIES = 8  # of a list that is shown whole


@dataclass(frozen=True, slots=True)
class ModelOrder:
    """Which model to show, and how.

    Parameters
    ----------
    name : str
        A card's name or alias, or a path to a card or a config.json.
    quantisation : str or None
        Show it as a checkpoint of this scheme.
    context : int [tokens]
        What attention reads in the table of one token.
    as_json : bool
    """

    name: str
    quantisation: str | None
    context: int
    as_json: bool = False


def show_model(order: ModelOrder) -> None:
    """Print what a model is made of.

    Raises
    ------
    CardError
        If there is no such model, or its file is wrong.
    InputError
        If there is no such scheme.
    """
    model = load_model(order.name)
    if order.quantisation:
        model = requantise(model, order.quantisation)
    for warning in model.warnings:
        typer.echo(f"note: {warning}", err=True)
    if order.as_json:
        print_json(_document(model, order.context))
        return
    for part in (
        _head(model),
        _layers(model),
        _weights(model),
        _memory(model),
        _work(model, order.context),
        _facts(model),
    ):
        for line in part:
            typer.echo(line)
        typer.echo("")


def _document(model: ModelSpec, context: int) -> dict[str, object]:
    """Return what is printed, as numbers in base units."""
    return {
        "name": model.name,
        "model_type": model.model_type,
        "layer_count": model.layer_count,
        "hidden": model.hidden,
        "vocab": model.vocab,
        "max_context_tokens": model.max_context_tokens,
        "window_tokens": model.window_tokens,
        "layers": [
            {
                "count": each.count,
                "mixer": mixer_words(each.mixer),
                "mlp": mlp_words(each.mlp),
            }
            for each in model.layers
        ],
        "weights": weight_classes(model),
        "total_parameters": model.total_parameters,
        "active_parameters": model.active_parameters,
        "draft_parameters": model.draft_parameters,
        "weight_bytes": model.weight_bytes(),
        "kv_dtype": model.kv_dtype,
        "kv_bytes_per_token": {
            dtype: model.kv_bytes_per_token(kv_dtype=dtype)
            for dtype in dict.fromkeys((model.kv_dtype, "bf16", "fp8"))
        },
        "state_bytes_per_sequence": model.state_bytes_per_sequence(),
        "context_tokens": context,
        "one_token": token_operators(model, context, model.kv_dtype),
        "sources": model.sources,
        "warnings": model.warnings,
    }


def _head(model: ModelSpec) -> Iterator[str]:
    longest = f"{model.max_context_tokens:,}" if model.max_context_tokens else "not stated"
    yield f"{model.name} ({model.model_type or 'no model_type'})"
    yield (
        f"{model.layer_count} layers, hidden size {model.hidden:,}, vocabulary {model.vocab:,}, "
        f"longest context {longest}"
    )


def _layers(model: ModelSpec) -> Iterator[str]:
    rows = [
        (str(layer.count), mixer_words(layer.mixer), mlp_words(layer.mlp)) for layer in model.layers
    ]
    yield from _table([("layers", "mixer", "MLP"), *rows], "<<<")


def _weights(model: ModelSpec) -> Iterator[str]:
    """Yield weights by class, and how they compare with what the owner states."""
    rows = [("weights", "parameters", "GiB", "format")]
    for part in weight_classes(model):
        size = f"{part.weight_bytes / GIB:,.2f}"
        rows.append((part.name, _count(part.parameters), size, ", ".join(part.formats)))
    total = model.total_parameters
    stated = next((row.value for row in model.sources if row.field == _STATED), None)
    against = f"{total / float(stated) - 1:+.2%} of what is published" if stated else ""
    rows.append(("total", _count(total), f"{model.weight_bytes() / GIB:,.2f}", against))
    if model.active_parameters < total:
        rows.append(("active per token", _count(model.active_parameters), "", ""))
    if model.draft_parameters:
        words = f"not in the total; {model.draft_layers} draft layers (MTP)"
        rows.append(("drafts", _count(model.draft_parameters), "", words))
    yield from _table(rows, "<>><")


def _memory(model: ModelSpec) -> Iterator[str]:
    rows = [("cache", "bytes", "of")]
    for dtype in dict.fromkeys((model.kv_dtype, "bf16", "fp8")):
        size = model.kv_bytes_per_token(kv_dtype=dtype)
        own = ", as the checkpoint asks" if dtype == model.kv_dtype != "bf16" else ""
        if size:
            rows.append(("KV", f"{size:,.0f}", f"one token, {dtype}{own}"))
    state = model.state_bytes_per_sequence()
    if state:
        rows.append(("state", f"{state:,.0f}", "one sequence, whatever its length"))
    yield from _table(rows, "<><")
    if model.window_tokens:
        yield f"windowed layers read at most {model.window_tokens:,} tokens"


def _work(model: ModelSpec, context: int) -> Iterator[str]:
    """Yield the operators of one token decoded alone."""
    operators = token_operators(model, context, model.kv_dtype)
    rows = [
        (row.name, str(row.calls), f"{row.flops / 1e6:,.1f}", f"{row.bytes / 1e6:,.2f}")
        for row in operators
    ]
    flops, moved = sum(row.flops for row in operators), sum(row.bytes for row in operators)
    rows.append(("one token", "", f"{flops / 1e6:,.1f}", f"{moved / 1e6:,.2f}"))
    yield f"one token decoded alone at a context of {context:,}, {model.kv_dtype} KV"
    yield from _table([("operator", "calls", "MFLOP", "MB"), *rows], "<>>>")


def _facts(model: ModelSpec) -> Iterator[str]:
    """Yield what was read, each source once."""
    by_source: dict[str, list[str]] = {}
    for row in model.sources:
        by_source.setdefault(row.source, []).append(
            f"{row.field.removeprefix('config.')} {_value(row.value)}"
        )
    for source, facts in by_source.items():
        where = re.sub(r"^https://(.*)/blob/main/(config.json)", r"\1, \2", source)
        yield from textwrap.wrap(f"from {where}:", _WIDTH, break_on_hyphens=False)
        yield from textwrap.wrap(
            ", ".join(facts),
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )


def _value(value: object) -> str:
    if isinstance(value, list) and len(value) > _MOST_ENTRIES:
        return f"({len(value)} entries)"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(parameters: int) -> str:
    if parameters >= 1e9:
        return f"{parameters / 1e9:,.2f} B"
    return f"{parameters / 1e6:,.2f} M"


def _table(rows: Sequence[tuple[str, ...]], sides: str) -> Iterator[str]:
    """Yield aligned lines; one character of `sides` per column says left or right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(sides))]
    for row in rows:
        cells = [
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()
