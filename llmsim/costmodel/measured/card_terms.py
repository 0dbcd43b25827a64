"""Roofline terms of a GPU card, fitted to kernel tables: what stands in `profiles/kernels`.

They price a GPU without any profile at hand. Each family is fitted to the kernel that the engine
chose for most of the shapes, in the range that serving uses, and checked on shapes that the fit did
not see, regime by regime.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmsim.costmodel.measured.families import Shapes, Types, dealt_moe
from llmsim.costmodel.measured.fitting import Errors, errors_of, held_out, part_of
from llmsim.costmodel.measured.means import Floats, MeanTerms, Work, fit_mean, mean_s
from llmsim.costmodel.measured.profile import Profile
from llmsim.costmodel.measured.tables import KernelTable

LEAST_ROWS = 50
WORST_MEDIAN = 0.4
"""Median error in the first regime beyond which terms are not worth having."""
DECODE_TOKENS = 256
"""Most tokens of a step that is called decode; the regimes weigh the same in a fit."""
HOST_BOUND_S = 3e-5
"""A GEMM of next to no work that takes this long was launched by the host, one by one, and says
nothing about the kernel; in a captured graph it takes 2 to 13 us on every GPU and engine here."""
_SMALLEST, _IDLE_SHARE = 0.1, 0.5
_CLEAR_OF_HOST = 2.0  # rows this many times the host's floor show the kernel
_WHOLE_WEIGHT = 64e6  # elements of a matrix from which on a row counts fully; smaller ones in share
_SPIKE = 1.15
"""A time this far above that of a larger size is disturbed."""
_COPIES = 6.0
"""Sets of weights that aiconfigurator's GEMM collectors cycle through (``outside_loop_count``): all
of a small matrix's stay in the last-level cache."""
_RARE_SHARE = 0.1  # weight of shapes that few models have

_ASIDE: Mapping[str, tuple[str, ...]] = {
    "gemm": ("cache_ratio",),
    "attention_decode": ("cache_ratio",),
}
"""Fitted and left out of the card: repeated calls find small weights and a small KV cache in the
last level, where a step of a model, which streams all of its weights, does not."""

_PADDED: Mapping[tuple[str, str], tuple[int, int]] = {
    ("gptossmxfp4moe_marlin", "bf16"): (256, 128),
    ("trtllmmxfp4experts", "bf16"): (256, 256),
    ("trtllmmxfp4experts", "fp8"): (256, 256),
    ("moe_torch_flow", "fp8"): (512, 128),
}
"""Multiples of the model's and of an expert's width that engines pad MXFP4 experts to, by kernel
and activations (vLLM: ``Mxfp4MoEMethod.create_weights``; TensorRT-LLM:
``MXFP4WeightTRTLLMGenFusedMoEMethod``). vLLM's rows show them: on B200 widths of 90 and 180 take
the same 66 us, and Marlin's bandwidth on L40S is that of its unpadded integers only when zeros
count. TensorRT-LLM's are of one width."""

Masks = Mapping[str, NDArray[np.bool_]]

