"""How decode attention is split over programs, and how its parts are joined by their LSE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import capability_of, multiprocessors_of, power_of_two

MOST_SPLITS = 64
LEAST_PART_TOKENS = 128
MOST_PART_TOKENS = 1024
"""Of a part of a context, as far as there are at most `MOST_SPLITS`: one that is longer would run
on alone when the rest of a batch has ended."""

_LEAST: tl.constexpr = tl.constexpr(LEAST_PART_TOKENS)


@triton.jit
def part_tokens(seen, wanted, most, TILE: tl.constexpr):
    """Return the length of the parts of a context of which `seen` tokens are read."""
    parts = tl.maximum(tl.minimum(wanted, tl.cdiv(seen, _LEAST)), tl.cdiv(seen, most))
    return tl.cdiv(tl.cdiv(seen, tl.maximum(parts, 1)), TILE) * TILE


@triton.jit(do_not_specialize=["splits"])
def _join_parts(parts_ptr, lse_ptr, out_ptr, splits, PADDED: tl.constexpr, DIM: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, PADDED)
    dims = tl.arange(0, DIM)
    lse = tl.load(lse_ptr + head * splits + split, mask=split < splits, other=float("-inf"))
    ok = lse > float("-inf")  # of other parts nothing was written
    top = tl.max(lse, 0)
    weight = tl.exp2(lse - tl.where(top > float("-inf"), top, 0.0))
    total = tl.sum(weight, 0)
    place = (head * splits + split)[:, None] * DIM + dims[None, :]
    parts = tl.load(parts_ptr + place, mask=ok[:, None], other=0.0)
    out = tl.sum(parts * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + head * DIM + dims, out)


def join_parts(parts: Any, lse: Any, out: Any) -> None:
    """Add parts up, each by the share of the softmax that it saw.

    Parameters
    ----------
    parts : Tensor (batch, heads, splits, dim), fp32
        Normalised within each part.
    lse : Tensor (batch, heads, splits), fp32
        Logarithms to base 2; minus infinity for a part without tokens, which is not read.
    out : Tensor (batch, heads, dim)
        Is written.
    """
    batch, heads, splits, dim = parts.shape
    padded = power_of_two(splits)
    _join_parts[(batch * heads,)](parts, lse, out, splits, padded, dim, num_warps=4)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a launch is cut.

    Parameters
    ----------
    rows, tile : int
        Query heads packed into one product; tokens read at a time.
    splits : int
        Programs along a context, enough for the parts of the longest one.
    warps, stages : int
    wanted : int
        Parts of each context, as far as parts are not too short; 0 for `splits`.
    most : int [tokens]
        Longest part, whatever is wanted.
    """

    rows: int
    tile: int
    splits: int
    warps: int = 4
    stages: int = 2
    wanted: int = 0
    most: int = 1 << 30


def tiles_for(
    device: Any,
    batch: int,
    heads_kv: int,
    group: int,
    dim: int,
    context: int,
    kind: str = "same",
) -> Tiles:
    """Return the cut of a launch: two waves of programs, and no long part in any case.

    Parameters
    ----------
    device : torch.device
    batch : int [requests]
    heads_kv, group, dim : int
        KV heads, query heads for each, and width of a head.
    context : int [tokens]
        No request's is longer. How each one is cut depends on its own length alone, so that a
        launch which is fixed before lengths are known, in a graph, cuts as well as any other.
    kind : str
        Of the cache: ``same`` as the queries, ``fp8`` or ``int4``.

    Notes
    -----
    On an H100, numbers that are turned in registers want wider tiles, of which fewer fit at once.
    Those of 8 bits want two parts even where there are programs enough (64 requests of 8,192
    tokens: 440 us against 603), those of 4 bits long parts (350 us whole, 411 in parts of 1,024).

    With as many parts for all contexts of a batch (v1), the longest one ended last: 8 requests of
    8,192 tokens in the mean took 98 us even, 223 us when one had 32,768.
    """
    capability = capability_of(device)
    rows = min(64, max(16, power_of_two(group)))
    tile = 32 if dim >= 256 or capability == 0 else 64
    programs = batch * heads_kv * -(-group // rows)
    waves = min(MOST_SPLITS, -(-2 * multiprocessors_of(device) // programs))
    narrow = kind != "same" and dim <= 128 and capability >= 90
    four = narrow and kind == "int4"
    wanted = max(waves, 2) if narrow and not four else waves
    longest = MOST_PART_TOKENS * (4 if four else 1)
    most = max(2 * LEAST_PART_TOKENS, longest // waves, -(-context // MOST_SPLITS))
    splits = max(1, min(wanted, -(-context // LEAST_PART_TOKENS)), -(-context // most))
    if narrow:
        warps = 8 if four and rows > 16 else 4  # or registers do not suffice
        return Tiles(rows, 128, splits, warps, 2, wanted, most)
    return Tiles(rows, tile, splits, 4, 3 if capability >= 90 else 2, wanted, most)


def kv_kind(q: Any, cache: Any) -> str:
    """Return ``same``, ``fp8`` or ``int4``, told by the type and width of a cache."""
    if cache.shape[-1] * 2 == q.shape[-1]:
        return "int4"
    return "fp8" if cache.dtype in (torch.uint8, torch.float8_e4m3fn) else "same"
