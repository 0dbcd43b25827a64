"""Fitted terms as a file: `profiles/kernels/<card>.yaml`, one source per block of numbers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from llmsim.core.errors import CardError, Fault
from llmsim.core.files import write_whole
from llmsim.costmodel.measured.card_terms import FittedTerms, fit_card_terms, multiples
from llmsim.costmodel.measured.fitting import Errors
from llmsim.costmodel.measured.means import MOST_FITTED
from llmsim.costmodel.measured.profile import Profile

_UNITS = {
    "t0_s": "s",
    "compute_frac": "1",
    "memory_frac": "1",
    "norm": "1",
    "loop_s": "s",
    "quantise_s_per_byte": "s/byte",
    "wave_s": "s",
    "half_tiles_per_sm": "1",
    "expert_s": "s",
    "half_rows": "rows",
    "permute_s_per_byte": "s/byte",
}


def write_card_terms(
    profiles: Sequence[Profile], path: Path, seed: int = 0, without: Collection[str] = ()
) -> list[FittedTerms]:
    """Write `profiles/kernels/<card>.yaml` from profiles of one GPU.

    Parameters
    ----------
    profiles : sequence of Profile
        With meta: source and licence stand beside the numbers. The first that has rows of a
        family is the one it is fitted to.
    path : Path
    seed : int
    without : collection of str
        Paths of families to leave out.

    Returns
    -------
    list of FittedTerms
        What was written.

    Raises
    ------
    CardError
        If the profiles are of different GPUs, or have too few rows of every family.
    """
    first = profiles[0]
    names = {profile.device.name for profile in profiles}
    if len(names) > 1:
        message = f"profiles of different GPUs: {', '.join(sorted(names))}."
        raise CardError(first.name, [Fault("", first.name, message)])
    found = list(fit_card_terms(profiles, seed, without))
    if not found:
        raise CardError(first.name, [Fault("", first.name, "too few rows to fit anything.")])
    also = "".join(f" --also {profile.name}" for profile in profiles[1:])
    also += "".join(f" --without {family}" for family in without)
    lines = [
        f"# Tier fitted: smooth rooflines of {first.device.name}, made by",
        f"# `llmsim profile fit {first.name}{also} --kernels`.",
        "# What the GPU's own card states goes before these.",
        "kernels:",
    ]
    group = ""
    for each in found:
        head, _, tail = each.path.partition(".")
        if head != group:
            lines.append(f"  {head}:")
            group = head
        indent = "    "
        if tail:
            lines.append(f"    {tail}:")
            indent = "      "
        lines += [f"{indent}{line}" for line in _block(each, seed)]
    write_whole(path, "\n".join(lines) + "\n")
    return found


def _block(each: FittedTerms, seed: int) -> Iterable[str]:
    yield f"source: {json.dumps(_source(each, seed))}"
    for ours, theirs in each.names.items():
        yield f'{theirs}: {{value: {_number(getattr(each.terms, ours))}, unit: "{_UNITS[theirs]}"}}'
    if each.table.family.op == "moe":
        pads = zip(("hidden_multiple", "width_multiple"), multiples(each.table), strict=True)
        for name, value in pads:
            if value > 1:
                yield f'{name}: {{value: {value}, unit: "elements"}}'


def _number(value: float) -> str:
    """Return four digits as YAML takes them for a number: 1.0e-15, not 1e-15."""
    text = repr(float(f"{value:.4g}"))
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{mark}{exponent}"


def _source(each: FittedTerms, seed: int) -> str:
    """Say what was fitted, how well it prices what was not, and where the rows come from."""
    table, meta = each.table, each.profile.meta
    assert meta is not None
    types = "/".join(dict.fromkeys((table.types.a, table.types.w, table.types.kv)))
    sampled = each.fitted > MOST_FITTED
    seen = f"{MOST_FITTED} of {each.fitted}" if sampled else str(each.fitted)
    borrowed = ""
    if each.borrowed:
        borrowed = f" (compute share alone, where the host is not in the way; else {each.borrowed})"
    origin = f"{meta.source.removeprefix('https://')} ({meta.licence.split(',')[0]})"
    errors = "; ".join(f"{name} {_errors(found)}" for name, found in each.errors.items())
    return (
        f"fit to {table.libs}, {table.kernel_id}, {types}: {seen} rows, seed {seed}{borrowed}; "
        f"error on unseen shapes: {errors}; {origin}"
    )


def _errors(found: Errors) -> str:
    return (
        f"median {100 * found.median:.1f} percent, p90 {100 * found.p90:.0f}, "
        f"bias {100 * found.bias:+.1f} of {found.rows} rows"
    )