_ROOF = ("t0_s", "compute_frac", "memory_frac", "norm")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One family of a card: which rows it is fitted to, and what its terms are called.

    Parameters
    ----------
    path : str
        Below ``kernels`` of a card.
    op : str
        A key of `FAMILIES`.
    formats : tuple of (str, str, str)
        Activations, weights, KV; the first that has rows is taken.
    extra : dict of str to str
        Names in the card of the terms beside the roofline's four, by names of `MeanTerms`.
    """

    path: str
    op: str
    formats: tuple[tuple[str, str, str], ...]
    extra: dict[str, str]


def _same(word: str) -> tuple[tuple[str, str, str], ...]:
    return ((word, word, "bf16"),)


_GEMM = {"loop_s": "loop_s", "idle": "half_tiles_per_sm"}
_QUANTISED = {**_GEMM, "gather_s_per_byte": "quantise_s_per_byte"}
_MOE = {"unit_s": "expert_s", "idle": "half_rows", "gather_s_per_byte": "permute_s_per_byte"}
_WAVE = {"unit_s": "wave_s"}
_TILES = {"idle": "half_tiles_per_sm"}
WANTED = (
    Wanted("gemm.bf16", "gemm", _same("bf16"), _GEMM),
    Wanted("gemm.fp8", "gemm", _same("fp8"), _QUANTISED),
    Wanted("gemm.fp8_block", "gemm", _same("fp8_block"), _QUANTISED),
    Wanted("gemm.int8", "gemm", _same("int8"), _QUANTISED),
    Wanted("gemm.fp4", "gemm", _same("nvfp4"), _QUANTISED),
    Wanted("gemm.w8a16", "gemm", (("bf16", "int8", "bf16"),), _GEMM),
    Wanted("gemm.w4a16", "gemm", (("bf16", "int4", "bf16"),), _GEMM),
    Wanted("decode_attention.bf16", "attention_decode", _same("bf16"), _WAVE),
    Wanted("decode_attention.fp8", "attention_decode", (("bf16", "bf16", "fp8"),), _WAVE),
    Wanted("prefill_attention", "attention_prefill", _same("bf16"), _TILES),
    Wanted("latent_decode", "mla_decode", _same("bf16"), {}),
    Wanted("moe.bf16", "moe", _same("bf16"), _MOE),
    Wanted("moe.fp8", "moe", _same("fp8"), _MOE),
    Wanted("moe.fp8_block", "moe", _same("fp8_block"), _MOE),
    Wanted("moe.fp4", "moe", _same("nvfp4"), _MOE),
    Wanted("moe.w4a16", "moe", (("bf16", "int4", "bf16"),), _MOE),
    Wanted("moe.mxfp4", "moe", (("bf16", "mxfp4", "bf16"),), _MOE),
    Wanted("moe.mxfp4_fp8", "moe", (("fp8", "mxfp4", "bf16"),), _MOE),
)
"""Every family of a card that rows can say something about."""


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
    profile : Profile
        Where the rows come from.
    table : KernelTable
        Of the rows that could be fitted.
    fitted : int
        Rows that were seen; of more than `MOST_FITTED`, a sample was.
    errors : dict of str to Errors
        On the others, by regime.
    borrowed : str
        Path of the family that all but the compute share come from; empty for none.
    """

    path: str
    terms: MeanTerms
    names: dict[str, str]
    profile: Profile
    table: KernelTable
    fitted: int
    errors: dict[str, Errors]
    borrowed: str = ""


def fit_card_terms(
    profiles: Sequence[Profile], seed: int = 0, without: Collection[str] = ()
) -> Iterator[FittedTerms]:
    """Yield the terms of every family that a profile has enough rows of.

    Parameters
    ----------
    profiles : sequence of Profile
        Of one GPU; each family is fitted to the first that has rows of it that are not bound by
        the host.
    seed : int
        Of what is held out, and of the subsample that is fitted.
    without : collection of str
        Paths of families to leave out.

    Notes
    -----
    A family whose form does not fit its rows, such as the decode attention of TensorRT-LLM 1.0.0
    on A100, is left out too: a card is better off with the next best terms.
    """
    found: dict[str, FittedTerms] = {}
    for wanted in WANTED:
        if wanted.path in without:
            continue
        tables = [(profile, _chosen(profile, wanted)) for profile in profiles]
        usable = [(profile, table) for profile, table in tables if table is not None]
        sound = [(profile, table) for profile, table in usable if not host_floor_s(table)]
        if sound:
            found[wanted.path] = _fitted(wanted, *sound[0], seed)
        elif usable and "gemm.fp8" in found:
            found[wanted.path] = _fitted_beyond_host(wanted, *usable[0], found["gemm.fp8"], seed)
        else:
            continue
        if next(iter(found[wanted.path].errors.values())).median <= WORST_MEDIAN:
            yield found[wanted.path]


def _fitted(wanted: Wanted, profile: Profile, table: KernelTable, seed: int) -> FittedTerms:
    names = {**{name: name for name in _ROOF}, **wanted.extra}
    aside = _ASIDE.get(wanted.op, ())
    free = (*names, *aside)
    usual = table.family.start
    start = replace(
        usual,
        unit_s=usual.unit_s if "unit_s" in free else 0.0,
        idle=(usual.idle or 0.1) if "idle" in free else 0.0,
        loop_s=3e-7 if "loop_s" in free else 0.0,
        gather_s_per_byte=(usual.gather_s_per_byte or 3e-13)
        if "gather_s_per_byte" in free
        else 0.0,
        cache_ratio=1.3 if "cache_ratio" in free else 1.0,
    )
    return _fit(wanted.path, profile, table, names, free, start, seed)


