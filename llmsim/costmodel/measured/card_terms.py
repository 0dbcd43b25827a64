"""Roofline terms of a GPU card, fitted to a profile: `profiles/kernels/<card>.yaml`.

They price a GPU without any profile at hand. Each family is fitted to the kernel with the most
rows, in the range that serving uses, and checked on shapes that the fit did not see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmsim.core.errors import CardError, Fault
from llmsim.costmodel.measured.families import Shapes, Types
from llmsim.costmodel.measured.fitting import Errors, errors_of, held_out, part_of
from llmsim.costmodel.measured.means import MOST_FITTED, MeanTerms, fit_mean, mean_s
from llmsim.costmodel.measured.profile import Profile
from llmsim.costmodel.measured.tables import KernelTable

_ROOF = ("t0_s", "compute_frac", "memory_frac", "norm")
_UNITS = {
    "t0_s": "s",
    "compute_frac": "1",
    "memory_frac": "1",
    "norm": "1",
    "wave_s": "s",
    "half_tiles_per_sm": "1",
    "expert_s": "s",
    "half_rows": "rows",
    "permute_s_per_byte": "s/byte",
}
_MOE = {"unit_s": "expert_s", "idle": "half_rows", "gather_s_per_byte": "permute_s_per_byte"}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One family of a card: which rows it is fitted to, and what its terms are called."""

    path: str
    op: str
    formats: tuple[tuple[str, str, str], ...]
    extra: dict[str, str]
    used: Callable[[Shapes], NDArray[np.bool_]]


def _gemm_rows(s: Shapes) -> NDArray[np.bool_]:
    return np.asarray((s["n"] >= 256) & (s["k"] >= 256))


def _decode_rows(s: Shapes) -> NDArray[np.bool_]:
    usual = (s["window"] == 0) & (s["head_dim"] <= 128)
    return np.asarray(usual & (s["batch"] <= 512))


def _prefill_rows(s: Shapes) -> NDArray[np.bool_]:
    return np.asarray((s["window"] == 0) & (s["head_dim"] <= 128) & (s["q_len"] >= 64))


def _latent_rows(s: Shapes) -> NDArray[np.bool_]:
    return np.asarray(s["batch"] <= 512)


def _moe_rows(s: Shapes) -> NDArray[np.bool_]:
    return np.asarray(s["skew"] == s["skew"].min())


