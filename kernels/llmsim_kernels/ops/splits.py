"""How decode attention is split over programs, and how its parts are joined by their LSE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from llmsim_kernels.ops.device import capability_of, multiprocessors_of, power_of_two

MOST_SPLITS = 64


@triton.jit(do_not_specialize=["splits"])
def _join_parts(parts_ptr, lse_ptr, out_ptr, splits, PADDED: tl.constexpr, DIM: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, PADDED)
    dims = tl.arange(0, DIM)
    ok = split < splits
    lse = tl.load(lse_ptr + head * splits + split, mask=ok, other=float("-inf"))
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
        Logarithms to base 2; minus infinity for a part without tokens.
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
        Parts of a context.
    warps, stages : int
    """

    rows: int
    tile: int
    splits: int
    warps: int = 4
    stages: int = 2


def tiles_for(
    device: Any,
    batch: int,
    heads_kv: int,
    group: int,
    dim: int,
    context: int,
    kind: str = "same",
) -> Tiles:
    """Return the cut of a launch: two waves of programs, and at least 256 tokens in each part.

    Parameters
    ----------
    device : torch.device
    batch : int [requests]
    heads_kv, group, dim : int
        KV heads, query heads for each, and width of a head.
    context : int [tokens]
        Of the longest request.
    kind : str
        Of the cache: ``same`` as the queries, ``fp8`` or ``int4``.

    Notes
    -----
    On an H100, numbers that are turned in registers want wider tiles, of which fewer fit at once,
    and two parts even where there are programs enough (64 requests of 8,192 tokens: fp8 440 us
    against 603, int4 594 against 679).
    """
    capability = capability_of(device)
    rows = min(64, max(16, power_of_two(group)))
    tile = 32 if dim >= 256 or capability == 0 else 64
    programs = batch * heads_kv * -(-group // rows)
    wanted = -(-2 * multiprocessors_of(device) // programs)
    narrow = kind != "same" and dim <= 128 and capability >= 90
    splits = max(1, min(MOST_SPLITS, max(wanted, 2 if narrow else 1), context // 256))
    if narrow:
        return Tiles(rows, 128, splits, 4, 2)
    return Tiles(rows, tile, splits, 4, 3 if capability >= 90 else 2)