def _fitted_beyond_host(
    wanted: Wanted, profile: Profile, table: KernelTable, lender: FittedTerms, seed: int
) -> FittedTerms:
    """Fit the compute share alone, where the kernel takes longer than the host; borrow the rest."""
    clear = part_of(table, table.measured_s > _CLEAR_OF_HOST * host_floor_s(table))
    fitted = _fit(wanted.path, profile, clear, lender.names, ("compute_frac",), lender.terms, seed)
    return replace(fitted, borrowed=lender.path)


def _fit(
    path: str,
    profile: Profile,
    table: KernelTable,
    names: dict[str, str],
    free: tuple[str, ...],
    start: MeanTerms,
    seed: int,
) -> FittedTerms:
    unseen = held_out(table, seed)
    target_s, work = unspiked_s(table), work_of(profile, table)
    weights = fit_weights(table)
    seen = ~unseen
    terms = fit_mean(
        work.take(seen), target_s[seen], free, start, seed=seed, weights=weights[seen]
    ).terms
    priced = mean_s(work, terms)
    errors = {
        name: errors_of(priced[mask & unseen], target_s[mask & unseen])
        for name, mask in regimes(table.family.op, table.columns).items()
        if (mask & unseen).any()
    }
    return FittedTerms(path, terms, names, profile, table, int(seen.sum()), errors)


def _chosen(profile: Profile, wanted: Wanted) -> KernelTable | None:
    """Return the usable rows of the kernel that has the most of them, in the first format."""
    for a, w, kv in wanted.formats:
        tables = [table for table in profile.tables(wanted.op) if table.types == Types(a, w, kv)]
        parts = [part_of(table, usable_rows(wanted.op, table.columns)) for table in tables]
        best = max(parts, key=len, default=None)
        if best is not None and len(best) >= LEAST_ROWS:
            return best
    return None


def work_of(profile: Profile, table: KernelTable) -> Work:
    """Return the work of a table's rows.

    Parameters
    ----------
    profile : Profile
    table : KernelTable

    Notes
    -----
    Imported rows of experts without skew were dealt in turn, and imported GEMMs cycle through few
    copies of their weights; those that llmsim measured were drawn, and cycle through enough.
    """
    asked = (table.columns, table.types, table.device)
    imported = profile.meta is not None and profile.meta.origin == "imported"
    if imported and table.family.op == "moe":
        return dealt_moe(padded(table), table.types, table.device)
    work = table.family.work(*asked)
    if imported and table.family.op == "gemm":
        return replace(work, cache_fill=_COPIES * work.cache_fill)
    return work


def multiples(table: KernelTable) -> tuple[int, int]:
    """Return what the kernel of expert rows pads the model's and an expert's width to."""
    if table.types.w != "mxfp4":
        return 1, 1
    of = (
        (name in table.kernel_id, a == table.types.a, pads) for (name, a), pads in _PADDED.items()
    )
    return next((pads for named, typed, pads in of if named and typed), (1, 1))


def padded(table: KernelTable) -> Shapes:
    """Return the shapes of expert rows as the kernel held them."""
    tall, wide = multiples(table)
    s = table.columns
    return {
        **s,
        "hidden": np.ceil(s["hidden"] / tall) * tall,
        "inter": np.ceil(s["inter"] / wide) * wide,
    }


def usable_rows(op: str, s: Shapes) -> NDArray[np.bool_]:
    """Return which rows are in the range that serving uses, and of the form that is priced.

    Notes
    -----
    Experts that are dealt out to ranks are left out: other kernels serve them (vLLM on H200), and
    with them the others fit worse (A100, 4-bit: prefill off by 51 percent, without by 7).
    """
    if op == "gemm":
        return np.asarray((s["n"] >= 512) & (s["k"] >= 512))
    if op == "attention_decode":
        return np.asarray((s["window"] == 0) & (s["head_dim"] <= 128) & (s["batch"] <= 512))
    if op == "attention_prefill":
        return np.asarray((s["window"] == 0) & (s["head_dim"] <= 128) & (s["q_len"] >= 64))
    if op == "moe":
        whole = (s["skew"] == 0) & (s["experts_local"] == s["experts"])
        return np.asarray(whole & _split_by_at_most(8, s))
    return np.asarray(s["batch"] <= 512)