def _same(*words: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((word, word, "bf16") for word in words)


_WANTED = (
    _Wanted("gemm.bf16", "gemm", _same("bf16"), {}, _gemm_rows),
    _Wanted("gemm.fp8", "gemm", _same("fp8"), {}, _gemm_rows),
    _Wanted("gemm.int8", "gemm", _same("int8"), {}, _gemm_rows),
    _Wanted("gemm.fp4", "gemm", _same("nvfp4"), {}, _gemm_rows),
    _Wanted(
        "decode_attention.bf16",
        "attention_decode",
        _same("bf16"),
        {"unit_s": "wave_s"},
        _decode_rows,
    ),
    _Wanted(
        "decode_attention.fp8",
        "attention_decode",
        (("bf16", "bf16", "fp8"),),
        {"unit_s": "wave_s"},
        _decode_rows,
    ),
    _Wanted(
        "prefill_attention",
        "attention_prefill",
        _same("bf16"),
        {"idle": "half_tiles_per_sm"},
        _prefill_rows,
    ),
    _Wanted("latent_decode", "mla_decode", _same("bf16"), {}, _latent_rows),
    _Wanted("moe.bf16", "moe", _same("bf16"), _MOE, _moe_rows),
    _Wanted("moe.fp8", "moe", _same("fp8_block", "fp8"), _MOE, _moe_rows),
    _Wanted("moe.fp4", "moe", _same("nvfp4"), _MOE, _moe_rows),
    _Wanted(
        "moe.w4a16", "moe", (("bf16", "int4", "bf16"), ("bf16", "mxfp4", "bf16")), _MOE, _moe_rows
    ),
)
LEAST_ROWS = 50


@dataclass(frozen=True, slots=True)
class FittedTerms:
    """The terms of one family of a card.

    Parameters
    ----------
    path : str
        Below ``kernels`` of a card.
    terms : MeanTerms
    names : dict of str to str
        Names in the card by names of `MeanTerms`.
    table : KernelTable
        Of the rows that could be fitted.
    fitted : int
        Rows that were seen; of more than `MOST_FITTED`, a sample was.
    errors : Errors
        On the others.
    """

    path: str
    terms: MeanTerms
    names: dict[str, str]
    table: KernelTable
    fitted: int
    errors: Errors


def fit_card_terms(profile: Profile, seed: int = 0) -> Iterator[FittedTerms]:
    """Yield the terms of every family that the profile has enough rows of.

    Parameters
    ----------
    profile : Profile
    seed : int
        Of what is held out, and of the subsample that is fitted.
    """
    for wanted in _WANTED:
        table = _largest(profile, wanted)
        if table is None:
            continue
        names = {**{name: name for name in _ROOF}, **wanted.extra}
        start = replace(
            table.family.start,
            unit_s=table.family.start.unit_s if "unit_s" in names else 0.0,
            cache_ratio=1.0,
        )
        unseen = held_out(table, seed)
        seen = part_of(table, ~unseen)
        work = seen.family.work(seen.columns, seen.types, seen.device)
        fit = fit_mean(work, seen.measured_s, tuple(names), start, seed=seed)
        other = part_of(table, unseen)
        priced = mean_s(other.family.work(other.columns, other.types, other.device), fit.terms)
        errors = errors_of(priced, other.measured_s)
        yield FittedTerms(wanted.path, fit.terms, names, table, len(seen), errors)


def _largest(profile: Profile, wanted: _Wanted) -> KernelTable | None:
    """Return the usable rows of the kernel that has the most of them, in the first format."""
    for a, w, kv in wanted.formats:
        parts = [
            part_of(table, wanted.used(table.columns))
            for table in profile.tables(wanted.op)
            if table.types == Types(a, w, kv)
        ]
        best = max(parts, key=len, default=None)
        if best is not None and len(best) >= LEAST_ROWS:
            return best
    return None


def write_card_terms(profile: Profile, path: Path, seed: int = 0) -> Path:
    """Write `profiles/kernels/<card>.yaml` from a profile.

    Parameters
    ----------
    profile : Profile
        With meta: its source and licence stand beside every number.
    path : Path
    seed : int

    Raises
    ------
    CardError
        If the profile has too few rows of every family.
    """
    found = list(fit_card_terms(profile, seed))
    if not found:
        raise CardError(profile.name, [Fault("", profile.name, "too few rows to fit anything.")])
    assert profile.meta is not None
    origin = (
        f"{profile.meta.source.removeprefix('https://')} ({profile.meta.licence.split(',')[0]})"
    )
    lines = [
        f"# Tier fitted: smooth rooflines of {profile.device.name}, made by `llmsim profile fit",
        f"# {profile.name} --kernels`. What the GPU's own card states goes before these.",
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
        source = json.dumps(_source(each, origin, seed))
        for ours, theirs in each.names.items():
            value = float(f"{getattr(each.terms, ours):.4g}")
            unit = _UNITS[theirs]
            lines.append(
                f'{indent}{theirs}: {{value: {value!r}, unit: "{unit}", source: {source}}}'
            )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _source(each: FittedTerms, origin: str, seed: int) -> str:
    """Say what was fitted, how well it prices what was not, and where the rows come from."""
    table, errors = each.table, each.errors
    types = "/".join(dict.fromkeys((table.types.a, table.types.w, table.types.kv)))
    sampled = each.fitted > MOST_FITTED
    seen = f"{MOST_FITTED} of {each.fitted}" if sampled else str(each.fitted)
    return (
        f"fit to {table.libs}, {table.kernel_id}, {types}: {seen} rows, seed {seed}; "
        f"on {errors.rows} rows of unseen shapes median error {100 * errors.median:.1f} percent, "
        f"p90 {100 * errors.p90:.0f}, bias {100 * errors.bias:+.1f}; {origin}"
    )