def _split_by_at_most(ranks: int, s: Shapes) -> NDArray[np.bool_]:
    """Return the experts whose matrices at most this many ranks share: those of one node."""
    layer = np.column_stack([s["hidden"], s["topk"], s["experts"]])
    _, group = np.unique(layer, axis=0, return_inverse=True)
    widest = np.zeros(group.max() + 1)
    np.maximum.at(widest, group.ravel(), s["inter"])
    whole = widest[group.ravel()]
    return np.asarray(s["inter"] * ranks >= whole)


def regimes(op: str, s: Shapes) -> Masks:
    """Return the rows of each regime that errors are told for; together they are all rows."""
    if op in ("gemm", "moe"):
        decode = s["m" if op == "gemm" else "tokens"] <= DECODE_TOKENS
        return {"decode": np.asarray(decode), "prefill": np.asarray(~decode)}
    if op == "attention_decode":
        usual = (s["batch"] <= 256) & (s["kv_len"] >= 1000) & (s["kv_len"] <= 20_000)
    elif op == "attention_prefill":
        usual = (s["q_len"] >= 256) & (s["q_len"] * s["batch"] <= 16_384)
    else:
        return {"all": np.ones(len(s["batch"]), dtype=bool)}
    usual = usual & (s["head_dim"] == 128) & (s["heads_kv"] <= 16)
    return {"usual": np.asarray(usual), "rest": np.asarray(~usual)}


def fit_weights(table: KernelTable) -> Floats:
    """Return the weights of a table's rows: regimes alike, shapes that few models have less."""
    op, s = table.family.op, table.columns
    weights = np.zeros(len(table))
    for name, mask in regimes(op, s).items():
        if mask.any():
            weights[mask] = (_RARE_SHARE if name == "rest" else 1.0) / mask.sum()
    if op == "gemm":
        weights *= np.minimum(1.0, _RARE_SHARE + s["n"] * s["k"] / _WHOLE_WEIGHT)
    return weights


_LARGER: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gemm": ("m", ("n", "k")),
    "moe": ("tokens", ("hidden", "inter", "topk", "experts", "experts_local")),
    "attention_decode": ("kv_len", ("batch", "heads_q", "heads_kv", "head_dim")),
    "attention_prefill": ("q_len", ("batch", "heads_q", "heads_kv", "head_dim", "kv_len")),
    "mla_decode": ("kv_len", ("batch", "heads_q")),
}
"""The size of each operator, and what else makes two rows comparable."""


def unspiked_s(table: KernelTable) -> Floats:
    """Return the times, none far above that of a larger size of the same shape [s].

    Parameters
    ----------
    table : KernelTable

    Notes
    -----
    The larger problem contains the smaller, so what exceeds it is disturbance: on B200, fp8 rows
    of one shape jump from 18 to 38 and 52 us and back.
    """
    axis, names = _LARGER[table.family.op]
    keys = np.column_stack([table.columns[name] for name in names])
    _, group = np.unique(keys, axis=0, return_inverse=True)
    order = np.lexsort((table.columns[axis], group.ravel()))
    times = table.measured_s
    larger = times.copy()
    for part in np.split(order, np.cumsum(np.bincount(group.ravel()))[:-1]):
        larger[part] = np.minimum.accumulate(times[part][::-1])[::-1]
    return np.where(times > _SPIKE * larger, larger, times)


def host_floor_s(table: KernelTable) -> float:
    """Return what the host let the smallest GEMM of a table take; 0 where the kernel set it [s].

    Notes
    -----
    Judged by the tenth of the rows with the least work: also where an importer has left out the
    rows at the floor itself, those that remain are far above what peak and bandwidth allow.
    """
    if table.family.op != "gemm":
        return 0.0
    work = table.family.work(table.columns, table.types, table.device)
    least_s = np.maximum(work.compute_s, work.memory_s)
    small = least_s <= np.quantile(least_s, _SMALLEST)
    floor = float(np.median(table.measured_s[small]))
    idle = float(np.median(least_s[small])) < _IDLE_SHARE * floor
    return floor if idle and floor > HOST_BOUND_S else 0.0
